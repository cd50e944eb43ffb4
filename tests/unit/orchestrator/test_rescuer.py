"""The rescuer: lost bells ring again, healthy backlogs are never doubled, dead workers' jobs come back."""

from collections import Counter
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Connection, Engine, update
from structlog.testing import capture_logs

from orchestrator import rescuer
from orchestrator.rescuer import Rescuer, missing_bells
from orchestrator.settings import Settings
from orchestrator.state import queries
from orchestrator.state.database import now
from orchestrator.state.messages import Bell, queue_names
from orchestrator.state.queries import Group, Life
from orchestrator.state.tables import jobs, workers
from orchestrator.state.transitions import BatchStatus, Stage
from tests.integration.seeding import NUMERICS, RECIPE, REVISION, Seeder

ENCODE = Group(Stage.ENCODE, RECIPE, "", REVISION)
SAMPLE = Group(Stage.SAMPLE, RECIPE, "256x256", REVISION)
OTHER = Group(Stage.SAMPLE, "other", "512x512", REVISION)
ENCODE_QUEUE, SAMPLE_QUEUE = (queue_names(stage, REVISION)[1] for stage in (Stage.ENCODE, Stage.SAMPLE))


def bell(group: Group) -> Bell:
    return Bell(group.stage, group.revision, group.recipe_id, group.canvas)


class TestMissingBells:
    def test_an_empty_queue_gets_a_bell_for_each_unit(self) -> None:
        assert missing_bells({ENCODE: 3}, {}) == [bell(ENCODE)] * 3

    def test_a_queue_with_enough_bells_gets_none(self) -> None:
        assert missing_bells({ENCODE: 3}, {ENCODE_QUEUE: 3}) == []
        assert missing_bells({ENCODE: 3}, {ENCODE_QUEUE: 300}) == []

    def test_only_what_lacks_is_rung(self) -> None:
        assert missing_bells({ENCODE: 3}, {ENCODE_QUEUE: 2}) == [bell(ENCODE)]

    def test_the_longest_waiting_group_is_called_first(self) -> None:
        assert missing_bells({SAMPLE: 1, OTHER: 1}, {SAMPLE_QUEUE: 1}) == [bell(SAMPLE)]

    def test_queues_are_looked_at_apart(self) -> None:
        assert missing_bells({ENCODE: 1, SAMPLE: 1}, {ENCODE_QUEUE: 5}) == [bell(SAMPLE)]

    @given(
        st.dictionaries(st.sampled_from([ENCODE, SAMPLE, OTHER]), st.integers(1, 100)),
        st.dictionaries(st.sampled_from([ENCODE_QUEUE, SAMPLE_QUEUE]), st.integers(0, 50)),
    )
    def test_a_queue_never_holds_more_bells_than_there_is_work(
        self, units: dict[Group, int], present: dict[str, int]
    ) -> None:
        rung = missing_bells(units, present)
        needed = Counter[str]()
        for group, count in units.items():
            needed[bell(group).queue] += count
        added = Counter(each.queue for each in rung)
        for queue in needed:
            assert added[queue] == max(0, needed[queue] - present.get(queue, 0))
        for group, count in units.items():
            assert rung.count(bell(group)) <= count


class Broker:
    """Tells the lengths of queues, as Redis does."""

    def __init__(self) -> None:
        self.lengths: dict[str, int] = {}
        self.asked: list[str] = []

    def pipeline(self, transaction: bool) -> Self:
        self.asked = []
        return self

    def llen(self, queue: str) -> None:
        self.asked.append(queue)

    def execute(self) -> list[int]:
        return [self.lengths.get(queue, 0) for queue in self.asked]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        pass


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> Broker:
    broker = Broker()
    monkeypatch.setattr("redis.Redis.from_url", lambda *_, **__: broker)
    monkeypatch.setattr(rescuer, "INTERVAL_S", 0.0)
    monkeypatch.setattr(rescuer, "PATIENCE_S", 1000.0)
    return broker


@pytest.fixture
def rung() -> list[Bell]:
    return []


SETTINGS = Settings(broker_url="redis://nowhere/0", unit_size=8, heartbeat_s=3, lease_s=1000, stage_deadline_s=2000)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Our own clock, moved by hand: the database's goes on by itself."""
    seconds = [50.0]
    monkeypatch.setattr(rescuer.time, "monotonic", lambda: seconds[0])
    return seconds


@pytest.fixture
def rescue(engine: Engine, broker: Broker, rung: list[Bell], clock: list[float]) -> Rescuer:
    return Rescuer(engine, SETTINGS, rung.extend)


