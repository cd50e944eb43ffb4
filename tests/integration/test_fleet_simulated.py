"""Dispatcher, rescuer and workers together on SQL: fairness, priority, lost bells, deaths, several of each."""

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from orchestrator import dispatcher as dispatcher_room
from orchestrator.dispatcher import Dispatcher, rank
from orchestrator.settings import Settings
from orchestrator.state import queries
from orchestrator.state.bulk import insert_jobs
from orchestrator.state.database import now
from orchestrator.state.tables import batches, jobs, workers
from orchestrator.state.transitions import BatchStatus, Stage
from tests.integration.seeding import NUMERICS, REVISION, Seeder, job_row
from tests.integration.simulation import Fleet
from tests.waiting import PATIENCE_S, wait_until

SETTINGS = Settings(broker_url="redis://nowhere/0", window_jobs=256, unit_size=8)


def add(seed: Seeder, name: str, count: int, **given: Any) -> None:
    """A batch of so many pending jobs with a recipe of its own."""
    seed.batch(name, recipe=name, **given)
    with seed.engine.begin() as connection:
        for first in range(1, count + 1, 10_000):
            last = min(first + 10_000, count + 1)
            assert insert_jobs(connection, [job_row(name, line, name) for line in range(first, last)]) == []
        connection.execute(update(batches).where(batches.c.id == name).values(total=count))


def work_until_ended(fleet: Fleet, seed: Seeder, name: str) -> int:
    """Ticks and units of work by turns; gives how many jobs of whatever batch went through all stages meanwhile."""
    before = sum(fleet.served.values())
    while seed.do(queries.unfinished, name):
        fleet.control()
        for _ in range(4):
            fleet.work()
    return (sum(fleet.served.values()) - before) // len(Stage)


