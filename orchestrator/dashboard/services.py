"""What the pages keep for a process beside the API's resources: thumbnails.

Owns their making, once for an application.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from orchestrator.api.resources import Resources, resources_of
from orchestrator.dashboard.thumbnails import Thumbnails
from orchestrator.state.queries import Batch, BatchCounts
from orchestrator.tallies import Tallies

_making = threading.Lock()


@dataclass(frozen=True)
class Kept:
    """The pages' own services, and the resources of the application."""

    opened: Resources
    thumbnails: Thumbnails

    def counts(self, batches: Sequence[Batch]) -> dict[str, BatchCounts]:
        """Jobs by state of these batches, by id."""
        return self.opened.service(Tallies).counts_of(batches)


def kept_of(request: Request) -> Kept:
    """The services of the application that answers this request."""
    state = request.app.state
    with _making:
        if not hasattr(state, "dashboard"):
            opened = resources_of(request)
            state.dashboard = Kept(opened, Thumbnails(opened.settings))
        found: Kept = state.dashboard
    return found


Services = Annotated[Kept, Depends(kept_of)]
"""The parameter of a page that works with them."""
