"""What the pages keep for a process beside the API's resources: thumbnails, what was found out about drafts,
and what charts have counted.

Owns their making, once for an application.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Request

from orchestrator.api.resources import Resources, resources_of
from orchestrator.dashboard.figures import BatchEnds
from orchestrator.dashboard.thumbnails import Thumbnails
from orchestrator.settings import Settings
from orchestrator.state.queries import Batch, BatchCounts
from orchestrator.tallies import Tallies

REMEMBERED = 64
T = TypeVar("T")


class Findings:
    """What looking at a draft has shown, so that a choice which changes no row has none read again. Thread-safe."""

    def __init__(self, most: int = REMEMBERED) -> None:
        self._known: OrderedDict[Hashable, Any] = OrderedDict()
        self._lock, self._most = threading.Lock(), most

    def recall(self, key: Hashable, find: Callable[[], T]) -> T:
        """What `find` gave for this key lately, or gives now; an error is not remembered."""
        with self._lock:
            if key in self._known:
                self._known.move_to_end(key)
                known: T = self._known[key]
                return known
        found = find()
        with self._lock:
            self._known[key] = found
            if len(self._known) > self._most:
                self._known.popitem(last=False)
        return found


def open_services(settings: Settings) -> Mapping[type, Any]:
    """One of each, by its type."""
    return {Thumbnails: Thumbnails(settings), Findings: Findings(), BatchEnds: BatchEnds()}


@dataclass(frozen=True)
class Kept:
    """The pages' own services, and the resources of the application."""

    opened: Resources

    @property
    def thumbnails(self) -> Thumbnails:
        """The one cache of small pictures."""
        return self.opened.service(Thumbnails)

    @property
    def findings(self) -> Findings:
        """What is known of drafts."""
        return self.opened.service(Findings)

    def counts(self, batches: Sequence[Batch]) -> dict[str, BatchCounts]:
        """Jobs by state of these batches, by id."""
        return self.opened.service(Tallies).counts_of(batches)


async def kept_of(request: Request) -> Kept:
    """The services of the application that answers this request."""
    return Kept(resources_of(request))


Services = Annotated[Kept, Depends(kept_of)]
"""The parameter of a page that works with them."""
