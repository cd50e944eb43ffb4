"""How many connections of its database a request holds: one at a time, and none while its caller reads slowly.

And what dispatchers do while all of theirs are in use: they wait, as for a database that is away.
"""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, update
from structlog.testing import capture_logs

from orchestrator import dispatcher, manifest
from orchestrator.access.scopes import Scope
from orchestrator.api import exports
from orchestrator.api.access import Caller
from orchestrator.api.watcher import Watcher
from orchestrator.closing import Closer
from orchestrator.deliverer import Deliverer
from orchestrator.settings import Settings
from orchestrator.state import database, queries
from orchestrator.state.tables import jobs
from orchestrator.state.transitions import BatchStatus
from tests.integration.api_client import Api, open_api
from tests.integration.seeding import Seeder
from tests.waiting import PATIENCE_S, wait_until

PAGE = {"accept": "text/html"}


@pytest.fixture
def one_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Databases are opened with one connection in all: whoever asks for another one waits for it in vain."""
    create, narrow = database.create_engine, {"pool_size": 1, "max_overflow": 0, "pool_timeout": 0.1}
    monkeypatch.setattr(database, "create_engine", lambda url, **given: create(url, **{**given, **narrow}))


@pytest.fixture
def api(engine: Engine, tmp_path: Path, one_connection: None) -> Iterator[Api]:
    """An API with one connection in all."""
    with open_api(engine, tmp_path) as api:
        yield api


@pytest.fixture
def batch(seed: Seeder, tmp_path: Path) -> Seeder:
    """Batch b: three jobs that failed, three that have pictures."""
    seed.batch(jobs=6)
    for row in seed.rows():
        picture = tmp_path / f"{row['custom_id']}.png"
        picture.write_bytes(b"a picture")
        values: dict[str, Any] = {"state": "succeeded", "ended_at": 1e9, "result": str(picture), "sample_s": 2.0}
        if row["line"] > 3:
            values = {"state": "failed", "ended_at": 1e9, "code": "unavailable", "message": "no answer"}
        seed.do(lambda c, v=values, i=row["id"]: c.execute(update(jobs).where(jobs.c.id == i).values(v)))
    return seed


def test_no_request_holds_a_connection_while_it_asks_for_another(api: Api, batch: Seeder) -> None:
    assert api.get("/v1/jobs/1")["state"] == "succeeded"
    assert api.client.get("/batches/b", headers=PAGE).status_code == 200
    assert api.post("/v1/batches/b/retry", json={"lines": [4]})["jobs"] == 1
    for form in ({"do": "retry", "job": 5}, {"do": "retry", "all": 1}):
        assert api.client.post("/batches/b/bulk", data=form, headers=PAGE).status_code == 303
    assert [row["state"] for row in batch.rows()] == ["succeeded"] * 3 + ["pending"] * 3


@pytest.mark.parametrize("ask", [exports.get_archive, exports.get_manifest_lines, exports.get_manifest_table])
def test_a_download_that_is_half_read_holds_no_connection(
    api: Api, batch: Seeder, monkeypatch: pytest.MonkeyPatch, ask: Any
) -> None:
    monkeypatch.setattr(manifest, "PIECE_ROWS", 2)
    opened, portal = api.app.state.resources, api.client.portal
    assert portal is not None
    pieces = ask(Caller("key:1", "a shop", Scope.READ), opened, "b").body_iterator
    first = portal.call(anext, pieces)
    assert first and opened.engine.pool.checkedout() == 0
    assert api.get("/v1/batches/b")["request_counts"]["total"] == 6, "others are answered"

    async def read_on() -> bytes:
        return b"".join([piece async for piece in pieces])

    assert b"photo-6" in portal.call(read_on)


def test_where_all_connections_are_in_use_a_caller_is_told_to_come_back(
    api: Api, seed: Seeder, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, listed = api.app.state.resources, queries.list_batches

    def ask_for_another(*given: Any, **named: Any) -> Any:
        with opened.engine.connect():
            return listed(*given, **named)

    monkeypatch.setattr(queries, "list_batches", ask_for_another)
    answer = api.client.get("/v1/batches")
    assert (answer.status_code, answer.json()["code"], answer.headers["retry-after"]) == (503, "unavailable", "5")
    assert api.client.get("/batches", headers=PAGE).status_code == 503
    with opened.engine.connect():  # so that not even its key can be looked at
        answer = api.client.get("/v1/presets")
    assert (answer.status_code, answer.json()["code"], answer.headers["retry-after"]) == (503, "unavailable", "5")
    assert "in use" in answer.json()["detail"] and api.client.get("/v1/presets").status_code == 200


def test_a_watcher_that_got_no_connection_looks_again(api: Api, seed: Seeder, monkeypatch: pytest.MonkeyPatch) -> None:
    seed.batch(jobs=1)
    watcher = api.app.state.resources.service(Watcher)
    looks, look = [], watcher._look
    monkeypatch.setattr(watcher, "_look", lambda listened: (looks.append(listened), look(listened))[1])
    assert api.client.portal is not None
    with api.app.state.resources.engine.connect():
        listener = api.client.portal.start_task_soon(anext, watcher.follow("b"))
        try:
            wait_until(lambda: len(looks) > 1, "it looked in vain, and does again")
        except AssertionError:
            listener.cancel()
            raise
    standing = listener.result(PATIENCE_S)
    assert standing is not None and standing.batch.id == "b"


@pytest.fixture
def narrow(engine: Engine, one_connection: None) -> Iterator[Engine]:
    """The database under test, with one connection in all."""
    narrow = database.open_database(engine.url.render_as_string(hide_password=False))
    yield narrow
    narrow.dispose()


def test_a_dispatcher_whose_connections_are_all_in_use_waits_for_one(
    seed: Seeder, narrow: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher, "open_database", lambda *_, **__: narrow)
    url = narrow.url.render_as_string(hide_password=False)
    settings = Settings(home=tmp_path, database_url=url, broker_url="redis://127.0.0.1:1/0")
    seed.batch(jobs=2)
    stop = threading.Event()
    serving = threading.Thread(target=dispatcher.serve, args=(settings, stop))
    with capture_logs() as said:
        with narrow.connect():
            serving.start()
            wait_until(lambda: any("QueuePool" in each.get("error", "") for each in said), "it says what it waits for")
            assert serving.is_alive()
        try:
            wait_until(lambda: seed.do(queries.in_flight) == {"b": 2}, "it goes on")
        finally:
            stop.set()
            serving.join(PATIENCE_S)


def test_its_threads_leave_to_later_what_they_have_no_connection_for(
    seed: Seeder, narrow: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = seed.batch(results_uri=str(tmp_path / "b"))
    closer, deliverer = Closer(narrow, Settings()), Deliverer(narrow, Settings())
    with narrow.connect():
        closer.begin(batch)
        closer.wait()  # a thread that ends by an exception fails this test
        deliverer._serve("webhook")
    assert seed.do(queries.read_batch, "b").status == BatchStatus.RUNNING


def test_a_dispatcher_has_a_connection_for_each_of_its_threads() -> None:
    for kind, url in (("sqlite", "sqlite:////tmp/none.db"), ("postgresql", "postgresql+psycopg://nobody@nowhere/none")):
        opened = database.open_database(url, pool_size=dispatcher.POOL_SIZE)
        assert (opened.pool.size(), opened.dialect.name) == (24, kind)  # type: ignore[attr-defined]