def test_a_small_batch_is_not_kept_waiting_by_a_large_one(
    seed: Seeder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fleet = Fleet(seed.engine, SETTINGS, monkeypatch)
    add(seed, "alone", 100, results_uri=str(tmp_path / "alone"))
    alone = work_until_ended(fleet, seed, "alone")
    assert alone == 100
    add(seed, "large", 20_000, results_uri=str(tmp_path / "large"))
    while fleet.served["large"] < 300:
        fleet.control()
        fleet.work()
    add(seed, "small", 100, results_uri=str(tmp_path / "small"))
    beside = work_until_ended(fleet, seed, "small")
    assert beside <= 2.2 * alone + SETTINGS.window_jobs


class TestPriority:
    def test_an_urgent_batch_goes_before_what_is_queued_already(
        self, seed: Seeder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        fleet = Fleet(seed.engine, SETTINGS, monkeypatch)
        add(seed, "calm", 2_000, results_uri=str(tmp_path / "calm"))
        fleet.control()
        for _ in range(30):
            fleet.work()
        add(seed, "urgent", 100, priority=1, results_uri=str(tmp_path / "urgent"))
        assert work_until_ended(fleet, seed, "urgent") <= 1.5 * 100

    def test_a_calm_batch_does_not_starve(self, seed: Seeder) -> None:
        add(seed, "urgent", 400, priority=2)
        add(seed, "calm", 400)
        dispatcher = Dispatcher(seed.engine, SETTINGS, lambda bells: None)
        dispatcher.tick()
        assert seed.do(queries.in_flight) == {"urgent": 256}
        with seed.engine.begin() as connection:
            calm = batches.c.id == "calm"
            connection.execute(update(batches).where(calm).values(started_at=now() - 3 * queries.AGING_S))
            connection.execute(update(jobs).where(jobs.c.state == "queued").values(state="succeeded"))
        dispatcher.tick()
        assert seed.do(queries.in_flight) == {"calm": 256}  # it has waited for three points, the other for none
        waited = {batch.id: rank(batch, seed.do(queries.read_clock)) for batch in seed.do(queries.open_batches)}
        assert waited == {"urgent": 2, "calm": 0}


class TestWindow:
    def test_a_dispatcher_that_looked_before_another_filled_the_window_adds_nothing(
        self, seed: Seeder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        add(seed, "a", 1_000)
        one, two = (Dispatcher(seed.engine, SETTINGS, lambda bells: None) for _ in range(2))
        share = dispatcher_room.share_window

        def overtaken(*given: Any) -> Any:
            monkeypatch.undo()
            assert two.tick() == SETTINGS.window_jobs
            return share(*given)

        monkeypatch.setattr(dispatcher_room, "share_window", overtaken)
        assert one.tick() == 0
        assert seed.do(queries.in_flight) == {"a": SETTINGS.window_jobs}

    def test_dispatchers_that_look_at_once_do_not_overfill_it(self, seed: Seeder) -> None:
        for name in ("a", "b"):
            add(seed, name, 1_000)
        together = threading.Barrier(4)

        def tick(_: int) -> int:
            dispatcher = Dispatcher(seed.engine, SETTINGS, lambda bells: None)
            together.wait(PATIENCE_S)
            return dispatcher.tick()

        with ThreadPoolExecutor(4) as pool:
            queued = sum(pool.map(tick, range(4)))
        assert queued == sum(seed.do(queries.in_flight).values()) == SETTINGS.window_jobs


@pytest.mark.parametrize("case", range(3))
def test_every_job_ends_whatever_bells_are_lost_and_whoever_dies(
    seed: Seeder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, case: int
) -> None:
    for name in ("a", "b"):
        add(seed, name, 40, results_uri=str(tmp_path / name))
    guilty = seed.rows("a")[17]["id"]
    fleet = Fleet(
        seed.engine, SETTINGS.model_copy(update={"window_jobs": 32}), monkeypatch, seed=case, dispatchers=2, lost=0.4,
        doubled=0.2, deadly=frozenset({guilty}),
    )  # fmt: skip
    for _ in range(2_000):
        fleet.control()
        for _ in range(fleet.chance.randrange(6)):
            fleet.work()
        if not seed.do(queries.open_batches):
            break
    fleet.control()
    rows = seed.rows("a") + seed.rows("b")
    assert {row["id"]: row["code"] for row in rows if row["state"] != "succeeded"} == {guilty: "poison"}
    assert all(row["failures"] == 0 for row in rows)
    assert {row["id"] for row in rows if row["crashes"] > 1} == {guilty} and fleet.deaths == 3
    assert {seed.do(queries.read_batch, name).status for name in ("a", "b")} == {BatchStatus.COMPLETED}


def test_a_healthy_backlog_is_not_doubled(seed: Seeder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    add(seed, "a", 500, results_uri=str(tmp_path / "a"))
    fleet = Fleet(seed.engine, SETTINGS, monkeypatch, dispatchers=2)
    work_until_ended(fleet, seed, "a")
    units = -(-500 // SETTINGS.unit_size)
    assert fleet.queues.rung <= units * len(Stage) * 1.3


@pytest.mark.parametrize("engine", ["postgresql"], indirect=True)
def test_dispatchers_and_rescuers_run_side_by_side(
    seed: Seeder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # Threads of their own on real connections: two of each, workers that die, a retry and a cancel in between.
    for name in ("a", "b", "c"):
        add(seed, name, 200, results_uri=str(tmp_path / name))
    fleet = Fleet(seed.engine, SETTINGS, monkeypatch, dispatchers=2)
    over = threading.Event()

    def serve(number: int) -> None:
        while not over.is_set():
            fleet.dispatchers[number].tick()
            fleet.rescuers[number].tick()
            time.sleep(0.005)

    def work(number: int) -> None:
        chance, life = random.Random(number), 0
        while not over.is_set():
            worker_id = f"{number}-{life}"
            if not seed.do(queries.beat, worker_id, rss_bytes=0):
                row: dict[str, Any] = {
                    "id": worker_id, "host": "h", "pid": 1, "stages": "encode", "device": "cpu", "revision": REVISION,
                    "numerics": NUMERICS,
                }  # fmt: skip
                seed.do(queries.register_worker, row)
            given = {"revision": REVISION, "numerics": NUMERICS, "worker_id": worker_id}
            unit = seed.do(queries.claim, Stage.ENCODE, **given, limit=8)
            if unit and chance.random() < 0.1:
                seed.do(queries.end_worker, worker_id)
                life += 1
            elif unit:
                ends = [queries.Finished(j.id, j.attempt, 0.0, f"/r/{j.id}-{j.attempt}", "s", reused=1) for j in unit]
                seed.do(queries.succeed, Stage.ENCODE, ends)
            else:
                time.sleep(0.01)

    with ThreadPoolExecutor(4) as pool:
        parts = [pool.submit(serve, number) for number in range(2)] + [pool.submit(work, number) for number in range(2)]
        try:
            wait_until(lambda: not seed.do(queries.open_batches), "all batches end", 300, 0.05)
        finally:
            over.set()
        for part in parts:
            part.result()
    for name in ("a", "b", "c"):
        counts = seed.do(queries.count_by_state, name)
        assert (counts.total, counts.ended) == (200, 200)
        assert {row["code"] for row in seed.rows(name) if row["state"] == "failed"} <= {"poison"}
        assert all(row["attempt"] >= row["crashes"] for row in seed.rows(name))
    with seed.engine.begin() as connection:
        dead = connection.execute(workers.select().where(workers.c.ended_at.is_not(None))).all()
    assert dead, "no worker died: nothing was tried"
