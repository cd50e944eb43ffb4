"""Figures that several pages show: what ended when, rates, and the time that is left.

Refuses to guess: without an end to go by there is no rate.
"""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

from orchestrator.dashboard import charts
from orchestrator.state import queries
from orchestrator.state.queries import Batch, BatchCounts
from orchestrator.state.transitions import JobState

RATE_WINDOW_S = 120.0
# Less than this says nothing about a rate.
LEAST_SPAN_S = 1.0
# A job's end is written a moment after the time it bears.
SETTLED_S = 30.0
REMEMBERED = 64


Counts = dict[float, tuple[int, int]]
"""By the beginning of an interval: jobs that succeeded, jobs that failed."""


@dataclass(frozen=True)
class _Counted:
    """What is known of the intervals that lie before `until_s`; a retry takes failures back, and raises `reopened`."""

    reopened: int
    from_s: float
    until_s: float
    ends: Counts


class BatchEnds:
    """What ended when in a batch: intervals that are over are counted once, however long it runs. Thread-safe."""

    def __init__(self, most: int = REMEMBERED) -> None:
        self._known: OrderedDict[tuple[str, float], _Counted] = OrderedDict()
        self._lock, self._most = threading.Lock(), most

    def chart(self, connection: Connection, batch: Batch, to_s: float, step_s: float) -> charts.Throughput:
        """Its jobs that ended from its start until then, by intervals of `step_s`."""
        from_s, to_s = _span(batch.started_at or batch.created_at, to_s, step_s)
        key = (batch.id, step_s)
        with self._lock:
            known = self._known.get(key)
        if known is None or (known.reopened, known.from_s) != (batch.reopened, from_s):
            known = _Counted(batch.reopened, from_s, from_s, {})
        since_s = min(known.until_s, to_s)
        ends = {at_s: both for at_s, both in known.ends.items() if at_s < since_s}
        ends |= _count_ends(connection, since_s, to_s, step_s, batch.id)
        until_s = min((queries.read_clock(connection) - SETTLED_S) // step_s * step_s, to_s)
        if until_s > known.until_s:
            over = {at_s: both for at_s, both in ends.items() if at_s < until_s}
            with self._lock:
                self._known[key] = _Counted(batch.reopened, from_s, until_s, over)
                self._known.move_to_end(key)
                if len(self._known) > self._most:
                    self._known.popitem(last=False)
        return _draw(ends, from_s, to_s, step_s)


def chart_ends(connection: Connection, from_s: float, to_s: float, step_s: float) -> charts.Throughput:
    """Jobs of all batches that ended between two moments, by intervals of `step_s`."""
    from_s, to_s = _span(from_s, to_s, step_s)
    return _draw(_count_ends(connection, from_s, to_s, step_s), from_s, to_s, step_s)


def _span(from_s: float, to_s: float, step_s: float) -> tuple[float, float]:
    return from_s // step_s * step_s, (to_s // step_s + 1) * step_s


def _count_ends(
    connection: Connection, from_s: float, to_s: float, step_s: float, batch_id: str | None = None
) -> Counts:
    succeeded, failed = (
        dict(queries.throughput(connection, since=from_s, until=to_s, batch_id=batch_id, bucket_s=step_s, state=state))
        for state in (JobState.SUCCEEDED, JobState.FAILED)
    )
    return {at_s: (succeeded.get(at_s, 0), failed.get(at_s, 0)) for at_s in {*succeeded, *failed}}


def _draw(ends: Counts, from_s: float, to_s: float, step_s: float) -> charts.Throughput:
    return charts.throughput([(at_s, *both) for at_s, both in sorted(ends.items())], from_s, to_s, step_s)


def rate_per_s(
    connection: Connection, now_s: float, since: Sequence[float | None] = (), batch_id: str | None = None
) -> float | None:
    """Jobs a second over the last two minutes, or since the latest of the moments given; None where none ended."""
    from_s = max(now_s - RATE_WINDOW_S, *(at_s for at_s in since if at_s is not None), 0.0)
    span_s = max(LEAST_SPAN_S, now_s - from_s)
    ended = sum(
        count
        for state in (JobState.SUCCEEDED, JobState.FAILED)
        for _, count in queries.throughput(connection, since=from_s, batch_id=batch_id, state=state)
    )
    return ended / span_s if ended else None


def batch_rate_per_s(connection: Connection, batch: Batch, now_s: float) -> float | None:
    """Jobs a second of one open batch."""
    return rate_per_s(connection, now_s, (batch.started_at, batch.resumed_at), batch.id)


def remaining_s(counts: BatchCounts, per_s: float | None) -> float | None:
    """Seconds until all jobs have ended at this rate; None where there is none."""
    left = counts.total - counts.ended
    return left / per_s if per_s else None
