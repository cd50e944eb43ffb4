"""The API as a shop's system calls it: batches made, watched, controlled; jobs listed; results fetched."""

import asyncio
import hashlib
import io
import json
import re
import threading
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fastapi.concurrency import run_in_threadpool
from sqlalchemy import Engine, delete, update
from starlette.types import Message

from orchestrator import control, submission
from orchestrator.access.keys import create_key
from orchestrator.access.scopes import Scope
from orchestrator.api import live
from orchestrator.api.cursors import write_cursor
from orchestrator.api.watcher import Watcher
from orchestrator.state import queries
from orchestrator.state.database import now
from orchestrator.state.queries import BatchCounts
from orchestrator.state.tables import batches, jobs
from orchestrator.state.transitions import BatchStatus, Stage
from tests.integration.api_client import Api, open_api
from tests.integration.seeding import Seeder
from tests.integration.shop import photo
from tests.waiting import PATIENCE_S, wait_until

ITEMS = [{"custom_id": f"dress-{n}", "image": f"s3://shop/{n}.jpg", "season": "SS27"} for n in range(3)]


@pytest.fixture
def api(engine: Engine, tmp_path: Path) -> Iterator[Api]:
    with open_api(engine, tmp_path) as api:
        yield api


def forget(seed: Seeder, batch_id: str) -> None:
    """End a batch as if its jobs had ended, and delete it."""
    ended = update(batches).where(batches.c.id == batch_id).values(status=BatchStatus.COMPLETED, ended_at=1.0)
    seed.do(lambda connection: connection.execute(ended))
    control.delete(seed.engine, batch_id)


def finish(seed: Seeder, batch_id: str, results: Path) -> None:
    """Every job of a batch succeeds, with a picture of its own; the second fails instead."""
    results.mkdir(parents=True, exist_ok=True)
    for row in seed.rows(batch_id):
        picture = results / f"{row['custom_id']}.png"
        picture.write_bytes(b"picture of " + row["custom_id"].encode())
        values: dict[str, Any] = {
            "state": "succeeded",
            "ended_at": time.time(),
            "result": str(picture),
            "sample_s": 2.0,
        }
        if row["line"] == 2:
            values = {"state": "failed", "ended_at": time.time(), "code": "unavailable", "message": "no answer"}
        seed.do(lambda c, v=values, i=row["id"]: c.execute(update(jobs).where(jobs.c.id == i).values(v)))


