"""Figures that pages show of the time that has passed: what ended when."""

import threading
from collections import OrderedDict
from dataclasses import dataclass

from sqlalchemy import Connection

from orchestrator.dashboard import charts
from orchestrator.state import queries
from orchestrator.state.queries import Batch
from orchestrator.state.transitions import JobState

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
