"""Filters of a batch's jobs, as they stand in a URL: read, checked, and written again for every link of a page.

Owns the names of the query's parts. Refuses values that no job can have.
"""

from dataclasses import dataclass, replace
from typing import Annotated

from fastapi import Depends, Query

from orchestrator.api.cursors import read_cursor
from orchestrator.api.problems import Problem
from orchestrator.dashboard.page import query_of
from orchestrator.state.database import storable
from orchestrator.state.queries import UNDECIDED, JobFilter
from orchestrator.state.transitions import ACTIVE, Decision, JobState

GROUPS = {"active": ACTIVE}
DECISIONS = ("", UNDECIDED, *Decision)


@dataclass(frozen=True)
class UrlFilter:
    """A filter as a URL tells it; empty texts leave nothing out. `after` is the place of the page in the list."""

    state: str = ""
    code: str = ""
    decision: str = ""
    text: str = ""
    after: str = ""

    @property
    def any(self) -> bool:
        """Whether it leaves anything out."""
        return bool(self.state or self.code or self.decision or self.text)

    @property
    def wanted(self) -> JobFilter:
        """What SQL is asked for."""
        states = GROUPS.get(self.state) or ((JobState(self.state),) if self.state else ())
        codes = (self.code,) if self.code else ()
        return JobFilter(tuple(states), codes, self.text, self.decision or None)

    def query(self, **changed: str) -> str:
        """The query string of this filter with some parts changed, from the first page on."""
        told = replace(self, **{"after": "", **changed})
        return query_of(
            {"state": told.state, "code": told.code, "decision": told.decision, "q": told.text, "after": told.after}
        )

    def key(self) -> tuple[int, int] | None:
        """What the page begins after. Raises Problem 422 for what no link of ours has."""
        return read_cursor(self.after or None, int, int)


def read_filter(
    state: Annotated[str, Query(max_length=20)] = "",
    code: Annotated[str, Query(max_length=100)] = "",
    decision: Annotated[str, Query(max_length=20)] = "",
    q: Annotated[str, Query(max_length=256)] = "",
    after: Annotated[str, Query(max_length=40)] = "",
) -> UrlFilter:
    """The filter of a request. Raises Problem 422 for a state or decision that there is not."""
    if state and state not in (*JobState, *GROUPS):
        raise Problem(422, "bad_state", f"state {state!r}: expected {', '.join((*JobState, *GROUPS))}")
    if decision not in DECISIONS:
        raise Problem(422, "bad_decision", f"decision {decision!r}: expected {', '.join(DECISIONS[1:])}")
    return UrlFilter(state, storable(code), decision, storable(q.strip()), after)


Filter = Annotated[UrlFilter, Depends(read_filter)]
"""The parameter of a page that shows jobs."""