def register(seed: Seeder, worker_id: str, *, silent_s: float = 0) -> None:
    row: dict[str, Any] = {
        "id": worker_id, "host": "host", "pid": 1, "stages": "encode", "device": "cpu", "revision": REVISION,
        "numerics": NUMERICS,
    }  # fmt: skip
    seed.do(queries.register_worker, row)
    if silent_s:
        hush(seed, worker_id, silent_s)


def hush(seed: Seeder, worker_id: str, silent_s: float) -> None:
    """By the database's clock, let a worker have been silent so long."""
    with seed.engine.begin() as connection:
        connection.execute(update(workers).where(workers.c.id == worker_id).values(seen_at=now() - silent_s))


def look(rescue: Rescuer, clock: list[float], *seconds: float) -> None:
    """Look now, and again after each of these times."""
    for pause_s in (0.0, *seconds):
        clock[0] += pause_s
        rescue.tick()


class DatabaseClock:
    """The database's clock as it is told, so much ahead of the real one from a leap on: the lid was closed, or it was
    set. What was written before it leapt keeps its time."""

    def __init__(self) -> None:
        self.ahead_s = 0.0
        self._written: dict[tuple[str, float], float] = {}
        self._look = queries.signs_of_life

    def _tell(self, name: str, at: float) -> float:
        return at + self._written.setdefault((name, at), self.ahead_s)

    def signs_of_life(self, connection: Connection) -> list[Life]:
        return [
            Life(
                life.id,
                self._tell(life.id, life.seen_at),
                None if life.stage_at is None else self._tell(f"stage of {life.id}", life.stage_at),
                life.at + self.ahead_s,
            )
            for life in self._look(connection)
        ]


@pytest.fixture
def database_clock(monkeypatch: pytest.MonkeyPatch) -> DatabaseClock:
    clock = DatabaseClock()
    monkeypatch.setattr(queries, "signs_of_life", clock.signs_of_life)
    return clock


def wait(seed: Seeder, seconds: float) -> None:
    """Let all that is queued have waited so long."""
    with seed.engine.begin() as connection:
        connection.execute(update(jobs).values(queued_at=now() - seconds))


