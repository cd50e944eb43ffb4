"""The client against a server that runs: catalogues sent, cut off and gone on with, watched and fetched; on SQLite
with a folder, and on PostgreSQL with S3."""

import base64
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx2
import pytest
from sqlalchemy import Engine, text, update

from orchestrator import submission
from orchestrator.access.scopes import Scope
from orchestrator.api.watcher import Watcher
from orchestrator.batches import create_batch, ingest
from orchestrator.catalogs import open_catalogue
from orchestrator.client import ApiError, Asked, Client, Memory, Progress
from orchestrator.client.transport import Transport
from orchestrator.state import queries
from orchestrator.state.database import open_database, reading
from orchestrator.state.queries import Batch
from orchestrator.state.tables import batches as batch_table
from orchestrator.state.tables import jobs as job_table
from orchestrator.state.tables import metadata
from orchestrator.storage import open_store
from orchestrator.submission import make_request
from tests.integration.seeding import Seeder
from tests.integration.shop import photo
from tests.integration.site import Site, open_site
from tests.waiting import PATIENCE_S, wait_until

ASKED = Asked(preset="flat-lay")
COLOURS = ("red", "green", "blue", "white", "black", "orange", "pink", "grey")
ZEROS = "0" * 64
DOCS = Path(__file__).parents[2] / "docs" / "client.md"


@pytest.fixture(scope="module", params=["folder", "s3"])
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """SQLite and a folder, then PostgreSQL and S3."""
    folder = tmp_path_factory.mktemp("site")
    if request.param == "s3":
        engine: Engine = request.getfixturevalue("postgres_tables")
        stack = request.getfixturevalue("stack")
        given = {"results_uri": f"s3://kontext-local/{folder.name}", "local_s3_url": stack.local_s3_url}
        with open_site(engine, folder, **given) as site:
            yield site
        with engine.begin() as connection:
            connection.execute(text(f"TRUNCATE {', '.join(metadata.tables)} RESTART IDENTITY"))
        return
    engine = open_database(f"sqlite:///{folder / 'state.db'}")
    metadata.create_all(engine)
    with open_site(engine, folder) as site:
        yield site
    engine.dispose()


@pytest.fixture
def client(site: Site) -> Iterator[Client]:
    with site.client() as client:
        yield client


@pytest.fixture
def photos(tmp_path: Path, site: Site) -> Path:
    """Eight photos that no other test has, two of them in a folder of their own."""
    folder = tmp_path / "photos"
    (folder / "night").mkdir(parents=True)
    for number, colour in enumerate(COLOURS):
        name = f"night/{colour}.jpg" if number < 2 else f"{colour}.JPG"
        (folder / name).write_bytes(photo(colour) + f"{site.url}{tmp_path}".encode())
    return folder


def rows(site: Site, batch_id: str) -> list[dict[str, Any]]:
    return Seeder(site.engine).rows(batch_id)


def sent_name(path: Path) -> str:
    return f"{hashlib.sha256(path.read_bytes()).hexdigest()}{path.suffix.lower()}"


def batches(site: Site) -> list[Batch]:
    with reading(site.engine).connect() as connection:
        return queries.list_batches(connection, limit=1000)


class Cut(BaseException):
    """What a test cuts a call off with, as Ctrl-C does."""


