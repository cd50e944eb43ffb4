"""The progress of a batch: how it stands now, how fast it goes, when it will end.

Owns the reading of counts over time, and the one rule by which API and pages tell rates and what is left. Refuses to
print; it only looks, on connections that take no lock. Without an end to go by there is no rate.
"""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, Engine

from orchestrator.batches import read_batch
from orchestrator.state import queries
from orchestrator.state.database import reading
from orchestrator.state.queries import Batch, BatchCounts
from orchestrator.state.transitions import BatchStatus, JobState

INTERVAL_S = 0.5
# Counting a batch of millions takes its time; looking never takes more than this share of it.
LOOKING_SHARE = 0.1
WINDOW_S = 30.0
RATE_WINDOW_S = 120.0
# Less than this says nothing about a rate.
LEAST_SPAN_S = 1.0
MOVING = (BatchStatus.INGESTING, BatchStatus.RUNNING, BatchStatus.CANCELLING)


@dataclass(frozen=True)
class Snapshot:
    """A batch and its counts at one moment; `at_s` is a monotonic clock's."""

    batch: Batch
    counts: BatchCounts
    at_s: float

    @property
    def status(self) -> BatchStatus:
        """How the batch stands, in a word."""
        return self.batch.status

    @property
    def standing(self) -> bool:
        """Whether the batch has ended, or stands until somebody moves it."""
        return self.batch.status not in MOVING


class Pace:
    """How many jobs end in a second, over the last half minute."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()
        self._first: tuple[float, int] | None = None

    def note(self, at_s: float, ended: int) -> None:
        """Note how many jobs have ended by a moment. The wait for the first one is left out."""
        if len(self._seen) == 1 and self._seen[0][1] == ended:
            self._seen.clear()
        self._seen.append((at_s, ended))
        if len(self._seen) == 1:
            self._first = self._seen[0]
        while len(self._seen) > 2 and self._seen[1][0] <= at_s - WINDOW_S:
            self._seen.popleft()

    @property
    def rate(self) -> float | None:
        """Jobs a second; None before two looks differ."""
        return None if len(self._seen) < 2 else _rate(self._seen[0], self._seen[-1])

    @property
    def mean_rate(self) -> float | None:
        """Jobs a second since the first one began to move; None when none ended while we looked."""
        return None if self._first is None else _rate(self._first, self._seen[-1])

    def remaining_s(self, jobs: int) -> float | None:
        """Seconds until so many jobs have ended; None when that cannot be told."""
        return None if self.rate is None else jobs / self.rate


def _rate(first: tuple[float, int], last: tuple[float, int]) -> float | None:
    (from_s, before), (to_s, after) = first, last
    return (after - before) / (to_s - from_s) if after > before and to_s > from_s else None


def look(engine: Engine, batch_id: str) -> Snapshot:
    """How a batch stands now. Raises BatchError when there is none of that id."""
    # The status first: counts read after the end are final.
    batch = read_batch(engine, batch_id)
    with reading(engine).connect() as connection:
        counts = queries.count_by_state(connection, batch_id)
    return Snapshot(batch, counts, time.monotonic())


def follow(engine: Engine, batch_id: str, interval_s: float = INTERVAL_S) -> Iterator[Snapshot]:
    """Look again and again until the batch stands; the last one tells how it stands."""
    while True:
        began_s = time.monotonic()
        snapshot = look(engine, batch_id)
        yield snapshot
        if snapshot.standing:
            return
        taken_s = snapshot.at_s - began_s
        time.sleep(max(interval_s - (time.monotonic() - began_s), taken_s / LOOKING_SHARE, 0.0))


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


def show_duration(seconds: float) -> str:
    """A duration for people: 8.3 s, 2 min 05 s, 3 h 20 min."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
