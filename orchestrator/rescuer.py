"""The rescuer: takes back what dead and hanging workers held and rings the bells that were lost.

Owns leases, stage deadlines and missing bells. Refuses to guess from the broker what is running, SQL decides, and to
call a worker dead by the clock alone: it must have been silent while we looked. Any number may run.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import redis
import structlog
from redis.backoff import NoBackoff
from redis.retry import Retry
from sqlalchemy import Engine

from orchestrator.settings import Settings
from orchestrator.state import queries
from orchestrator.state.database import reading
from orchestrator.state.messages import Bell
from orchestrator.state.queries import Group
from orchestrator.vigil import Sign, Vigil

CRASHES_ALLOWED = 2
INTERVAL_S = 1.0
# Beside its interval, what a heartbeat may take: who has just begun to look leaves every worker the time for one.
BEAT_S = 0.5
# Younger rows have bells on their way; ringing for them would double a healthy backlog.
PATIENCE_S = 2.0
log = structlog.get_logger("rescuer")


class Rescuer:
    """`tick` does its work at most once a second, however often it is called."""

    def __init__(self, engine: Engine, settings: Settings, ring: Callable[[Sequence[Bell]], None]) -> None:
        assert settings.broker_url is not None
        self._engine, self._settings, self._ring = engine, settings, ring
        self._broker = redis.Redis.from_url(
            settings.broker_url, socket_timeout=5, socket_connect_timeout=5, retry=Retry(NoBackoff(), 1)
        )
        self._beats = Vigil(settings.lease_s, settings.heartbeat_s + BEAT_S)
        # What was done of a stage before our first look is unknown, and its worker's own watchdog looks too.
        self._stages = Vigil(settings.stage_deadline_s, settings.stage_deadline_s)
        self._next = 0.0

    def tick(self) -> None:
        """Take back and ring again."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + INTERVAL_S
        self._ring(self._take_back())
        self._ring(self._missing())

    def _take_back(self) -> list[Bell]:
        groups: list[Group] = []
        for worker_id in self._find_dead():
            with self._engine.begin() as connection:
                ended = queries.end_worker(connection, worker_id)
                taken = queries.take_back(connection, worker_id, crashes_allowed=CRASHES_ALLOWED)
            if ended or taken:  # else another rescuer was first, and says so
                log.warning("worker is dead or hangs, its jobs are taken back", worker=worker_id, jobs=len(taken))
            groups += taken
        return [Bell(g.stage, g.revision, g.recipe_id, g.canvas, recovered=True) for g in groups]

    def _find_dead(self) -> list[str]:
        """Workers that ended and hold jobs yet, whose lease ran out, or that hang while their heart beats."""
        now_s = time.monotonic()
        with reading(self._engine).connect() as connection:
            ended, lives = queries.ended_holders(connection), queries.signs_of_life(connection)
        beats = [Sign(life.id, life.seen_at, life.at - life.seen_at) for life in lives]
        stages = [
            Sign(life.id, life.stage_at, life.at - life.stage_at) for life in lives if life.stage_at is not None
        ]  # fmt: skip
        return list(dict.fromkeys([*ended, *self._beats.look(beats, now_s), *self._stages.look(stages, now_s)]))

    def _missing(self) -> list[Bell]:
        with reading(self._engine).connect() as connection:
            units = queries.units_queued(connection, older_than_s=PATIENCE_S, unit_size=self._settings.unit_size)
        if not units:
            return []
        queues = sorted({Bell(g.stage, g.revision, g.recipe_id, g.canvas).queue for g in units})
        with self._broker.pipeline(transaction=False) as pipeline:
            for queue in queues:
                pipeline.llen(queue)
            present = dict(zip(queues, pipeline.execute(), strict=True))
        bells = missing_bells(units, present)
        if bells:
            log.info("bells rung again", bells=len(bells))
        return bells


def missing_bells(units: Mapping[Group, int], present: Mapping[str, int]) -> list[Bell]:
    """The bells that the queues lack for the units SQL holds, for the groups that wait longest.

    `present` is the length of each queue. A queue that holds enough bells, whosever they are, gets none: it drains and
    is looked at again.
    """
    wanted = [
        bell
        for group, count in units.items()
        for bell in [Bell(group.stage, group.revision, group.recipe_id, group.canvas)] * count
    ]
    needed = Counter(bell.queue for bell in wanted)
    lacking = {queue: count - present.get(queue, 0) for queue, count in needed.items()}
    chosen = []
    for bell in wanted:
        if lacking[bell.queue] > 0:
            lacking[bell.queue] -= 1
            chosen.append(bell)
    return chosen