class TestTicks:
    def test_a_bell_on_its_way_is_not_doubled(self, seed: Seeder, rescue: Rescuer, rung: list[Bell]) -> None:
        seed.queued(20)
        rescue.tick()
        assert rung == []

    def test_lost_bells_ring_again(self, seed: Seeder, rescue: Rescuer, rung: list[Bell], broker: Broker) -> None:
        seed.queued(20)
        wait(seed, 2000)
        broker.lengths[ENCODE_QUEUE] = 1
        rescue.tick()
        assert rung == [bell(ENCODE)] * 2

    def test_a_dead_workers_jobs_come_back_with_a_bell_each(
        self, seed: Seeder, rescue: Rescuer, rung: list[Bell], clock: list[float]
    ) -> None:
        # Each is a suspect now and claimed alone.
        register(seed, "dead", silent_s=6000)
        register(seed, "alive", silent_s=5)
        group = seed.queued(5)
        seed.claim(group, 3, "dead")
        seed.claim(group, 2, "alive")
        look(rescue, clock, 4.0)
        assert rung == [replace(bell(ENCODE), recovered=True)] * 3, "heard before all others"
        assert [row["state"] for row in seed.rows()] == ["queued"] * 3 + ["running"] * 2
        assert not seed.do(queries.beat, "dead", rss_bytes=0) and seed.do(queries.beat, "alive", rss_bytes=0)
        rung.clear()
        rescue.tick()
        assert rung == []

    def test_of_several_rescuers_one_says_that_a_worker_is_dead(
        self, seed: Seeder, rescue: Rescuer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        register(seed, "dead", silent_s=60)
        seed.claim(seed.queued(1), 1, "dead")
        monkeypatch.setattr(rescue, "_find_dead", lambda: ["dead"])  # as both find it at once
        with capture_logs() as said:
            rescue._take_back()
            rescue._take_back()
        assert [(each["worker"], each["jobs"]) for each in said] == [("dead", 1)]

    def test_a_job_that_kills_its_workers_is_set_aside(self, seed: Seeder, rescue: Rescuer, rung: list[Bell]) -> None:
        group = seed.queued(1)
        for life in range(3):
            register(seed, f"w{life}")
            assert len(seed.claim(group, 8, f"w{life}")) == 1
            seed.do(queries.end_worker, f"w{life}")
            rescue.tick()
        (row,) = seed.rows()
        assert (row["state"], row["code"], row["crashes"]) == ("failed", "poison", 3)
        assert "died 3 times" in row["message"] and len(rung) == 2

    def test_it_looks_once_a_second_however_often_it_is_called(
        self, seed: Seeder, rescue: Rescuer, rung: list[Bell], clock: list[float], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(rescuer, "INTERVAL_S", 1.0)
        rescue.tick()
        seed.queued(1)
        wait(seed, 2000)
        clock[0] += 0.9
        rescue.tick()
        assert rung == []
        clock[0] += 0.2
        rescue.tick()
        assert rung == [bell(ENCODE)]

    def test_paused_work_is_not_called(self, seed: Seeder, rescue: Rescuer, rung: list[Bell]) -> None:
        seed.queued(3)
        wait(seed, 2000)
        seed.do(queries.move_batch, "b", BatchStatus.PAUSED)
        rescue.tick()
        assert rung == []


class TestLeases:
    """A worker is dead that was silent for its lease while somebody looked; no clock alone kills."""

    @pytest.fixture
    def held(self, seed: Seeder) -> None:
        register(seed, "w")
        assert len(seed.claim(seed.queued(2), 2)) == 2

    def states(self, seed: Seeder) -> set[tuple[str, int]]:
        return {(row["state"], row["crashes"]) for row in seed.rows()}

    @pytest.mark.usefixtures("held")
    def test_a_closed_lid_or_a_clock_that_is_set_kills_nobody(
        self, seed: Seeder, rescue: Rescuer, clock: list[float], database_clock: DatabaseClock
    ) -> None:
        for seconds in (3_600.0, 86_400.0, -3_600.0, 1_001.0):  # more than lease and stage deadline
            look(rescue, clock, 1.0)
            database_clock.ahead_s += seconds
            look(rescue, clock, 1.0, 1.0)
            assert seed.do(queries.beat, "w", rss_bytes=0), "it is alive when it wakes"
            look(rescue, clock, 1.0)
        assert self.states(seed) == {("running", 0)}

    @pytest.mark.usefixtures("held")
    @pytest.mark.parametrize("leap_s", [0.0, 3_600.0, -3_600.0])
    def test_a_dead_worker_is_found_by_the_end_of_its_lease(
        self, seed: Seeder, rescue: Rescuer, clock: list[float], database_clock: DatabaseClock, leap_s: float
    ) -> None:
        look(rescue, clock, *[100.0] * 4)
        database_clock.ahead_s = leap_s
        look(rescue, clock, *[100.0] * 5, 95.0)
        assert self.states(seed) == {("running", 0)}
        look(rescue, clock, 5.0)
        assert self.states(seed) == {("queued", 1)}

    @pytest.mark.usefixtures("held")
    @pytest.mark.parametrize("silent_s", [600.0, 990.0])
    def test_a_rescuer_that_starts_meanwhile_finds_it_as_soon(
        self, seed: Seeder, rescue: Rescuer, clock: list[float], silent_s: float
    ) -> None:
        hush(seed, "w", silent_s)
        look(rescue, clock, 1000.0 - silent_s - 5.0)
        assert self.states(seed) == {("running", 0)}
        look(rescue, clock, 5.0)
        assert self.states(seed) == {("queued", 1)}

    @pytest.mark.usefixtures("held")
    def test_one_that_starts_as_a_machine_wakes_leaves_time_for_a_heartbeat(
        self, seed: Seeder, rescue: Rescuer, clock: list[float]
    ) -> None:
        hush(seed, "w", 3_600.0)
        look(rescue, clock, 1.0, 1.0, 1.0)
        assert seed.do(queries.beat, "w", rss_bytes=0)
        look(rescue, clock, 1.0, 300.0)
        assert self.states(seed) == {("running", 0)}

    @pytest.mark.usefixtures("held")
    def test_nobody_dies_of_a_database_that_was_away(
        self, seed: Seeder, rescue: Rescuer, clock: list[float], database_clock: DatabaseClock
    ) -> None:
        look(rescue, clock, 1.0)
        clock[0] += 1_200.0
        database_clock.ahead_s = 1_200.0
        look(rescue, clock)
        assert seed.do(queries.beat, "w", rss_bytes=0)
        look(rescue, clock, 1.0)
        assert self.states(seed) == {("running", 0)}

    @pytest.mark.usefixtures("held")
    def test_a_worker_that_hangs_in_a_stage_is_dead_though_its_heart_beats(
        self, seed: Seeder, rescue: Rescuer, clock: list[float]
    ) -> None:
        for _ in range(4):
            look(rescue, clock, 400.0)
            assert self.states(seed) == {("running", 0)} and seed.do(queries.beat, "w", rss_bytes=0)
        look(rescue, clock, 400.0)
        assert self.states(seed) == {("queued", 1)}
