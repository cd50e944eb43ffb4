"""One chaos run: a fleet at work, faults by a seeded schedule, the end awaited; then all is left for the checker.

Owns the schedule and the pace. The seed decides which faults come in which order; what they meet, chance decides.
"""

import random
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import Engine

from orchestrator.settings import Settings
from orchestrator.state import queries
from orchestrator.state.database import open_database, reading
from orchestrator.state.transitions import BatchStatus
from tests.chaos.faults import FAULTS, MEASURED, Struck, World
from tests.chaos.fleet import Fleet
from tests.chaos.record import START, Tail
from tests.chaos.servers import running_servers
from tests.chaos.work import submit

WAITED_LEASES = 2.0  # how many leases a death that only the heartbeat tells is waited for, before the next fault
READY_S = 90.0
SETTLING_S = 2.5  # a server that is back is found again within so long


@dataclass(frozen=True)
class Plan:
    """What a run consists of. `faults` says how often each strikes; `sleeps` how many seconds a unit's stages take."""

    database: str
    seed: int
    jobs: int
    faults: Mapping[str, int]
    members: tuple[str, ...]
    sleeps: Mapping[str, float]
    gap_s: tuple[float, float] = (1.0, 4.0)
    stall_s: float = 30.0
    end_s: float = 300.0
    batch_jobs: int = 400
    changed: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """What is left of a run: settings past the proxies, the record, what struck, and what was seen on the way."""

    plan: Plan
    settings: Settings
    record: Path
    batches: tuple[str, ...]
    struck: tuple[Struck, ...]
    wrong_sums: int
    unfinished: tuple[str, ...]
    statuses: Mapping[str, int]
    seconds: float


def drill(plan: Plan, folder: Path, say: Callable[[str], None], check: Callable[[Run], None]) -> None:
    """Run a plan below `folder`; `check` is called with what is left while the servers still answer."""
    began_s = time.monotonic()
    with running_servers(folder, plan.database) as servers:
        changed = {"checkpoint": "echo", "unit_size": 4, "threads": 1, **plan.changed}
        fleet = Fleet(servers.settings.model_copy(update=changed), folder, plan.members)
        for stage, seconds in plan.sleeps.items():
            (folder / f"sleep-{stage}").write_text(str(seconds))
        assert servers.direct.database_url is not None
        engine = open_database(servers.direct.database_url)
        for member in plan.members:
            fleet.start(member)
        try:
            world = World(fleet, servers, engine, random.Random(plan.seed), plan.stall_s)
            direct = servers.direct.model_copy(update={"results_uri": fleet.settings.results_uri})
            feed = Feed(engine, direct, plan)
            _await_first_job(fleet, world, feed)
            struck = strike_all(plan, world, feed, say)
            say(f"{len(struck)} faults have struck; waiting for {feed.submitted} jobs to end")
            unfinished = _await_end(plan, world, feed)
        finally:
            statuses = fleet.stop()
        check(
            Run(
                plan, direct, fleet.record, tuple(feed.batches), tuple(struck), feed.wrong_sums, unfinished,
                statuses, time.monotonic() - began_s,
            )
        )  # fmt: skip
        engine.dispose()


