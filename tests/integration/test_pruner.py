"""What is forgotten after a month, and what is not."""

import pytest
from sqlalchemy import select, update

from orchestrator import pruner
from orchestrator.pruner import Pruner
from orchestrator.state import queries
from orchestrator.state.database import now
from orchestrator.state.tables import workers
from tests.integration.seeding import NUMERICS, REVISION, Seeder

DAY_S = 86_400


def add_worker(seed: Seeder, worker_id: str) -> None:
    row = {"id": worker_id, "host": "h", "pid": 1, "stages": "encode", "device": "cpu", "revision": REVISION}
    seed.do(queries.register_worker, row | {"numerics": NUMERICS, "rss_bytes": 0})


def end(seed: Seeder, worker_id: str, days_ago: float) -> None:
    ended = update(workers).where(workers.c.id == worker_id).values(ended_at=now() - days_ago * DAY_S)
    seed.do(lambda connection: connection.execute(ended))


def names(seed: Seeder) -> set[str]:
    return set(seed.do(lambda connection: connection.execute(select(workers.c.id)).scalars().all()))


def test_a_worker_that_ended_is_forgotten_after_a_month_unless_it_holds_jobs(seed: Seeder) -> None:
    group = seed.queued(1)
    for worker_id in ("old", "holder", "young", "alive"):
        add_worker(seed, worker_id)
    assert len(seed.claim(group, worker="holder")) == 1
    for worker_id, days_ago in (("old", 31), ("holder", 31), ("young", 29)):
        end(seed, worker_id, days_ago)
    prune = Pruner(seed.engine)
    prune.tick()
    assert names(seed) == {"holder", "young", "alive"}
    assert seed.do(queries.ended_holders) == ["holder"], "its job is not lost"
    add_worker(seed, "older")
    end(seed, "older", 400)
    prune.tick()
    assert "older" in names(seed), "once an hour"


def test_many_rows_go_a_part_at_a_time(seed: Seeder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pruner, "ROWS", 2)
    for number in range(3):
        add_worker(seed, f"w{number}")
        end(seed, f"w{number}", 40)
    prune = Pruner(seed.engine)
    prune.tick()
    assert len(names(seed)) == 1
    prune.tick()
    assert names(seed) == set()
