"""A fleet without a model: the real dispatcher and rescuer, queues in memory, workers that claim in SQL and do nothing.

Bells can be lost and doubled, workers can die at work. Time is counted in units of work, so that a measure of fairness
does not depend on the machine.
"""

import random
from collections import Counter, deque
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import pytest
from sqlalchemy import Engine

from orchestrator import rescuer
from orchestrator.dispatcher import Dispatcher
from orchestrator.rescuer import Rescuer
from orchestrator.settings import Settings
from orchestrator.state import queries
from orchestrator.state.messages import Bell, queue_names
from orchestrator.state.queries import Advanced, Claimed, Finished
from orchestrator.state.transitions import Stage
from tests.integration.seeding import NUMERICS, REVISION

CANVAS = "256x256"


class Queues:
    """Redis, as far as ringing and the rescuer's pipeline of LLEN go."""

    def __init__(self, chance: random.Random, *, lost: float = 0.0, doubled: float = 0.0) -> None:
        self.waiting: dict[str, deque[Bell]] = {}
        self.rung = 0
        self._chance, self._lost, self._doubled = chance, lost, doubled
        self._asked: list[str] = []

    def ring(self, bells: Sequence[Bell]) -> None:
        self.rung += len(bells)
        for bell in bells:
            fate = self._chance.random()
            times = 0 if fate < self._lost else 2 if fate > 1 - self._doubled else 1
            self.waiting.setdefault(bell.queue, deque()).extend([bell] * times)

    def hear(self, stages: Sequence[Stage]) -> Bell | None:
        """The next bell as workers listen: for recovered jobs first, then of the last stage first."""
        recovered, usual = zip(*(queue_names(stage, REVISION) for stage in reversed(stages)), strict=True)
        for name in (*recovered, *usual):
            queue = self.waiting.get(name)
            if queue:
                return queue.popleft()
        return None

    def pipeline(self, transaction: bool) -> Self:
        self._asked = []
        return self

    def llen(self, queue: str) -> None:
        self._asked.append(queue)

    def execute(self) -> list[int]:
        return [len(self.waiting.get(queue, ())) for queue in self._asked]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        pass


class Fleet:
    """Dispatchers, rescuers and workers of all stages on one database; `chance` decides who works and who dies."""

    def __init__(
        self,
        engine: Engine,
        settings: Settings,
        patch: pytest.MonkeyPatch,
        *,
        seed: int = 0,
        dispatchers: int = 1,
        lost: float = 0.0,
        doubled: float = 0.0,
        deadly: frozenset[int] = frozenset(),
    ) -> None:
        self.engine, self.settings, self.chance, self.deadly = engine, settings, random.Random(seed), deadly
        self.queues = Queues(self.chance, lost=lost, doubled=doubled)
        patch.setattr("redis.Redis.from_url", lambda *_, **__: self.queues)
        patch.setattr(rescuer, "INTERVAL_S", 0.0)
        patch.setattr(rescuer, "PATIENCE_S", 0.0)
        self.dispatchers = [Dispatcher(engine, settings, self.queues.ring) for _ in range(dispatchers)]
        self.rescuers = [Rescuer(engine, settings, self.queues.ring) for _ in range(dispatchers)]
        self.served: Counter[str] = Counter()
        """Jobs that went through a stage, by batch."""
        self.deaths = 0
        self._lives = 0

    def control(self) -> None:
        """One tick of every dispatcher and rescuer."""
        for dispatcher, rescue in zip(self.dispatchers, self.rescuers, strict=True):
            dispatcher.tick()
            dispatcher.wait()
            rescue.tick()

    def work(self) -> bool:
        """Answer one bell: claim a unit and do its stage, or die with it. False when no bell rings."""
        bell = self.queues.hear(list(Stage))
        if bell is None:
            return False
        given = {"revision": REVISION, "numerics": NUMERICS, "worker_id": self._register()}
        with self.engine.begin() as connection:
            unit = queries.claim(connection, bell.stage, **given, limit=self.settings.unit_size)
        if any(job.id in self.deadly for job in unit):
            self.deaths += 1
            with self.engine.begin() as connection:
                queries.end_worker(connection, str(given["worker_id"]))
            self._lives += 1
        elif unit:
            self._hand_on(bell, unit)
        return True

    def _hand_on(self, bell: Bell, unit: Sequence[Claimed]) -> None:
        self.served.update(job.batch_id for job in unit)
        with self.engine.begin() as connection:
            if bell.stage.following is None:
                ends = [Finished(job.id, job.attempt, 0.0, f"/r/{job.id}-{job.attempt}", "sha") for job in unit]
                queries.succeed(connection, bell.stage, ends)
                return
            queries.advance(connection, bell.stage, [Advanced(job.id, job.attempt, 0.0, CANVAS) for job in unit])
        self.queues.ring([Bell(bell.stage.following, REVISION, unit[0].recipe_id, CANVAS)])

    def _register(self) -> str:
        worker_id = f"w{self._lives}"
        row: dict[str, Any] = {
            "id": worker_id, "host": "host", "pid": 1, "stages": "encode,sample,decode", "device": "cpu",
            "revision": REVISION, "numerics": NUMERICS,
        }  # fmt: skip
        with self.engine.begin() as connection:
            if not queries.beat(connection, worker_id, rss_bytes=0):
                queries.register_worker(connection, row)
        return worker_id
