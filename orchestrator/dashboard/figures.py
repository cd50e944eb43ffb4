"""Figures that several pages show: counts of batches, rates, and the time that is left.

Owns a memory of what cannot change any more: the counts of a batch that has ended. Refuses to guess: without an end to
go by there is no rate.
"""

import threading
from collections.abc import Sequence

from sqlalchemy import Connection

from orchestrator.state.queries import Batch, BatchCounts, pages

RATE_WINDOW_S = 120.0
# Less than this says nothing about a rate.
LEAST_SPAN_S = 1.0
REMEMBERED = 5_000


class Counts:
    """Counts by state. What has ended is counted once, until it is reopened."""

    def __init__(self) -> None:
        self._known: dict[tuple[object, ...], BatchCounts] = {}
        self._lock = threading.Lock()

    def of(self, connection: Connection, batches: Sequence[Batch]) -> dict[str, BatchCounts]:
        """The counts of these batches, by id."""
        with self._lock:
            found = {batch.id: self._known[_key(batch)] for batch in batches if _key(batch) in self._known}
        missing = [batch for batch in batches if batch.id not in found]
        counted = pages.count_states(connection, [batch.id for batch in missing])
        with self._lock:
            if len(self._known) > REMEMBERED:
                self._known.clear()
            self._known |= {_key(batch): counted[batch.id] for batch in missing if batch.ended_at is not None}
        return found | counted


def _key(batch: Batch) -> tuple[object, ...]:
    return batch.id, batch.status, batch.ended_at, batch.reopened, batch.total


def rate_per_s(connection: Connection, batches: Sequence[Batch], now_s: float) -> dict[str, float]:
    """Jobs a second of open batches over the last two minutes, by id; those without an end are left out."""
    found = {}
    for batch in batches:
        begun_s = max(batch.started_at or batch.created_at, batch.resumed_at or 0.0)
        from_s = max(now_s - RATE_WINDOW_S, begun_s)
        span_s = max(LEAST_SPAN_S, now_s - from_s)
        ends = pages.count_ends(connection, [batch.id], from_s=from_s, step_s=max(span_s, RATE_WINDOW_S) + 1)
        if ended := sum(ok + bad for _, ok, bad in ends):
            found[batch.id] = ended / span_s
    return found


def remaining_s(counts: BatchCounts, per_s: float | None) -> float | None:
    """Seconds until all jobs have ended at this rate; None where there is none."""
    left = counts.pending + counts.queued + counts.running
    return left / per_s if per_s else None
