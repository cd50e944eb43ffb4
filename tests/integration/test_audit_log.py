"""Every change is a line of the audit log, and neither is without the other: they are one transaction."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from fastapi.routing import iter_route_contexts
from sqlalchemy import Engine, select, update
from sqlalchemy.exc import OperationalError

from orchestrator.access.audit import AuditLine
from orchestrator.access.keys import create_key
from orchestrator.access.scopes import Scope
from orchestrator.api.access import SAFE
from orchestrator.state import queries
from orchestrator.state.database import reading
from orchestrator.state.tables import jobs, metadata
from tests.integration.api_client import Api, open_api
from tests.integration.night import make_checkpoint
from tests.integration.seeding import Seeder

SCHEDULE = {
    "name": "nightly",
    "cron": "0 2 * * *",
    "catalogue": "s3://shop/rows.csv",
    "options": {"preset": "flat-lay"},
}
HOOK = {"url": "https://shop.example.com/hook", "events": ["batch.paused"]}
ITEMS = {"preset": "flat-lay", "items": [{"image": "s3://shop/1.jpg"}, {"image": "s3://shop/2.jpg"}]}
KILLED = """
import os, signal, sys
from orchestrator import control
from orchestrator.access.audit import AuditLine
from orchestrator.state import queries
from orchestrator.state.database import open_database

record = queries.record_audit
def record_and_die(*given, **named):
    record(*given, **named)
    os.kill(os.getpid(), signal.SIGKILL)