class TestSubmitting:
    def test_items_become_a_durable_batch(self, api: Api, seed: Seeder) -> None:
        body = {
            "preset": "flat-lay",
            "options": {"steps": 4},
            "items": ITEMS,
            "metadata": {"season": "SS27"},
            "priority": 3,
        }
        answer = api.client.post("/v1/batches", json=body)
        assert answer.status_code == 202, answer.text
        told = answer.json()
        assert answer.headers["location"] == f"/v1/batches/{told['id']}"
        assert (told["object"], told["status"], told["metadata"], told["priority"]) == (
            "batch",
            "running",
            {"season": "SS27"},
            3,
        )
        assert told["request_counts"]["total"] == told["request_counts"]["pending"] == 3
        rows = seed.rows(told["id"])
        assert [(row["line"], row["custom_id"], row["image"]) for row in rows][1] == (2, "dress-1", "s3://shop/1.jpg")
        assert json.loads(rows[0]["given"]) == {"season": "SS27"}
        audit = api.get("/v1/audit")["data"][0]
        assert (audit["action"], audit["target"]) == ("batch.create", told["id"]) and audit["detail"]["rows"] == 3

    def test_a_bad_item_fails_alone_and_a_dry_run_names_it(self, api: Api) -> None:
        items = [*ITEMS, {"custom_id": "x"}, {"image": "y.jpg", "steps": "many"}]
        told = api.post("/v1/batches?dry_run=true", json={"preset": "flat-lay", "items": items})
        assert (told["object"], told["rows"], told["bad"]) == ("dry_run", 5, 2)
        assert [(error["line"], error["code"]) for error in told["errors"]] == [(4, "missing_image"), (5, "bad_steps")]
        assert api.get("/v1/batches")["data"] == []
        counts = api.post("/v1/batches", 202, json={"preset": "flat-lay", "items": items})["request_counts"]
        assert (counts["total"], counts["failed"], counts["pending"]) == (5, 2, 3)

    def test_a_dry_run_estimates_by_what_recent_jobs_took(self, engine: Engine, tmp_path: Path, seed: Seeder) -> None:
        with open_api(engine, tmp_path, cost_per_hour=3.6) as api:
            body = {"preset": "flat-lay", "items": ITEMS}
            assert api.post("/v1/batches?dry_run=true", json=body)["estimated_seconds"] is None
            batch_id = api.post("/v1/batches", 202, json=body)["id"]
            finish(seed, batch_id, tmp_path / "pictures")
            told = api.post("/v1/batches?dry_run=true", json=body)
            assert (told["estimated_seconds"], told["estimated_wall_s"], told["estimated_cost"]) == (6.0, 6.0, 0.006)

    def test_a_csv_is_sent_as_a_form(self, api: Api, seed: Seeder) -> None:
        sent = {"file": ("../night.csv", b"image,custom_id\na/1.jpg,one\na/2.jpg,two\n", "text/csv")}
        told = api.post("/v1/batches", 202, files=sent, data={"preset": "flat-lay", "metadata": '{"a": "b"}'})
        assert (told["catalogue"], told["metadata"]) == ("sent:night.csv", {"a": "b"})
        assert [row["custom_id"] for row in seed.rows(told["id"])] == ["one", "two"]

    def test_images_in_a_zip_are_stored_once_by_their_digest(self, api: Api, seed: Seeder) -> None:
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w") as writer:
            for name, colour in (
                ("a/red.jpg", "red"),
                ("b/same.jpg", "red"),
                ("c.JPG", "blue"),
                ("../up.jpg", "green"),
                ("c.jpg", "white"),
            ):
                writer.writestr(name, photo(colour))
            writer.writestr("notes.txt", "no image")
            writer.writestr("__MACOSX/a/._red.jpg", "x")
        sent = {"file": ("photos.zip", archive.getvalue(), "application/zip")}
        told = api.post("/v1/batches", 202, files=sent, data={"preset": "flat-lay"})
        rows = seed.rows(told["id"])
        assert [row["custom_id"] for row in rows] == ["a/red", "b/same", "c", "c-4"]
        assert {row["state"] for row in rows} == {"pending"} and json.loads(rows[3]["given"]) == {"file": "c.jpg"}
        assert rows[0]["image"] == rows[1]["image"] != rows[2]["image"]
        inputs = Path(api.settings.results_uri or "") / "inputs"
        assert {path.name for path in inputs.iterdir()} == {row["image"] for row in rows}

    @pytest.mark.parametrize("query", ["", "?dry_run=true"])
    def test_a_zip_that_unpacks_to_more_than_it_may_leaves_nothing(
        self, engine: Engine, tmp_path: Path, query: str
    ) -> None:
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as writer:
            for number in range(5):
                writer.writestr(f"{number}.png", bytes([number]) * (1 << 20))
        sent = {"file": ("bomb.zip", archive.getvalue(), "application/zip")}
        with open_api(engine, tmp_path, max_upload_bytes=1 << 20) as api:
            told = api.post(f"/v1/batches{query}", 422, files=sent, data={"preset": "flat-lay"})
            assert told["code"] == "bad_catalogue" and "5,242,880 bytes" in told["detail"]
            assert api.get("/v1/batches")["data"] == []
        assert not (tmp_path / "results" / "inputs").exists()

    def test_a_catalogue_on_the_servers_disk_is_for_administrators(self, api: Api, tmp_path: Path) -> None:
        (tmp_path / "c.csv").write_text("image\nx.jpg\n")
        body = {"preset": "flat-lay", "catalogue": str(tmp_path / "c.csv")}
        answer = api.client.post("/v1/batches", json=body, headers=api.bearer(Scope.SUBMIT))
        assert (answer.status_code, answer.json()["code"]) == (403, "scope")
        assert api.post("/v1/batches", 202, json=body)["request_counts"]["total"] == 1

    @pytest.mark.parametrize(
        ("body", "code"),
        [
            ({"items": ITEMS}, "no_prompt"),
            ({"items": [], "preset": "flat-lay"}, "bad_catalogue"),
            ({"preset": "flat-lay"}, "no_rows"),
            ({"items": ITEMS, "catalogue": "s3://a/b.csv", "preset": "flat-lay"}, "no_rows"),
            ({"items": ITEMS, "preset": "no-such"}, "bad_preset"),
            ({"items": ITEMS, "preset": "flat-lay", "prompt": "x"}, "prompt_and_preset"),
            ({"items": ITEMS, "preset": "flat-lay", "options": {"stepz": 1}}, "unknown_option"),
            ({"items": ITEMS, "preset": "flat-lay", "options": {"lora": "/etc/passwd"}}, "bad_lora"),
            ({"items": ITEMS, "preset": "flat-lay", "priorty": 1}, "invalid"),
            ({"items": ITEMS, "preset": "flat-lay", "deadline": "soon"}, "bad_deadline"),
            ({"items": ITEMS, "preset": "flat-lay", "options": {"deadline": "9" * 400 + "d"}}, "bad_deadline"),
            ({"items": ITEMS, "preset": "flat-lay", "deadline": "99999999d"}, "bad_deadline"),
            ({"items": {"a": 1}, "preset": "flat-lay"}, "bad_catalogue"),
            ({"items": [{"picture": "x"}], "preset": "flat-lay"}, "bad_catalogue"),
            ({"items": ITEMS, "preset": "flat-lay", "metadata": {"a": "x" * 600}}, "bad_metadata"),
        ],
    )
    def test_what_cannot_be_read_makes_no_batch_and_is_named(self, api: Api, body: dict[str, Any], code: str) -> None:
        assert api.post("/v1/batches", 422, json=body)["code"] == code
        assert api.get("/v1/batches")["data"] == []

    @pytest.mark.parametrize(
        ("given", "code"),
        [
            ({"preset": "flat-lay", "metadata": {"a": "\ud800"}}, "bad_metadata"),
            ({"preset": "flat-lay", "metadata": {"\udfff": "a"}}, "bad_metadata"),
            ({"options": {"prompt": "\ud800"}}, "bad_prompt"),
            ({"preset": "flat-lay", "options": {"negative_prompt": "a \udc00"}}, "bad_negative_prompt"),
        ],
    )
    def test_a_text_that_no_answer_can_tell_makes_no_batch(self, api: Api, given: dict[str, Any], code: str) -> None:
        body = json.dumps({"items": ITEMS, **given})  # in ASCII, as a program sends it that knows no better
        headers = {"content-type": "application/json"}
        assert api.post("/v1/batches", 422, content=body, headers=headers)["code"] == code
        assert api.get("/v1/batches")["data"] == []

    @pytest.mark.parametrize(
        "body",
        [
            *("", "[]", "{", '{"items": [{"image": "x"}', '{"items": [1] x', '{"a": NaN', "\xff", "{} {}"),
            pytest.param(f'{{"items": [{{"image": "x", "sku": {"9" * 5000}}}]}}', id="digits"),
        ],
    )
    def test_broken_json_is_told_by_its_place(self, api: Api, body: str) -> None:
        headers = {"content-type": "application/json"}
        told = api.post("/v1/batches", 422, content=body.encode("latin-1"), headers=headers)
        assert told["code"] == "bad_catalogue" and "the body" in told["detail"]

    def test_the_same_key_and_body_give_the_same_batch(self, api: Api, seed: Seeder) -> None:
        body = {"preset": "flat-lay", "items": ITEMS}
        headers = {"idempotency-key": "night-1"}
        first = api.post("/v1/batches", 202, json=body, headers=headers)
        assert api.post("/v1/batches", 202, json=body, headers=headers)["id"] == first["id"]
        assert len(api.get("/v1/batches")["data"]) == 1
        other = api.post("/v1/batches", 422, json={**body, "priority": 1}, headers=headers)
        assert other["code"] == "idempotency_key_reused" and first["id"] in other["detail"]
        another = {**headers, **api.bearer(Scope.SUBMIT)}
        assert api.post("/v1/batches", 202, json=body, headers=another)["id"] != first["id"]

    def test_a_call_that_was_cut_off_goes_on_where_it_stopped(self, api: Api, seed: Seeder) -> None:
        body, headers = {"preset": "flat-lay", "items": ITEMS}, {"idempotency-key": "night-2"}
        batch_id = api.post("/v1/batches", 202, json=body, headers=headers)["id"]

        def cut(connection: Any) -> None:
            connection.execute(jobs.delete().where(jobs.c.batch_id == batch_id, jobs.c.line > 1))
            values = {"status": BatchStatus.INGESTING, "ingested_line": 1, "total": 1, "started_at": None}
            connection.execute(update(queries.batches.batches).values(values))

        seed.do(cut)
        told = api.post("/v1/batches", 202, json=body, headers=headers)
        assert (told["id"], told["status"]) == (batch_id, "running")
        assert [row["line"] for row in seed.rows(batch_id)] == [1, 2, 3]

    def test_a_key_of_a_deleted_batch_gives_a_new_one(self, api: Api, seed: Seeder) -> None:
        body, headers = {"preset": "flat-lay", "items": ITEMS}, {"idempotency-key": "night-4"}
        first = api.post("/v1/batches", 202, json=body, headers=headers)
        forget(seed, first["id"])
        second = api.post("/v1/batches", 202, json=body, headers=headers)
        assert second["id"] != first["id"] and second["results"] != first["results"]
        assert api.post("/v1/batches", 202, json=body, headers=headers)["id"] == second["id"]
        forget(seed, second["id"])
        api.post("/v1/batches", 202, json={**body, "priority": 1}, headers=headers)

    def test_a_batch_that_is_deleted_while_its_request_comes_again_stays_deleted(
        self, api: Api, seed: Seeder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        body, headers = {"preset": "flat-lay", "items": ITEMS}, {"idempotency-key": "night-5"}
        first = api.post("/v1/batches", 202, json=body, headers=headers)["id"]
        keep = submission._keep

        def late(*given: Any) -> str:
            kept = keep(*given)
            if kept == first:
                forget(seed, first)
            return kept

        monkeypatch.setattr(submission, "_keep", late)
        second = api.post("/v1/batches", 202, json=body, headers=headers)
        assert second["id"] != first and second["request_counts"]["total"] == 3
        assert [batch["id"] for batch in api.get("/v1/batches")["data"]] == [second["id"]]

    @pytest.mark.parametrize("line", [0, 2])
    def test_a_call_that_was_cut_off_goes_on_with_nothing_that_changed(
        self, api: Api, seed: Seeder, tmp_path: Path, line: int
    ) -> None:
        catalogue, headers = tmp_path / "night.csv", {"idempotency-key": "night-3"}
        catalogue.write_text("image\na.jpg\nb.jpg\n")
        body = {"preset": "flat-lay", "catalogue": str(catalogue)}
        batch_id = api.post("/v1/batches", 202, json=body, headers=headers)["id"]

        def cut(connection: Any) -> None:
            connection.execute(jobs.delete().where(jobs.c.line > line))
            values = {"status": BatchStatus.INGESTING, "ingested_line": line, "total": line // 2, "started_at": None}
            connection.execute(update(queries.batches.batches).values(values))

        seed.do(cut)
        assert api.post("/v1/batches", 202, json=body, headers=headers)["status"] == "running"
        assert [row["image"] for row in seed.rows(batch_id)] == ["a.jpg", "b.jpg"]
        seed.do(cut)
        catalogue.write_text("image\nother.jpg\nanother.jpg\n")
        told = api.post("/v1/batches", 422, json=body, headers=headers)
        assert told["code"] == "bad_catalogue" and "changed while it was read; submit it again" in told["detail"]
        left = api.get(f"/v1/batches/{batch_id}")
        assert (left["status"], left["reason"]) == ("failed", told["detail"])
        assert [row["image"] for row in seed.rows(batch_id)] == ["a.jpg"][: line // 2]
        assert api.post("/v1/batches", 202, json=body)["request_counts"]["total"] == 2


class TestWatching:
    def test_batches_are_listed_in_pages(self, api: Api, seed: Seeder) -> None:
        for number in range(5):
            seed.batch(f"b{number}", jobs=number, status="paused" if number == 2 else "running")
        found, after = [], None
        while True:
            page = api.get("/v1/batches", params={"limit": 2} | ({"after": after} if after else {}))
            found += [(batch["id"], batch["request_counts"]["total"]) for batch in page["data"]]
            if not page["has_more"]:
                break
            after = page["next"]
        assert found == [(f"b{number}", number) for number in (4, 3, 2, 1, 0)]
        assert [batch["id"] for batch in api.get("/v1/batches?status=paused")["data"]] == ["b2"]

    def test_the_time_that_is_left_counts_from_the_start_and_with_failures(self, api: Api, seed: Seeder) -> None:
        seed.batch(jobs=100)
        assert api.get("/v1/batches/b")["eta_s"] is None, "nothing has ended yet"

        def end(connection: Any) -> None:
            connection.execute(update(batches).values(started_at=now() - 50))
            for state, lines in (("succeeded", jobs.c.line <= 20), ("failed", jobs.c.line.between(21, 25))):
                values = {"state": state, "code": "unavailable", "ended_at": now() - 5}
                connection.execute(update(jobs).where(lines).values(values))

        seed.do(end)
        told = api.get("/v1/batches/b")  # 25 of 100 in 50 s, and however long this machine takes to ask
        assert 0.4 < told["rate_per_s"] <= 0.5 and 150 <= told["eta_s"] < 190
        seed.do(lambda connection: connection.execute(update(batches).values(resumed_at=now() - 10)))
        told = api.get("/v1/batches/b")
        assert 1.0 < told["rate_per_s"] <= 2.5 and 30 <= told["eta_s"] < 75

    def test_an_etag_saves_the_body_and_a_wait_ends_with_a_change(self, api: Api, seed: Seeder) -> None:
        seed.batch(jobs=2)
        first = api.client.get("/v1/batches/b")
        headers = {"if-none-match": first.headers["etag"]}
        again = api.client.get("/v1/batches/b", headers=headers)
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", first.headers["etag"])
        watcher = api.app.state.resources.service(Watcher)

        def change() -> None:
            wait_until(lambda: watcher.sees("b"), "the call waits")
            seed.do(queries.dispatch, "b", 1)

        with ThreadPoolExecutor(1) as pool:
            changing = pool.submit(change)
            began = time.monotonic()
            waited = api.client.get("/v1/batches/b?wait=60", headers=headers)
            assert time.monotonic() - began < 50, "not when the wait is over"
            changing.result()
        assert waited.status_code == 200 and waited.json()["request_counts"]["queued"] == 1
        headers = {"if-none-match": waited.headers["etag"]}
        assert api.client.get("/v1/batches/b?wait=1", headers=headers).status_code == 304

    def test_events_tell_each_change_until_the_batch_has_ended(
        self, api: Api, seed: Seeder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        batch = seed.batch(jobs=1)
        written: list[BatchCounts] = []
        shape = live.batch_shape
        monkeypatch.setattr(
            live, "batch_shape", lambda batch, counts: (written.append(counts), shape(batch, counts))[1]
        )

        def change() -> None:
            try:
                wait_until(lambda: any(counts.pending == 1 for counts in written), "it is told as it stands")
                seed.do(queries.dispatch, "b", 1)
                wait_until(lambda: any(counts.queued == 1 for counts in written), "the first change is told")
            finally:  # or the stream would never end
                seed.do(lambda c: c.execute(update(jobs).values(state="succeeded", ended_at=1.0)))
                seed.do(queries.close_batch, "b", reopened=batch.reopened)

        with ThreadPoolExecutor(1) as pool:
            changing = pool.submit(change)
            with api.client.stream("GET", "/v1/batches/b/events") as stream:
                assert stream.headers["content-type"].startswith("text/event-stream")
                told = [json.loads(line[6:]) for line in stream.iter_lines() if line.startswith("data: ")]
            changing.result()
        assert told[0]["request_counts"]["pending"] == 1
        assert any(batch["request_counts"]["queued"] == 1 for batch in told)
        assert (told[-1]["status"], told[-1]["request_counts"]["succeeded"]) == ("completed", 1)

    @pytest.mark.parametrize("path", ["/v1/events", "/v1/batches/b/events"])
    def test_a_stream_refuses_as_all_else_does(self, api: Api, seed: Seeder, path: str) -> None:
        seed.batch(jobs=1)
        for headers, status in (({"authorization": "Bearer kx_x"}, 401), ({"authorization": ""}, 401)):
            assert api.client.get(path, headers=headers).status_code == status
        assert api.client.post(path).status_code == 405
        if path != "/v1/events":
            for batch_id, status in (("none", 404), ("%00", 404), ("x" * 101, 422)):
                answer = api.client.get(f"/v1/batches/{batch_id}/events")
                assert (answer.status_code, answer.json()["status"]) == (status, status)

    def test_a_stream_of_all_tells_each_open_batch(self, api: Api, seed: Seeder) -> None:
        for batch_id in ("b", "c"):
            seed.batch(batch_id, jobs=1)
        watcher = api.app.state.resources.service(Watcher)

        async def read() -> list[str]:
            standings = watcher.follow()
            return [standing.batch.id for _ in range(2) if (standing := await anext(standings)) is not None]

        assert api.client.portal is not None
        assert sorted(api.client.portal.call(read)) == ["b", "c"]

    @pytest.mark.parametrize("path", ["/v1/events", "/v1/batches/b/events", "/live"])
    def test_a_stream_ends_with_its_callers_key(
        self, api: Api, seed: Seeder, monkeypatch: pytest.MonkeyPatch, path: str
    ) -> None:
        monkeypatch.setattr(live, "CHECK_S", 0.0)
        seed.batch(jobs=1)
        made = create_key(api.engine, "a shop", Scope.READ)
        heard: list[bytes] = []

        async def hear(message: Message) -> None:
            heard.append(message.get("body", b""))
            if heard[-1]:  # the stream has begun
                await run_in_threadpool(seed.do, queries.revoke_key, made.key.id)

        async def stay() -> Message:
            return await asyncio.get_running_loop().create_future()  # as a caller who never hangs up

        async def listen() -> None:
            headers = [(b"authorization", f"Bearer {made.secret}".encode())]
            scope = {"type": "http", "http_version": "1.1", "method": "GET", "path": path, "raw_path": path.encode(),
                     "query_string": b"", "headers": headers, "client": ("192.0.2.1", 1), "scheme": "http",
                     "server": ("testserver", 80), "root_path": ""}  # fmt: skip
            async with asyncio.timeout(PATIENCE_S):
                await api.app(scope, stay, hear)

        assert api.client.portal is not None
        api.client.portal.call(listen)
        assert [piece for piece in heard if piece] == [b"retry: 2000\n\n"]

    def test_who_listens_to_all_hears_an_end_and_is_not_told_of_it_for_ever(self, api: Api, seed: Seeder) -> None:
        for batch_id in ("long ago", "just now", "open"):
            seed.batch(batch_id, jobs=1)
        watcher = api.app.state.resources.service(Watcher)
        watcher._interval_s = 0.0
        told: list[tuple[str, bool]] = []

        async def listen() -> None:
            async for standing in watcher.follow():
                if standing is not None:
                    told.append((standing.batch.id, standing.batch.ended_at is not None))

        def end(batch_id: str, ago_s: float) -> None:
            ended = update(batches).where(batches.c.id == batch_id).values(status="completed", ended_at=now() - ago_s)
            seed.do(lambda connection: connection.execute(ended))

        assert api.client.portal is not None
        listener = api.client.portal.start_task_soon(listen)
        try:
            wait_until(lambda: len(told) == 3, "all are told of")
            end("just now", 0.0)
            end("long ago", 61.0)
            wait_until(lambda: ("long ago", True) in told and ("just now", True) in told, "both ends are told of")
            wait_until(lambda: not watcher.sees("long ago"), "what ended a minute ago is told of no more")
            assert watcher.sees("just now") and watcher.sees("open"), "slow listeners hear of it yet"
            seed.do(lambda connection: connection.execute(delete(jobs).where(jobs.c.batch_id == "just now")))
            assert seed.do(queries.begin_deletion, "just now") and seed.do(queries.delete_batch, "just now")
            wait_until(lambda: not watcher.sees("just now"), "what is deleted is told of no more")
        finally:
            listener.cancel()

    def test_many_who_wait_for_a_batch_are_told_by_one_look(
        self, api: Api, seed: Seeder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seed.batch(jobs=2)
        headers = {"if-none-match": api.client.get("/v1/batches/b").headers["etag"]}
        asked: list[str] = []
        told = queries.throughput
        monkeypatch.setattr(
            queries, "throughput", lambda *given, **named: (asked.append("it"), told(*given, **named))[1]
        )
        listening: list[str] = []
        await_change = Watcher.await_change
        monkeypatch.setattr(Watcher, "await_change", lambda *given: (listening.append("it"), await_change(*given))[1])
        with ThreadPoolExecutor(20) as pool:
            waiting = [pool.submit(api.client.get, "/v1/batches/b?wait=60", headers=headers) for _ in range(20)]
            wait_until(lambda: len(listening) == 20, "all wait", 55)
            before = len(asked)
            seed.do(queries.dispatch, "b", 1)
            answers = [each.result() for each in waiting]
        assert {answer.status_code for answer in answers} == {200} and len({answer.content for answer in answers}) == 1
        assert answers[0].json()["request_counts"]["queued"] == 1
        assert before <= 40 and len(asked) == before + 2, "what succeeded and what failed, read once for all"

    def test_a_poll_is_never_told_less_than_its_caller_knows(self, api: Api, seed: Seeder) -> None:
        seed.batch(jobs=9)
        known = api.client.get("/v1/batches/b").headers["etag"]
        with ThreadPoolExecutor(1) as pool:
            other = pool.submit(api.client.get, "/v1/batches/b?wait=20")  # a watcher looks, and may be late
            for queued in (1, 2):
                seed.do(queries.dispatch, "b", 1)
                known = api.client.get("/v1/batches/b").headers["etag"]
                answer = api.client.get("/v1/batches/b?wait=1", headers={"if-none-match": known})
                assert answer.status_code == 304 or answer.json()["request_counts"]["queued"] >= queued
            other.result()

    def test_a_server_that_ends_leaves_no_look_behind(
        self, engine: Engine, seed: Seeder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seed.batch(jobs=1)
        looking, read = threading.Event(), queries.read_batch

        def read_slowly(*given: Any) -> Any:
            looking.set()
            time.sleep(0.3)
            return read(*given)

        monkeypatch.setattr(queries, "read_batch", read_slowly)
        with open_api(engine, tmp_path) as api:  # which sees to it that no connection stays
            watcher = api.app.state.resources.service(Watcher)
            assert api.client.portal is not None
            listener = api.client.portal.start_task_soon(anext, watcher.follow("b"))
            assert looking.wait(PATIENCE_S)
            listener.cancel()

    def test_nothing_is_looked_up_while_nobody_listens(
        self, api: Api, seed: Seeder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seed.batch(jobs=1)
        api.client.get("/v1/batches/b?wait=1")
        watcher = api.app.state.resources.service(Watcher)
        wait_until(lambda: watcher._task.done(), "it has looked for the last time")
        looked = []
        monkeypatch.setattr(queries, "read_batch", lambda *given: looked.append(given))
        time.sleep(0.5)
        assert looked == []

    def test_what_no_database_holds_names_nothing(self, api: Api, seed: Seeder) -> None:
        seed.batch(jobs=1)
        for path in ("", "/jobs", "/events", "/manifest.jsonl", "/manifest.csv", "/results.zip"):
            assert api.client.get(f"/v1/batches/a%00b{path}").status_code == 404, path
        assert api.client.get("/v1/batches/b/jobs?code=a&code=%00").json()["code"] == "invalid"
        for cursor in (write_cursor(1.0, "\0"), write_cursor(1.0, "\ud800"), write_cursor(float("nan"), "b")):
            answer = api.client.get("/v1/batches", params={"after": cursor})
            assert (answer.status_code, answer.json()["code"]) == (422, "bad_cursor")
        answer = api.client.get("/v1/batches/b/jobs", params={"after": write_cursor(2**70, 1)})
        assert (answer.status_code, answer.json()["code"]) == (422, "bad_cursor")
        for code in ("\0", "\ud800"):
            sent = {"content": json.dumps({"codes": [code]}), "headers": {"content-type": "application/json"}}
            assert api.post("/v1/batches/b/retry", 422, **sent)["code"] == "invalid"
        for action in ("pause", "resume", "cancel", "retry"):
            answer = api.client.post(f"/v1/batches/a%00b/{action}")
            assert answer.status_code in (404, 422), "it is no word of the database's that it cannot answer"

    def test_who_follows_what_no_database_holds_stops_nobody_else(self, api: Api, seed: Seeder) -> None:
        seed.batch(jobs=1)
        watcher = api.app.state.resources.service(Watcher)

        async def read() -> str:
            nothing = asyncio.ensure_future(anext(watcher.follow("a\0b")))  # as /live?batch=a%00b
            await asyncio.sleep(0)
            async with asyncio.timeout(20):
                standings = watcher.follow("b")
                while (standing := await anext(standings)) is None:
                    pass
            nothing.cancel()
            return standing.batch.id

        assert api.client.portal is not None
        assert api.client.portal.call(read) == "b"

    def test_an_unknown_batch_is_a_problem_everywhere(self, api: Api) -> None:
        for path in ("", "/jobs", "/events", "/manifest.jsonl", "/manifest.csv", "/results.zip"):
            answer = api.client.get(f"/v1/batches/none{path}")
            assert (answer.status_code, answer.json()["code"]) == (404, "not_found"), path
        for path in ("pause", "resume", "cancel", "retry"):
            assert api.post(f"/v1/batches/none/{path}", 404)["code"] == "not_found"


class TestControl:
    def test_pause_resume_priority_cancel(self, api: Api, seed: Seeder) -> None:
        seed.batch(jobs=2)
        assert api.post("/v1/batches/b/pause")["batch"]["status"] == "paused"
        assert api.post("/v1/batches/b/pause")["changed"] is False
        assert api.post("/v1/batches/b/resume")["batch"]["status"] == "running"
        answer = api.client.patch("/v1/batches/b", json={"priority": 7})
        assert (answer.status_code, answer.json()["batch"]["priority"]) == (200, 7)
        told = api.post("/v1/batches/b/cancel")
        assert (told["batch"]["status"], told["jobs"]) == ("cancelling", 2)
        actions = [entry["action"] for entry in api.get("/v1/audit?target=b")["data"]]
        assert actions == ["batch.cancel", "batch.priority", "batch.resume", "batch.pause"]

    def test_retry_by_filter(self, api: Api, seed: Seeder, tmp_path: Path) -> None:
        seed.batch(jobs=3)
        finish(seed, "b", tmp_path / "pictures")
        assert api.post("/v1/batches/b/retry", json={"codes": ["other"]})["jobs"] == 0
        assert api.post("/v1/batches/b/retry", json={"codes": ["unavailable"], "lines": [2]})["jobs"] == 1
        assert api.post("/v1/batches/b/retry", 422, json={"states": ["running"]})["code"] == "bad_state"

    def test_only_an_ended_batch_is_deleted_and_its_pictures_stay(self, api: Api, seed: Seeder, tmp_path: Path) -> None:
        batch = seed.batch(jobs=3)
        assert api.client.delete("/v1/batches/b").status_code == 409
        finish(seed, "b", tmp_path / "pictures")
        seed.do(queries.close_batch, "b", reopened=batch.reopened)
        assert api.client.delete("/v1/batches/b").status_code == 204
        assert api.client.get("/v1/batches/b").status_code == 404 and seed.rows() == []
        assert len(list((tmp_path / "pictures").iterdir())) == 3


class TestJobs:
    def test_jobs_are_filtered_and_paged(self, api: Api, seed: Seeder, tmp_path: Path) -> None:
        seed.batch(jobs=5)
        finish(seed, "b", tmp_path / "pictures")
        first = api.get("/v1/batches/b/jobs?limit=3")
        assert [job["line"] for job in first["data"]] == [1, 2, 3]
        rest = api.get(f"/v1/batches/b/jobs?limit=3&after={first['next']}")
        assert [job["line"] for job in rest["data"]] == [4, 5] and not rest["has_more"]
        failed = api.get("/v1/batches/b/jobs?code=unavailable")["data"]
        assert [(job["state"], job["message"]) for job in failed] == [("failed", "no answer")]
        assert [job["line"] for job in api.get("/v1/batches/b/jobs?text=PHOTO-4")["data"]] == [4]
        assert api.client.get("/v1/batches/b/jobs?after=x").status_code == 422

    def test_one_job_tells_its_way(self, api: Api, seed: Seeder) -> None:
        seed.do(queries.add_recipes, {"recipe": '{"prompt": "x"}'})
        group = seed.queued(1)
        job = seed.claim(group)[0]
        seed.do(queries.retry, Stage.ENCODE, [queries.Retried(job.id, job.attempt, 0.5, "unavailable", "no answer")])
        told = api.get(f"/v1/jobs/{job.id}")
        assert (told["custom_id"], told["recipe_body"], told["attempts"]) == ("photo-1", {"prompt": "x"}, 2)
        assert [(entry["outcome"], entry["code"]) for entry in told["history"]] == [("retry", "unavailable")]
        assert [take["take"] for take in told["takes"]] == [1]
        assert api.client.get("/v1/jobs/999999").status_code == 404

    def test_decisions_and_new_takes(self, api: Api, seed: Seeder, tmp_path: Path) -> None:
        seed.batch(jobs=3)
        finish(seed, "b", tmp_path / "pictures")
        first, failed, third = (row["id"] for row in seed.rows())
        assert api.post(f"/v1/jobs/{first}/decision", json={"decision": "approved"}) == {"changed": 1}
        assert api.post(f"/v1/jobs/{failed}/decision", 409, json={"decision": "approved"})["code"] == "conflict"
        body = {"ids": [first, failed, third], "decision": "rejected"}
        assert api.post("/v1/batches/b/decisions", json=body) == {"changed": 2}
        assert [job["id"] for job in api.get("/v1/batches/b/jobs?decision=rejected")["data"]] == [first, third]
        made = api.post(f"/v1/jobs/{first}/regenerate", 202, json={"seed": 9})
        assert (made["take"], made["seed"]) == (2, 9)
        assert [take["take"] for take in api.get(f"/v1/jobs/{first}")["takes"]] == [1, 2]


class TestResults:
    def test_a_folder_streams_and_says_what_is_missing(self, api: Api, seed: Seeder, tmp_path: Path) -> None:
        seed.batch(jobs=2)
        finish(seed, "b", tmp_path / "pictures")
        first, failed = seed.rows()
        answer = api.client.get(f"/v1/jobs/{first['id']}/result")
        assert (answer.content, answer.headers["content-type"]) == (b"picture of photo-1", "image/png")
        assert api.client.get(f"/v1/jobs/{failed['id']}/result").json()["code"] == "no_result"
        (tmp_path / "pictures" / "photo-1.png").unlink()
        assert api.client.get(f"/v1/jobs/{first['id']}/result").status_code == 404

    def test_manifests_stream_while_the_batch_runs(self, api: Api, seed: Seeder, tmp_path: Path) -> None:
        seed.batch(jobs=3)
        finish(seed, "b", tmp_path / "pictures")
        lines = [json.loads(line) for line in api.client.get("/v1/batches/b/manifest.jsonl").text.splitlines()]
        assert [(line["line"], line["status"]) for line in lines] == [(1, "succeeded"), (2, "failed"), (3, "succeeded")]
        table = api.client.get("/v1/batches/b/manifest.csv").text.splitlines()
        assert table[0].startswith("custom_id,image,line,take,status") and len(table) == 4

    def test_a_zip_holds_what_was_made(self, api: Api, seed: Seeder, tmp_path: Path) -> None:
        seed.batch(jobs=3)
        finish(seed, "b", tmp_path / "pictures")
        (tmp_path / "pictures" / "photo-3.png").unlink()
        archive = zipfile.ZipFile(io.BytesIO(api.client.get("/v1/batches/b/results.zip").content))
        assert archive.testzip() is None
        assert archive.read("photo-1.png") == b"picture of photo-1"
        assert "photo-3.png: " in archive.read("missing.txt").decode()
        assert len(archive.read("manifest.jsonl").splitlines()) == 3


def test_images_are_sent_once(api: Api) -> None:
    data = photo("red")
    name = f"{hashlib.sha256(data).hexdigest()}.jpg"
    planned = api.post("/v1/uploads", json={"names": [name]})["data"][0]
    assert planned == {"name": name, "exists": False, "url": f"/v1/uploads/{name}", "headers": {}}
    assert api.client.put(planned["url"], content=b"other").json()["code"] == "wrong_digest"
    assert api.client.put(planned["url"], content=data).status_code == 204
    assert api.post("/v1/uploads", json={"names": [name]})["data"][0]["exists"] is True


def test_a_store_with_addresses_is_sent_to(engine: Engine, tmp_path: Path, s3: Any, seed: Seeder) -> None:
    import urllib.request

    with open_api(engine, tmp_path, results_uri=s3.results_uri, local_s3_url=s3.local_s3_url) as api:
        from orchestrator.storage import open_store

        store = open_store(s3.results_uri, api.settings)
        store.put("a.png", b"bytes")
        seed.batch(jobs=1)
        seed.do(lambda c: c.execute(update(jobs).values(state="succeeded", result=store.locate("a.png"))))
        answer = api.client.get(f"/v1/jobs/{seed.rows()[0]['id']}/result")
        assert answer.status_code == 302
        with urllib.request.urlopen(answer.headers["location"]) as picture:
            assert picture.read() == b"bytes"
        name = hashlib.sha256(b"image").hexdigest()
        planned = api.post("/v1/uploads", json={"names": [name]})["data"][0]
        request = urllib.request.Request(planned["url"], b"image", planned["headers"], method="PUT")
        urllib.request.urlopen(request).close()
        assert store.get(f"inputs/{name}") == b"image"


def test_what_there_is_can_be_listed(api: Api, seed: Seeder) -> None:
    seed.do(queries.add_recipes, {f"r{number}": '{"steps": 8}' for number in range(3)})
    assert "flat-lay" in [preset["name"] for preset in api.get("/v1/presets")["data"]]
    page = api.get("/v1/recipes?limit=2")
    assert [recipe["id"] for recipe in page["data"]] == ["r0", "r1"] and page["next"] == "r1"
    assert api.get("/v1/recipes/r2")["body"] == {"steps": 8}
    worker = {
        "id": "w",
        "host": "h",
        "pid": 1,
        "stages": "encode,sample",
        "device": "cpu",
        "revision": "r",
        "numerics": "n",
    }
    seed.do(queries.register_worker, worker)
    seed.claim(seed.queued(2), limit=1)
    listed = api.get("/v1/workers")["data"][0]
    assert (listed["id"], listed["stages"], len(listed["jobs"])) == ("w", ["encode", "sample"], 1)
    encode = api.get("/v1/queues")["data"][0]
    assert encode == {"stage": "encode", "queued": 1, "running": 1, "messages": None}
    seen = api.get("/v1/overview")
    assert seen["batches"] == {"running": 1} and seen["workers"] == 1


def test_keys_are_made_shown_once_and_revoked(api: Api) -> None:
    made = api.post("/v1/keys", 201, json={"name": "shop", "scope": "read"})
    headers = {"authorization": f"Bearer {made['secret']}"}
    assert api.client.get("/v1/batches", headers=headers).status_code == 200
    assert api.client.get("/v1/keys", headers=headers).status_code == 403
    assert made["secret"] not in api.client.get("/v1/keys").text + api.client.get("/v1/audit").text
    assert api.client.delete(f"/v1/keys/{made['id']}").status_code == 204
    assert api.client.get("/v1/batches", headers=headers).status_code == 401
    assert [entry["action"] for entry in api.get("/v1/audit")["data"]] == ["key.revoke", "key.create"]


def test_a_scrape_tells_all_jobs_and_counts_none_of_a_batch_that_has_ended(
    api: Api, seed: Seeder, tmp_path: Path
) -> None:
    seed.batch("ended", jobs=3)
    finish(seed, "ended", tmp_path / "ended")
    assert seed.do(queries.close_batch, "ended", reopened=0, counts=seed.do(queries.count_by_state, "ended"))
    seed.do(lambda connection: connection.execute(jobs.delete()))  # as good as unread
    seed.batch("waiting", jobs=4)
    seed.queued(2, "queued", recipe="another")
    seed.batch("half", jobs=2)
    finish(seed, "half", tmp_path / "half")
    seed.batch("unread", jobs=1)
    values = {"status": BatchStatus.FAILED, "ended_at": 1.0}
    seed.do(lambda connection: connection.execute(update(batches).where(batches.c.id == "unread").values(values)))
    told = {
        tuple(re.findall(r'"(.*?)"', line)): float(line.split()[-1])
        for line in api.client.get("/metrics").text.splitlines()
        if line.startswith("kontext_jobs{")
    }
    assert {labels: count for labels, count in told.items() if count} == {
        ("", "succeeded"): 3,
        ("", "failed"): 2,
        ("", "pending"): 5,
        ("encode", "queued"): 2,
    }
    assert ("", "running") in told and ("decode", "running") in told, "what there is none of is told too"