class TestSubmitting:
    def test_a_folder_is_sent_once_and_stored_as_rows(self, site: Site, client: Client, photos: Path) -> None:
        told: list[Progress] = []
        batch = client.submit_catalogue(photos, ASKED, tell=told.append)
        assert (batch.status, batch.request_counts.total, batch.request_counts.pending) == ("running", 8, 8)
        stored = rows(site, batch.id)
        assert [row["custom_id"] for row in stored] == [
            "black", "blue", "grey", "night/green", "night/red", "orange", "pink", "white",
        ]  # fmt: skip
        for row in stored:
            source = json.loads(row["given"])["file"]
            assert row["image"] == sent_name(photos / source)
            assert site.inputs.get(row["image"]) == (photos / source).read_bytes()
        size = sum(path.stat().st_size for path in photos.rglob("*.*") if path.is_file())
        last = told[-1].images
        assert (last.bytes_total, last.bytes_done, last.sent, last.skipped) == (size, size, 8, 0)
        again = client.submit_catalogue(str(photos), ASKED, tell=told.append)
        last = told[-1].images
        assert again.id != batch.id
        assert (last.bytes_done, last.sent, last.skipped) == (size, 0, 8)

    def test_rows_become_what_they_become_on_the_servers_own_machine(
        self, site: Site, client: Client, photos: Path, tmp_path: Path
    ) -> None:
        (photos / "twin").mkdir()
        for name in ("black.JPG", "black.png"):
            (photos / "twin" / name).write_bytes(photo("navy") + str(tmp_path).encode())
        catalogue = photos / "night.csv"
        catalogue.write_text(
            "image,custom_id,prompt,steps,seed,priority,note\n"
            'black.JPG,,"quoted\nline",,7,3,x\n'
            "twin/black.JPG,,make it blue,4,,,\n"
            "twin/black.png,,make it blue,4,,,\n"
            "night/red.jpg,first,,,,,y\n"
            "night/green.jpg,first,,,,,explicit double\n"
            "s3://shop/1.jpg,,,,,,\n"
            "blue.JPG,bad steps,,many,,,\n"
            "pink.JPG,too,few\n"
            ",empty,,,,,\n"
            "gone.jpg,,,,,,\n"
            "../out.jpg,,,,,,\n"
            "leak.jpg,,,,,,\n"
        )
        (tmp_path / "secret").write_bytes(b"of this machine " + site.url.encode())
        (photos / "leak.jpg").symlink_to(tmp_path / "secret")
        sent = client.submit_catalogue(catalogue, ASKED)
        request = make_request(site.settings, {"preset": "flat-lay"})
        opened = open_catalogue(catalogue, site.settings)
        local = ingest(site.engine, create_batch(site.engine, opened, request), opened, request)
        there, here = rows(site, sent.id), rows(site, local.id)
        assert [row["line"] for row in there] == [2, *range(4, 15)]
        names = ("line", "custom_id", "recipe_id", "seed", "priority", "take")
        missing = ("image_missing", "path_outside_catalogue", "path_outside_catalogue")
        for ours, theirs in zip(here, there, strict=True):
            if theirs["code"] in missing:  # seen before it is sent; on the server's machine its worker sees it
                assert ours["state"] == "pending" and theirs["state"] == "failed"
                assert ours["custom_id"] == theirs["custom_id"]
                continue
            assert {name: theirs[name] for name in (*names, "state", "code")} == {
                name: ours[name] for name in (*names, "state", "code")
            }
        assert [row["code"] for row in there][-6:] == ["bad_steps", "wrong_column_count", "missing_image", *missing]
        assert there[-3]["message"].startswith("gone.jpg: ") and "correct the path" in there[-3]["message"]
        leaked = f"{hashlib.sha256((tmp_path / 'secret').read_bytes()).hexdigest()}.jpg"
        assert site.inputs.head(leaked) is None
        assert json.loads(there[0]["given"]) == {"priority": "3", "note": "x", "file": "black.JPG"} | (
            json.loads(here[0]["given"]) if here[0]["given"] else {}
        )
        assert there[5]["image"] == "s3://shop/1.jpg"

    def test_what_was_cut_off_while_sending_goes_on(self, site: Site, client: Client, photos: Path) -> None:
        before, told = len(batches(site)), []

        def cut(progress: Progress) -> None:
            if progress.images.sent >= 3:
                raise Cut

        with pytest.raises(Cut):
            client.submit_catalogue(photos, ASKED, tell=cut)
        assert len(batches(site)) == before
        batch = client.submit_catalogue(photos, ASKED, tell=told.append)
        last = told[-1].images
        assert last.skipped >= 3 and last.sent + last.skipped == 8 and batch.request_counts.total == 8

    def test_a_batch_whose_answer_was_lost_is_the_same_when_the_call_is_repeated(
        self, site: Site, client: Client, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before, call = {batch.id for batch in batches(site)}, Transport.call

        def lose(transport: Transport, method: str, path: str, **given: Any) -> Any:
            answer = call(transport, method, path, **given)
            if path == "/v1/batches":
                raise Cut
            return answer

        memory = Memory(tmp_path / "submissions")
        with monkeypatch.context() as patched, pytest.raises(Cut):
            patched.setattr(Transport, "call", lose)
            client.submit_catalogue(photos, ASKED, memory=memory)
        (made,) = {batch.id for batch in batches(site)} - before
        with Seeder(site.engine).engine.begin() as connection:  # as if the server had died in the midst of its rows
            connection.execute(job_table.delete().where(job_table.c.batch_id == made, job_table.c.line > 2))
            values = {"status": "ingesting", "ingested_line": 2, "total": 2, "started_at": None}
            connection.execute(update(batch_table).where(batch_table.c.id == made).values(values))
        again = client.submit_catalogue(photos, ASKED, memory=Memory(tmp_path / "submissions"))
        assert (again.id, again.request_counts.total, again.status) == (made, 8, "running")
        assert [row["line"] for row in rows(site, made)] == list(range(1, 9))
        assert list((tmp_path / "submissions").iterdir()) == []
        assert client.submit_catalogue(photos, ASKED, memory=memory).id != made

    def test_a_refused_catalogue_leaves_no_key_behind(self, client: Client, photos: Path, tmp_path: Path) -> None:
        with pytest.raises(ApiError) as caught:
            client.submit_catalogue(photos, Asked(), memory=Memory(tmp_path / "keys"))
        assert (caught.value.status, caught.value.code) == (422, "no_prompt")
        assert list((tmp_path / "keys").iterdir()) == []

    def test_an_image_that_changes_while_it_is_sent_is_told_of(
        self, client: Client, photos: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        read = Transport.read

        def change(transport: Transport, kind: Any, method: str, path: str, **given: Any) -> Any:
            plan = read(transport, kind, method, path, **given)
            if path == "/v1/uploads":
                data = bytearray((photos / "grey.JPG").read_bytes())
                data[-1] ^= 1
                (photos / "grey.JPG").write_bytes(data)
            return plan

        monkeypatch.setattr(Transport, "read", change)
        with pytest.raises(ApiError, match=r"grey\.JPG changed while it was sent") as caught:
            client.submit_catalogue(photos, ASKED)
        assert caught.value.code == "image_changed"

    def test_a_dry_run_sends_nothing(self, site: Site, client: Client, photos: Path) -> None:
        (photos / "c.csv").write_text("image\nred.jpg\ngrey.JPG\n")
        before = len(batches(site))
        told = client.dry_run(photos / "c.csv", ASKED)
        assert (told.rows, told.bad, told.recipes) == (2, 1, 1)
        assert [(error.line, error.code) for error in told.errors] == [(2, "image_missing")]
        assert len(batches(site)) == before and site.inputs.head(sent_name(photos / "grey.JPG")) is None

    def test_items_are_rows_of_python(self, site: Site, client: Client) -> None:
        items = (
            {"image": f"s3://shop/{number}.jpg", "custom_id": f"d{number}", "season": "SS27"} for number in range(5)
        )
        asked = Asked(prompt="x", options={"steps": 3}, priority=4, max_error_rate=0.0, metadata={"shop": "a"})
        batch = client.submit(items, asked, idempotency_key=f"night{site.url}")
        assert (batch.priority, batch.metadata, batch.options["max_error_rate"]) == (4, {"shop": "a"}, 0.0)
        assert [row["custom_id"] for row in rows(site, batch.id)] == [f"d{number}" for number in range(5)]

    def test_a_killed_command_goes_on_with_its_batch(
        self, site: Site, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        killed = threading.Event()

        def hold(*_: Any, **__: Any) -> None:
            killed.wait(PATIENCE_S)
            raise RuntimeError("whoever called is gone")

        for number in range(100):
            (photos / f"more-{number}.jpg").write_bytes(os.urandom(300_000))
        before, there = {batch.id for batch in batches(site)}, sum(1 for _ in site.inputs.list())
        with monkeypatch.context() as patch:
            patch.setattr(submission, "submit", hold)  # however late it is killed, it has not ended
            process = subprocess.Popen(**submitting(site, photos, tmp_path))
            wait_until(lambda: sum(1 for _ in site.inputs.list()) >= there + 20, "images are sent")
            process.send_signal(signal.SIGKILL)
            assert process.communicate(timeout=PATIENCE_S)[0] == ""
            killed.set()
        assert {batch.id for batch in batches(site)} == before
        kept = {info.key: info.modified_s for info in site.inputs.list()}
        done = subprocess.Popen(**submitting(site, photos, tmp_path))
        told, said = done.communicate(timeout=PATIENCE_S)
        assert done.returncode == 0, said
        assert {name: value for name, value in json.loads(told).items() if name != "batch"} == {
            "total": 108,
            "failed": 0,
        }
        assert {batch.id for batch in batches(site)} - before == {json.loads(told)["batch"]}
        now = {info.key: info.modified_s for info in site.inputs.list()}
        assert len(now) == there + 108 and kept.items() <= now.items()


class TestWhatIsRefused:
    def test_only_the_bytes_of_the_name_are_taken(self, site: Site) -> None:
        data = b"an image of " + site.url.encode()
        name = f"{hashlib.sha256(data).hexdigest()}.jpg"
        plan = call(site, Scope.SUBMIT, "POST", "/v1/uploads", {"names": [name]})[1]["data"][0]
        assert plan["exists"] is False
        direct = plan["url"].startswith("http")
        assert direct == (site.inputs.uri.startswith("s3://"))
        if direct:
            assert put(plan["url"], b"other bytes!", plan["headers"]) == 400
            assert put(plan["url"], data, {}) == 403
            other = base64.b64encode(hashlib.sha256(b"other bytes!").digest()).decode()
            assert put(plan["url"], b"other bytes!", {**plan["headers"], "x-amz-checksum-sha256": other}) == 403
        status, problem = call(site, Scope.SUBMIT, "PUT", f"/v1/uploads/{name}", b"other bytes!")
        assert (status, problem["code"]) == (422, "wrong_digest")
        assert site.inputs.head(name) is None
        assert put(plan["url"], data, plan["headers"]) == 200 if direct else True
        assert call(site, Scope.SUBMIT, "PUT", f"/v1/uploads/{name}", data)[0] == 204
        if direct:
            assert put(plan["url"], data, plan["headers"]) == 412
        assert site.inputs.get(name) == data

    @pytest.mark.parametrize(
        "name", ["x.jpg", "../" + "0" * 64, "0" * 64 + "/a", "0" * 63, "0" * 64 + ".j/g", "0" * 64 + "\n"]
    )
    def test_no_name_leads_out_of_the_inputs(self, site: Site, name: str) -> None:
        assert call(site, Scope.SUBMIT, "POST", "/v1/uploads", {"names": [name]})[0] == 422
        status, _ = call(site, Scope.SUBMIT, "PUT", f"/v1/uploads/{quote(name, safe='')}", b"")
        assert status in (404, 422)

    def test_rows_that_no_reader_wrote_are_refused(self, site: Site, client: Client, tmp_path: Path) -> None:
        good = '{"columns": ["image"]}\n'
        for body, told in (
            ("", "no JSON"),
            ('{"columns": ["photo"]}\n', "no column 'image'"),
            (good + '{"line": 0, "values": {}}\n', "line"),
            (
                good + '{"line": 2, "values": {"image": "x"}}\n{"line": 2, "values": {"image": "y"}}\n',
                "does not follow",
            ),
            (good + '{"line": 2, "values": {"image": "x"}, "sent": "../../x"}\n', "sent"),
            (good + '{"line": 2, "values": {"image": ["x"]}}\n', "values.image"),
            (good + "{", "record 2"),
        ):
            answer = client._transport._http.post(
                f"{site.url}/v1/batches",
                headers={"authorization": f"Bearer {site.keys[Scope.SUBMIT]}"},
                files={"file": ("c.csv.rows", body.encode())},
                data={"preset": "flat-lay"},
            )
            assert (answer.status_code, answer.json()["code"]) == (422, "bad_catalogue"), body
            assert told in answer.json()["detail"], answer.json()["detail"]

    def test_a_wrong_key_and_a_small_scope_are_told_apart_and_no_key_is_shown(self, site: Site, photos: Path) -> None:
        secret = f"kx_0123456789ab_{'x' * 43}"
        with Client(site.url, secret) as stranger, pytest.raises(ApiError, match="does not know this key") as caught:
            list(stranger.batches())
        assert (caught.value.status, caught.value.where) == (401, "GET /v1/batches")
        assert secret not in f"{caught.value!r}{stranger!r}{vars(caught.value)}"
        with site.client(Scope.READ) as reader, pytest.raises(ApiError, match="needs a key of scope submit") as caught:
            reader.submit_catalogue(photos, ASKED)
        assert (caught.value.status, caught.value.code) == (403, "scope")
        assert site.inputs.head(sent_name(photos / "grey.JPG")) is None
        with site.client(Scope.SUBMIT) as submitter:
            assert submitter.caller().scope is Scope.SUBMIT
            with pytest.raises(ApiError) as caught:
                submitter.keys()
        assert caught.value.status == 403


class TestWatchingAndFetching:
    def test_wait_ends_with_the_batch_and_its_pictures_are_fetched_once(
        self, site: Site, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        batch_id = finishable(site, client)
        with pytest.raises(TimeoutError):
            client.wait(batch_id, timeout_s=0.5)
        waits, await_change = threading.Event(), Watcher.await_change
        monkeypatch.setattr(Watcher, "await_change", lambda *given: (waits.set(), await_change(*given))[1])
        monkeypatch.setattr("orchestrator.client.client.WAIT_S", 60)
        with ThreadPoolExecutor(1) as pool:
            finishing = pool.submit(lambda: waits.wait(PATIENCE_S) and finish(site, batch_id))
            began_s = time.monotonic()
            batch = client.wait(batch_id, timeout_s=PATIENCE_S)
            assert time.monotonic() - began_s < 50, "not when a poll is over"
            finishing.result()
        assert batch.status == "completed" and batch.ended_at
        assert (batch.request_counts.succeeded, batch.request_counts.failed) == (2, 1)
        found = client.export(batch_id, tmp_path / "out")
        assert found == {"copied": 2} and (tmp_path / "out" / "d0.png").read_bytes() == b"picture of d0"
        assert len((tmp_path / "out" / "manifest.jsonl").read_text().splitlines()) == 3
        assert client.export(batch_id, tmp_path / "out") == {"equal": 2}
        (tmp_path / "out" / "d0.png").write_bytes(b"another")
        assert client.export(batch_id, tmp_path / "out") == {"equal": 1, "failed": 1}
        assert (tmp_path / "out" / "d0.png").read_bytes() == b"another"
        client.save_archive(batch_id, tmp_path / "all.zip")
        with zipfile.ZipFile(tmp_path / "all.zip") as archive:
            assert archive.read("d2.png") == b"picture of d2"
        assert not list(tmp_path.rglob(".part-*"))
        job = next(client.jobs(batch_id, codes=["unavailable"]))
        assert (job.line, job.custom_id, job.message) == (2, "d1", "no answer")

    def test_a_picture_that_is_not_its_jobs_is_not_copied(self, site: Site, client: Client, tmp_path: Path) -> None:
        batch_id = finishable(site, client)
        finish(site, batch_id)
        job = next(client.jobs(batch_id))
        store = open_store(str(job.result).rpartition("/")[0], site.settings)
        store.replace("d0.png", b"torn")
        store.delete("d2.png")
        assert client.export(batch_id, tmp_path / "out") == {"failed": 2}
        assert [path.name for path in sorted((tmp_path / "out").iterdir())] == ["manifest.csv", "manifest.jsonl"]

    def test_batches_are_asked_for_what_may_be_asked(self, site: Site, client: Client) -> None:
        batch_id = finishable(site, client)
        assert client.pause(batch_id).batch.status == "paused" and client.pause(batch_id).changed is False
        assert client.wait(batch_id).status == "paused"
        assert client.resume(batch_id).changed and client.set_priority(batch_id, 7).batch.priority == 7
        with pytest.raises(ApiError, match="cancel it before it is deleted") as caught:
            client.delete(batch_id)
        assert caught.value.status == 409
        finish(site, batch_id)
        assert client.retry(batch_id, codes=["other"]).jobs == 0 and client.retry(batch_id, lines=[2]).jobs == 1
        assert client.cancel(batch_id).batch.status == "cancelling"
        for name in ("none", "../keys"):
            with pytest.raises(ApiError) as caught:
                client.batch(name)
            assert caught.value.status == 404

    def test_a_store_that_is_not_reached_is_gone_around(
        self, site: Site, client: Client, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(self: Transport, method: str, url: str, **given: Any) -> Any:
            raise httpx2.ConnectError("no route")

        monkeypatch.setattr(Transport, "store", refuse)
        assert client.submit_catalogue(photos, ASKED).request_counts.total == 8
        assert site.inputs.head(sent_name(photos / "grey.JPG")) is not None
        batch_id = finishable(site, client)
        finish(site, batch_id)
        assert client.export(batch_id, tmp_path / "out") == {"copied": 2}


def test_the_example_of_the_documentation_runs(site: Site, photos: Path, tmp_path: Path) -> None:
    code = re.search(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    assert code is not None
    stop = threading.Event()

    def work() -> None:
        done: set[str] = set()
        while not stop.wait(0.1):
            for batch in batches(site):
                if batch.status == "running" and batch.id not in done and batch.metadata == {"season": "SS27"}:
                    finish(site, batch.id)
                    done.add(batch.id)

    worker = threading.Thread(target=work)
    worker.start()
    try:
        environment = {"KONTEXT_SERVER": site.url, "KONTEXT_API_KEY": site.keys[Scope.SUBMIT]}
        done = subprocess.run(
            [sys.executable, "-c", code[1]],
            env={**os.environ, **environment, "PYTHONPATH": os.getcwd()},
            cwd=photos.parent,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )
    finally:
        stop.set()
        worker.join()
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "flat-lays" / "grey.png").exists() and "completed" in done.stdout


def finishable(site: Site, client: Client) -> str:
    """A batch of three rows."""
    items = [{"image": f"s3://shop/{number}.jpg", "custom_id": f"d{number}"} for number in range(3)]
    return client.submit(items, ASKED).id


def finish(site: Site, batch_id: str) -> None:
    """Every job of a batch succeeds, with a picture of its own; the second one fails instead. The batch ends."""
    with reading(site.engine).connect() as connection:
        batch = queries.read_batch(connection, batch_id)
    assert batch is not None
    store, seed = open_store(batch.results_uri, site.settings), Seeder(site.engine)
    for row in seed.rows(batch_id):
        data = f"picture of {row['custom_id']}".encode()
        store.put(f"{row['custom_id']}.png", data)
        values: dict[str, Any] = {
            "state": "succeeded", "ended_at": time.time(), "result": store.locate(f"{row['custom_id']}.png"),
            "sha256": hashlib.sha256(data).hexdigest(), "sample_s": 2.0,
        }  # fmt: skip
        if row["line"] == 2:
            values = {"state": "failed", "ended_at": time.time(), "code": "unavailable", "message": "no answer"}
        seed.do(lambda c, v=values, i=row["id"]: c.execute(update(job_table).where(job_table.c.id == i).values(v)))
    assert seed.do(queries.close_batch, batch_id, reopened=batch.reopened)


def submitting(site: Site, photos: Path, folder: Path) -> dict[str, Any]:
    """How `kontext submit` is started as a process."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("KONTEXT_")}
    return {
        "args": [sys.executable, "-m", "orchestrator.cli", "submit", str(photos), "--preset", "flat-lay", "--json"],
        "env": {
            **environment,
            "KONTEXT_HOME": str(folder / "home"),
            "KONTEXT_SERVER": site.url,
            "KONTEXT_API_KEY": site.keys[Scope.SUBMIT],
        },
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "text": True,
    }


def call(site: Site, scope: Scope, method: str, path: str, body: Any) -> tuple[int, Any]:
    """A call without the client: status and JSON."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"authorization": f"Bearer {site.keys[scope]}", "content-type": "application/json"}
    request = urllib.request.Request(f"{site.url}{path}", data, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
            text = answer.read()
            return answer.status, json.loads(text) if text else None
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())


def put(url: str, data: bytes, headers: dict[str, str]) -> int:
    """What a store answers to a PUT."""
    request = urllib.request.Request(url, data, headers, method="PUT")
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code
