"""The rescuer: lost bells ring again, healthy backlogs are never doubled, dead workers' jobs come back."""

from collections import Counter
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine, update
from structlog.testing import capture_logs

from orchestrator import rescuer
from orchestrator.rescuer import Rescuer, missing_bells
from orchestrator.settings import Settings
from orchestrator.state import queries
from orchestrator.state.database import now
from orchestrator.state.messages import Bell, queue_names
from orchestrator.state.queries import Group
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


@pytest.fixture
def rescue(engine: Engine, broker: Broker, rung: list[Bell]) -> Rescuer:
    settings = Settings(broker_url="redis://nowhere/0", unit_size=8, lease_s=1000)
    return Rescuer(engine, settings, rung.extend)


def register(seed: Seeder, worker_id: str, *, silent_s: float = 0) -> None:
    row: dict[str, Any] = {
        "id": worker_id, "host": "host", "pid": 1, "stages": "encode", "device": "cpu", "revision": REVISION,
        "numerics": NUMERICS,
    }  # fmt: skip
    seed.do(queries.register_worker, row)
    with seed.engine.begin() as connection:
        connection.execute(update(workers).where(workers.c.id == worker_id).values(seen_at=now() - silent_s))


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
        self, seed: Seeder, rescue: Rescuer, rung: list[Bell]
    ) -> None:
        # Each is a suspect now and claimed alone.
        register(seed, "dead", silent_s=6000)
        register(seed, "alive", silent_s=5)
        group = seed.queued(5)
        seed.claim(group, 3, "dead")
        seed.claim(group, 2, "alive")
        rescue.tick()
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
        monkeypatch.setattr(queries, "dead_workers", lambda *_, **__: ["dead"])  # as both find it at once
        with capture_logs() as said:
            rescue._take_back()
            rescue._take_back()
        assert [(each["worker"], each["jobs"]) for each in said] == [("dead", 1)]

    def test_a_job_that_kills_its_workers_is_set_aside(self, seed: Seeder, rescue: Rescuer, rung: list[Bell]) -> None:
        group = seed.queued(1)
        for life in range(3):
            register(seed, f"w{life}", silent_s=6000)
            assert len(seed.claim(group, 8, f"w{life}")) == 1
            rescue.tick()
        (row,) = seed.rows()
        assert (row["state"], row["code"], row["crashes"]) == ("failed", "poison", 3)
        assert "died 3 times" in row["message"] and len(rung) == 2

    def test_it_looks_once_a_second_however_often_it_is_called(
        self, seed: Seeder, rescue: Rescuer, rung: list[Bell], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(rescuer, "INTERVAL_S", 1.0)
        clock = [1000.0]
        monkeypatch.setattr(rescuer.time, "monotonic", lambda: clock[0])
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
