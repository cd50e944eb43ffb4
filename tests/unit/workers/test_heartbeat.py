"""The heartbeat: it renews the lease, and hands back what a database that went away counts as ours."""

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, select

from orchestrator.state import queries
from orchestrator.state.tables import workers
from tests.integration.seeding import NUMERICS, REVISION, Seeder
from tests.waiting import wait_until
from workers import heartbeat as heartbeat_module
from workers.heartbeat import Heartbeat
from workers.shift import Shift

WORKER: dict[str, Any] = {
    "id": "w", "host": "host", "pid": 1, "stages": "encode", "device": "cpu", "revision": REVISION,
    "numerics": NUMERICS,
}  # fmt: skip


@pytest.fixture
def shift() -> Shift:
    return Shift()


@pytest.fixture
def beating(engine: Engine, seed: Seeder, shift: Shift) -> Iterator[Heartbeat]:
    seed.do(queries.register_worker, WORKER)
    heartbeat = Heartbeat(engine, "w", 0.05, shift)
    heartbeat.start()
    yield heartbeat
    heartbeat.stop()


def let_beat(seed: Seeder, times: int = 3) -> None:
    """Wait for so many beats from now on."""
    for _ in range(times):
        before = seed.do(seen_at)
        wait_until(lambda before=before: seed.do(seen_at) > before, "the heart beats")


def seen_at(connection: Connection) -> float:
    return float(connection.execute(select(workers.c.seen_at)).scalar_one())


def test_jobs_that_a_returned_database_counts_as_ours_are_handed_back_once_we_hold_none(
    seed: Seeder, shift: Shift, beating: Heartbeat
) -> None:
    group = seed.queued(2)
    with shift.answering():
        seed.claim(group, worker="w")
        shift.doubtful = True  # its connection was lost; the commit that ended these jobs may be lost too
        let_beat(seed)
        assert {row["state"] for row in seed.rows()} == {"running"}, "they may be what we work on"
    wait_until(lambda: {row["state"] for row in seed.rows()} == {"queued"}, "they are handed back")
    assert not shift.doubtful
    assert {(row["state"], row["attempt"], row["crashes"]) for row in seed.rows()} == {("queued", 1, 0)}


def test_a_database_without_doubt_keeps_what_is_claimed(seed: Seeder, beating: Heartbeat) -> None:
    seed.claim(seed.queued(2), worker="w")
    let_beat(seed)
    assert {row["state"] for row in seed.rows()} == {"running"}


def test_a_worker_declared_dead_is_told(seed: Seeder, beating: Heartbeat, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[bool] = []
    monkeypatch.setattr(heartbeat_module, "stop_process", lambda: told.append(beating.dead))
    seed.do(queries.end_worker, "w")
    wait_until(lambda: told, "it is told")
    assert told == [True]
