"""The heartbeat: it renews the lease, and hands back what a database that went away counts as ours."""

import time
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Engine

from orchestrator.state import queries
from tests.integration.seeding import NUMERICS, REVISION, Seeder
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


def test_jobs_that_a_returned_database_counts_as_ours_are_handed_back_once_we_hold_none(
    seed: Seeder, shift: Shift, beating: Heartbeat
) -> None:
    group = seed.queued(2)
    with shift.answering():
        seed.claim(group, worker="w")
        shift.doubtful = True  # its connection was lost; the commit that ended these jobs may be lost too
        time.sleep(0.3)
        assert {row["state"] for row in seed.rows()} == {"running"}, "they may be what we work on"
    deadline_s = time.monotonic() + 5
    while shift.doubtful:
        assert time.monotonic() < deadline_s
        time.sleep(0.02)
    assert {(row["state"], row["attempt"], row["crashes"]) for row in seed.rows()} == {("queued", 1, 0)}


def test_a_database_without_doubt_keeps_what_is_claimed(seed: Seeder, beating: Heartbeat) -> None:
    seed.claim(seed.queued(2), worker="w")
    time.sleep(0.2)
    assert {row["state"] for row in seed.rows()} == {"running"}


def test_a_worker_declared_dead_is_told(seed: Seeder, beating: Heartbeat, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[bool] = []
    monkeypatch.setattr(heartbeat_module, "stop_process", lambda: told.append(beating.dead))
    seed.do(queries.end_worker, "w")
    deadline_s = time.monotonic() + 5
    while not told:
        assert time.monotonic() < deadline_s
        time.sleep(0.02)
    assert told == [True]