class Feed:
    """Batches, submitted so that work never runs out while faults strike; their counts are added up at every look."""

    def __init__(self, engine: Engine, settings: Settings, plan: Plan) -> None:
        self._engine, self._settings, self._plan = engine, settings, plan
        self.batches: dict[str, int] = {}
        self.wrong_sums = 0

    @property
    def submitted(self) -> int:
        return sum(self.batches.values())

    def fill(self, *, more: bool) -> None:
        """Submit until the plan's jobs are there; `more`: go on when they run out."""
        while self.submitted < self._plan.jobs or (more and self._left() < self._plan.batch_jobs // 4):
            count = min(self._plan.batch_jobs, max(self._plan.jobs - self.submitted, self._plan.batch_jobs // 4))
            root = "s3://kontext-local/shop"
            self.batches[submit(self._engine, self._settings, root, count, first=self.submitted)] = count

    def look(self) -> None:
        """Hold the counts of each batch against its size."""
        with reading(self._engine).connect() as connection:
            for batch, total in self.batches.items():
                counts = queries.count_by_state(connection, batch)
                states = (counts.pending, counts.queued, counts.running, counts.ended)
                self.wrong_sums += sum(states) != total or counts.total != total

    def open(self) -> tuple[str, ...]:
        """The batches that have not ended."""
        with reading(self._engine).connect() as connection:
            found = [queries.read_batch(connection, batch) for batch in self.batches]
        return tuple(batch.id for batch in found if batch is not None and batch.status != BatchStatus.COMPLETED)

    def _left(self) -> int:
        with reading(self._engine).connect() as connection:
            counts = [queries.count_by_state(connection, batch) for batch in self.batches]
        return sum(each.total - each.ended for each in counts)


def schedule(faults: Mapping[str, int], rng: random.Random) -> list[str]:
    """The faults' names, each as often as it shall strike, shuffled."""
    names = [name for name, times in faults.items() for _ in range(times)]
    rng.shuffle(names)
    return names


def strike_all(plan: Plan, world: World, feed: Feed, say: Callable[[str], None]) -> list[Struck]:
    """Let every fault of the plan strike, one after the other, the fleet at work."""
    struck: list[Struck] = []
    for name in schedule(plan.faults, world.rng):
        _pass_time(world, world.rng.uniform(*plan.gap_s))
        feed.fill(more=True)
        feed.look()
        if name in MEASURED:
            lasting_s = max((each.until_s + SETTLING_S for each in struck), default=0.0)
            _pass_time(world, lasting_s - time.monotonic())
        done = FAULTS[name](world)
        if done is None:
            say(f"{name}: found nothing to strike")
            continue
        struck.append(done)
        say(f"{len(struck):3} {done.name}")
        if done.seen_by:
            bar_s = {"supervisor": 6.0, "heartbeat": WAITED_LEASES * world.fleet.settings.lease_s}[done.seen_by]
            _await_running_again(world, done, bar_s)
    return struck


def _await_running_again(world: World, done: Struck, patience_s: float) -> None:
    """Give the jobs of a dead worker time to run again before the next fault, so that the time means something."""
    tail, missing = Tail(world.fleet.record), set(done.jobs)
    deadline_s = time.monotonic() + patience_s
    while missing and time.monotonic() < deadline_s:
        for event in tail.read():
            if event.kind == START and event.at_s > done.at_s:
                missing -= {job for job, _ in event.jobs}
        _pass_time(world, 0.1)


def _pass_time(world: World, seconds: float) -> None:
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        world.catch_up()
        time.sleep(0.05)


def _await_first_job(fleet: Fleet, world: World, feed: Feed) -> None:
    feed.fill(more=False)
    deadline_s = time.monotonic() + READY_S
    while len(fleet.at()) < 2:
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"the fleet does not begin to work; its logs are in {fleet.folder}")
        time.sleep(0.1)


def _await_end(plan: Plan, world: World, feed: Feed) -> tuple[str, ...]:
    """Wait until every batch is completed; gives those that are not, in time."""
    for stage in plan.sleeps:
        (world.fleet.folder / f"sleep-{stage}").write_text("0")
    deadline_s = time.monotonic() + plan.end_s
    while (unfinished := feed.open()) and time.monotonic() < deadline_s:
        feed.look()
        _pass_time(world, 0.5)
    while world.later:
        _pass_time(world, 0.5)
    return unfinished


def summary(struck: Sequence[Struck]) -> str:
    """How often each fault struck, for people."""
    return ", ".join(f"{times} × {name}" for name, times in Counter(each.name for each in struck).most_common())
