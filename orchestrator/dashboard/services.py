"""What the pages keep for a process: thumbnails and remembered counts.

Owns their making, once for an application.
"""

import threading
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from orchestrator.api.resources import Resources, resources_of
from orchestrator.dashboard.figures import Counts
from orchestrator.dashboard.thumbnails import Thumbnails

_making = threading.Lock()


@dataclass(frozen=True)
class Kept:
    """The pages' own services, and the resources of the application."""

    opened: Resources
    counts: Counts
    thumbnails: Thumbnails


def kept_of(request: Request) -> Kept:
    """The services of the application that answers this request."""
    state = request.app.state
    with _making:
        if not hasattr(state, "dashboard"):
            opened = resources_of(request)
            state.dashboard = Kept(opened, Counts(), Thumbnails(opened.settings))
        found: Kept = state.dashboard
    return found


Services = Annotated[Kept, Depends(kept_of)]
"""The parameter of a page that works with them."""
