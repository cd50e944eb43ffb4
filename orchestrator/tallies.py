"""How many jobs of a batch stand where, as often as pages and callers ask.

Owns which counts are stored, which are remembered and which are counted anew: looking at an open batch takes a quarter
of one database core at most, however large it is and however many look. Refuses to guess: a count is old, never wrong.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from sqlalchemy import Engine

from orchestrator.state import queries
from orchestrator.state.database import reading
from orchestrator.state.queries import Batch, BatchCounts
from orchestrator.state.transitions import JobState

# A count is good for so many times the time that it took.
REST = 4.0
# What takes longer is counted beside the request, which is told the count before.
PATIENCE_S = 0.02
REMEMBERED = 10_000
PAGE_BATCHES = 1_000


@dataclass(frozen=True)
class _Tally:
    counts: BatchCounts
    at_s: float
    cost_s: float
    version: tuple[float | None, int]


class Tallies:
    """Counts of one database, remembered by this process. Safe for any number of threads."""

    def __init__(self, engine: Engine, clock: Callable[[], float] = time.monotonic) -> None:
        self._engine, self._clock = engine, clock
        self._known: OrderedDict[str, _Tally] = OrderedDict()
        self._lock = threading.Lock()
        self._beside = ThreadPoolExecutor(1, thread_name_prefix="tallies")
        self._asked: set[str] = set()

    def close(self) -> None:
        """Count no more."""
        self._beside.shutdown(wait=True, cancel_futures=True)

    def counts(self, batch: Batch) -> BatchCounts:
        """The jobs of one batch by state."""
        return self.counts_of([batch])[batch.id]

    def counts_of(self, batches: Sequence[Batch]) -> dict[str, BatchCounts]:
        """The jobs of several batches by state."""
        found = {batch.id: batch.ended_counts for batch in batches if batch.ended_counts is not None}
        now: list[Batch] = []
        slow: list[Batch] = []
        for batch in batches:
            if batch.id in found:
                continue
            tally = self._known.get(batch.id)
            if tally is None or (tally.version != _version(batch) and batch.ended_at is not None):
                now.append(batch)
            elif not self._holds(batch, tally):
                (slow if tally.cost_s > PATIENCE_S else now).append(batch)
        self._count(now)
        with self._lock:
            late = [batch for batch in slow if batch.id not in self._asked]
            self._asked.update(batch.id for batch in late)
        for batch in late:
            self._beside.submit(self._count, [batch])
        return {batch.id: found.get(batch.id) or self._known[batch.id].counts for batch in batches}

    def totals(self) -> dict[JobState, int]:
        """The jobs of all batches by state. Those of ended batches are not looked at: their counts are stored."""
        with reading(self._engine).connect() as connection:
            ended, others = queries.ended_totals(connection)
        totals = dict.fromkeys(JobState, 0) | ended
        for start in range(0, len(others), PAGE_BATCHES):
            with reading(self._engine).connect() as connection:
                page = queries.read_batches(connection, others[start : start + PAGE_BATCHES])
            for counts in self.counts_of(page).values():
                for state in JobState:
                    totals[state] += getattr(counts, state)
        return totals

    def _holds(self, batch: Batch, tally: _Tally) -> bool:
        if batch.ended_at is not None and tally.counts.ended == tally.counts.total:
            return True  # else its catalogue became unreadable, and its jobs are being cancelled
        return self._clock() - tally.at_s < REST * tally.cost_s

    def _count(self, batches: Sequence[Batch]) -> None:
        if not batches:
            return
        began_s = self._clock()
        try:
            with reading(self._engine).connect() as connection:
                counted = queries.count_many_by_state(connection, [batch.id for batch in batches])
        finally:
            with self._lock:
                self._asked.difference_update(batch.id for batch in batches)
        now_s = self._clock()
        total = sum(counts.total for counts in counted.values()) or 1
        with self._lock:
            for batch in batches:
                counts = counted[batch.id]
                cost_s = (now_s - began_s) * counts.total / total
                self._known[batch.id] = _Tally(counts, began_s, cost_s, _version(batch))
                self._known.move_to_end(batch.id)
            while len(self._known) > max(REMEMBERED, len(batches)):
                self._known.popitem(last=False)


def _version(batch: Batch) -> tuple[float | None, int]:
    """What changes whenever the counts of an ended batch do."""
    return batch.ended_at, batch.reopened