queries.record_audit = record_and_die
control.pause(open_database(sys.argv[1]), "running", note=AuditLine("key:1", "batch.pause"))
"""


@dataclass(frozen=True)
class Ask:
    """A request that changes something, and the line that it leaves."""

    method: str
    route: str
    action: str
    given: dict[str, Any] = field(default_factory=dict)
    path: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.method} {self.route} {self.action}"


def of(batch_id: str, **more: Any) -> dict[str, Any]:
    return {"batch_id": batch_id, **more}


ASKED = [
    Ask("POST", "/v1/batches", "batch.create", {"json": ITEMS}),
    Ask("PATCH", "/v1/batches/{batch_id}", "batch.priority", {"json": {"priority": 5}}, of("running")),
    Ask("POST", "/v1/batches/{batch_id}/pause", "batch.pause", path=of("running")),
    Ask("POST", "/v1/batches/{batch_id}/resume", "batch.resume", path=of("paused")),
    Ask("POST", "/v1/batches/{batch_id}/cancel", "batch.cancel", path=of("running")),
    Ask("POST", "/v1/batches/{batch_id}/retry", "batch.retry", path=of("ended")),
    Ask("DELETE", "/v1/batches/{batch_id}", "batch.delete", path=of("ended")),
    Ask("POST", "/v1/batches/{batch_id}/decisions", "batch.decide", {"json": {"ids": [1], "decision": "approved"}},
        of("ended")),
    Ask("POST", "/v1/jobs/{job_id}/decision", "job.decide", {"json": {"decision": "rejected"}}, {"job_id": 1}),
    Ask("POST", "/v1/jobs/{job_id}/regenerate", "job.regenerate", path={"job_id": 1}),
    Ask("POST", "/v1/keys", "key.create", {"json": {"name": "shop", "scope": "read"}}),
    Ask("DELETE", "/v1/keys/{key_id}", "key.revoke"),
    Ask("POST", "/v1/schedules", "schedule.create", {"json": {**SCHEDULE, "name": "other"}}),
    Ask("PATCH", "/v1/schedules/{name}", "schedule.change", {"json": {"cron": "0 3 * * *", "paused": True}}),
    Ask("DELETE", "/v1/schedules/{name}", "schedule.remove"),
    Ask("POST", "/v1/schedules/{name}/fire", "schedule.fire"),
    Ask("POST", "/v1/webhooks", "webhook.create", {"json": HOOK}),
    Ask("DELETE", "/v1/webhooks/{webhook_id}", "webhook.remove"),
    Ask("POST", "/v1/webhooks/{webhook_id}/rotate-secret", "webhook.rotate"),
    Ask("POST", "/v1/webhooks/{webhook_id}/test", "webhook.test"),
    Ask("POST", "/v1/webhooks/{webhook_id}/deliveries/{delivery_id}/replay", "webhook.replay"),
    Ask("POST", "/batches/{batch_id}/pause", "batch.pause", path=of("running")),
    Ask("POST", "/batches/{batch_id}/resume", "batch.resume", path=of("paused")),
    Ask("POST", "/batches/{batch_id}/cancel", "batch.cancel", path=of("running")),
    Ask("POST", "/batches/{batch_id}/retry", "batch.retry", {"data": {"code": "unavailable"}}, of("ended")),
    Ask("POST", "/batches/{batch_id}/bulk", "jobs.approve", {"data": {"do": "approve", "all": "1"}}, of("ended")),
    Ask("POST", "/batches/{batch_id}/bulk", "jobs.retry", {"data": {"do": "retry", "all": "1"}}, of("ended")),
    Ask("POST", "/batches/{batch_id}/bulk", "jobs.regenerate", {"data": {"do": "regenerate", "job": 1}}, of("ended")),
    Ask("POST", "/jobs/{job_id}/approve", "job.approved", path={"job_id": 1}),
    Ask("POST", "/jobs/{job_id}/reject", "job.rejected", path={"job_id": 1}),
    Ask("POST", "/jobs/{job_id}/regenerate", "job.regenerate", path={"job_id": 1}),
    Ask("POST", "/jobs/{job_id}/retry", "job.retry", path={"job_id": 2}),
    Ask("POST", "/keys", "key.create", {"data": {"name": "shop", "scope": "read"}}),
    Ask("POST", "/keys/{key_id}/revoke", "key.revoke"),
    Ask("POST", "/schedules", "schedule.create", {"data": {**SCHEDULE, "name": "other", "options": ""}}),
    Ask("POST", "/schedules/{name}/fire", "schedule.fire"),
    Ask("POST", "/schedules/{name}/pause", "schedule.pause"),
    Ask("POST", "/schedules/{name}/resume", "schedule.resume"),
    Ask("POST", "/schedules/{name}/remove", "schedule.remove"),
]  # fmt: skip
# They change nothing in SQL: sessions are cookies, what is sent goes to the store under its digest.
UNNOTED = {
    ("POST", "/sign-in"), ("POST", "/sign-out"), ("POST", "/new"), ("POST", "/theme"), ("POST", "/v1/uploads"),
    ("PUT", "/v1/uploads/{name}"),
}  # fmt: skip
# Tested where drafts are.
DRAFTED = {("POST", "/new/{draft_id}")}


class Shop:
    """A shop with a batch in each standing, a schedule, a webhook with a delivery, and a key."""

    def __init__(self, api: Api) -> None:
        self.api, seed = api, Seeder(api.engine)
        ended = seed.batch("ended", jobs=2)
        pictured = {"state": "succeeded", "result": "/results/1.png", "sha256": "0" * 64, "ended_at": 1.0}
        seed.do(lambda c: c.execute(update(jobs).where(jobs.c.id == 1).values(**pictured)))
        failed = {"state": "failed", "code": "unavailable", "ended_at": 1.0}
        seed.do(lambda c: c.execute(update(jobs).where(jobs.c.id == 2).values(**failed)))
        assert seed.do(queries.close_batch, "ended", reopened=ended.reopened)
        seed.batch("running", jobs=2)
        seed.batch("paused", jobs=2, status="paused")
        api.post("/v1/schedules", 201, json=SCHEDULE)
        hook = api.post("/v1/webhooks", 201, json=HOOK)["id"]
        self.known = {
            "name": "nightly", "webhook_id": hook, "key_id": create_key(api.engine, "old", Scope.READ).key.id,
            "delivery_id": api.post(f"/v1/webhooks/{hook}/test", 202)["id"],
        }  # fmt: skip
        self.before = self.lines()

    def ask(self, asked: Ask) -> int:
        path = asked.route.format(**self.known | asked.path)
        return self.api.client.request(asked.method, path, **asked.given).status_code

    def lines(self) -> int:
        with reading(self.api.engine).connect() as connection:
            return len(queries.list_audit(connection, limit=1000))

    def snapshot(self) -> dict[str, list[Any]]:
        """Every row of every table, but for what a request leaves that changes nothing."""
        with reading(self.api.engine).connect() as connection:
            return {
                name: sorted(
                    repr([row._mapping[column] for column in table.c if column.name != "last_used_at"])
                    for row in connection.execute(select(table))
                )
                for name, table in metadata.tables.items()
                if name not in ("idempotency", "signing_secrets")
            }


@pytest.fixture
def shop(engine: Engine, tmp_path: Path) -> Iterator[Shop]:
    with open_api(engine, tmp_path, checkpoint=str(make_checkpoint(tmp_path))) as api:
        yield Shop(api)


@pytest.mark.parametrize("asked", ASKED, ids=str)
def test_a_change_and_its_line_are_one_transaction(shop: Shop, asked: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    before = shop.snapshot()

    def break_off(*_: Any, **__: Any) -> int:
        raise OperationalError("INSERT", None, Exception("torn between the change and its line"))

    with monkeypatch.context() as torn:
        torn.setattr(queries, "record_audit", break_off)
        assert shop.ask(asked) == 503
    assert shop.snapshot() == before, "there is no change without its line"
    assert shop.ask(asked) < 400
    assert shop.snapshot() != before
    with reading(shop.api.engine).connect() as connection:
        newest = queries.list_audit(connection, limit=1)[0]
    assert (newest.action, shop.lines()) == (asked.action, shop.before + 1)


def test_every_route_that_changes_something_is_asked_here(tmp_path: Path) -> None:
    from orchestrator.api.app import build_app
    from orchestrator.settings import Settings

    url = f"sqlite:///{tmp_path / 'state.db'}"
    app = build_app(Settings(home=tmp_path, database_url=url, broker_url="redis://127.0.0.1:1/0"))
    changing = {
        (method, context.path)
        for context in iter_route_contexts(app.routes)
        for method in (context.methods or set()) - SAFE
    }
    assert changing == {(asked.method, asked.route) for asked in ASKED} | UNNOTED | DRAFTED


def test_a_process_killed_in_between_leaves_neither(engine: Engine, seed: Seeder) -> None:
    seed.batch("running", jobs=1)
    url = engine.url.render_as_string(hide_password=False)
    killed = subprocess.run([sys.executable, "-c", KILLED, url], timeout=60)
    assert killed.returncode == -signal.SIGKILL
    with reading(engine).connect() as connection:
        found = queries.read_batch(connection, "running")
        assert found is not None and found.status == "running"
        assert queries.list_audit(connection, limit=9) == []


def test_a_change_in_several_transactions_has_one_line_that_counts_them(engine: Engine) -> None:
    line = AuditLine("key:1", "batch.retry", codes=["unavailable"])
    for jobs_moved in (1000, 17):
        with engine.begin() as connection:
            line(connection, "b", jobs=jobs_moved)
    with reading(engine).connect() as connection:
        (entry,) = queries.list_audit(connection, limit=9)
    assert (entry.target, entry.detail) == ("b", {"codes": ["unavailable"], "jobs": 1017})
