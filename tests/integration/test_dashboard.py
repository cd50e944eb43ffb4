"""The pages as a browser without scripts meets them: what they show, what their forms do, what they refuse."""

import html
import io
import json
import re
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from fastapi import FastAPI
from PIL import Image
from sqlalchemy import Engine, update
from starlette.testclient import TestClient

from orchestrator import control, drafts
from orchestrator.access.keys import create_key
from orchestrator.access.scopes import Scope
from orchestrator.api.app import build_app
from orchestrator.api.cursors import write_cursor
from orchestrator.dashboard.figures import BatchEnds
from orchestrator.settings import Settings
from orchestrator.state import queries
from orchestrator.state.bulk import insert_jobs
from orchestrator.state.clock import show_time
from orchestrator.state.database import reading
from orchestrator.state.queries import Failed, Finished, Group
from orchestrator.state.tables import batches as batch_table
from orchestrator.state.tables import jobs
from orchestrator.state.transitions import BatchStatus, Stage
from tests.integration.api_client import held_connections
from tests.integration.seeding import RECIPE, REVISION, Seeder, job_row

ENCODE = Group(Stage.ENCODE, RECIPE, "", REVISION)
BODY = {
    "prompt": "press it", "negative_prompt": None, "true_cfg": 1.0, "steps": 8, "guidance": 2.5, "sampler": "euler",
    "fit": "pad", "width": None, "height": None,
}  # fmt: skip
PAGES = ("/", "/batches", "/batches/b", "/batches/b/sheet", "/jobs/1", "/jobs/3", "/workers", "/presets", "/keys",
         "/audit", "/batches/b?state=failed&code=unavailable", "/batches?status=open&q=cat")  # fmt: skip


@pytest.fixture
def app(engine: Engine, tmp_path: Path) -> FastAPI:
    url = engine.url.render_as_string(hide_password=False)
    given = {"results_uri": str(tmp_path / "results"), "api_requests_per_s": 1e6}
    return build_app(Settings(home=tmp_path, database_url=url, broker_url="redis://127.0.0.1:1/0", **given))


@pytest.fixture
def enter(app: FastAPI, engine: Engine) -> Iterator[Callable[[Scope], TestClient]]:
    """Signs a browser in with a scope; its forms' token goes with every request."""
    opened, held = ExitStack(), held_connections(app.state.resources.engine)

    def enter(scope: Scope = Scope.ADMIN) -> TestClient:
        client = opened.enter_context(TestClient(app, follow_redirects=False, raise_server_exceptions=True))
        secret = create_key(engine, "anna", scope).secret
        assert client.post("/sign-in", data={"secret": secret}).status_code == 303
        token = re.search(r'data-csrf="([^"]+)"', client.get("/presets").text)
        assert token is not None
        client.headers.update({"x-csrf-token": token[1], "accept": "text/html"})
        return client

    with opened:
        yield enter
    assert not held, "the application ends its connections"


@pytest.fixture
def client(enter: Callable[[Scope], TestClient]) -> TestClient:
    return enter(Scope.ADMIN)


@pytest.fixture
def batch(seed: Seeder, tmp_path: Path) -> Seeder:
    """Batch b: two pictures, a failure that may go away, one that will not, one job in work, one that waits."""
    photo = io.BytesIO()
    Image.new("RGB", (640, 480), "teal").save(photo, "PNG")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "1.jpg").write_bytes(photo.getvalue())
    result = tmp_path / "photos" / "result.png"
    result.write_bytes(photo.getvalue())
    seed.batch(jobs=5, image_root=str(tmp_path / "photos"), results_uri=str(tmp_path / "results" / "b"))
    with seed.engine.begin() as connection:
        queries.add_recipes(connection, {RECIPE: json.dumps(BODY)})
        bad = job_row("b", 6, None, state="failed", ended_at=1.0, code="bad_steps", message="line 6, column steps: no")
        insert_jobs(connection, [bad])
    seed.do(queries.dispatch, "b", 4)
    unit = seed.claim(ENCODE, 3)
    done = [Finished(job.id, job.attempt, 0.5, str(result), "5" * 64, "640x480") for job in unit[:2]]
    seed.do(queries.succeed, Stage.ENCODE, done)
    seed.do(queries.fail, Stage.ENCODE, [Failed(unit[2].id, 0, 0.1, "unavailable", "the <b>shop</b> does not answer")])
    seed.claim(ENCODE, 1)
    return seed


def test_every_page_is_whole_keeps_to_its_own_policy_and_links_to_pages_there_are(
    client: TestClient, batch: Seeder
) -> None:
    followed = set()
    for path in PAGES:
        answer = client.get(path)
        assert answer.status_code == 200, path
        assert answer.text.rstrip().endswith("</html>") and "<h1>" in answer.text
        assert not re.search(r"<script(?![^>]*\bsrc=)|\sstyle=|\son[a-z]+=", answer.text), "inline scripts and styles"
        followed |= {html.unescape(link) for link in re.findall(r'(?:href|src)="(/[^"]*)"', answer.text)}
    for link in followed:
        assert client.get(link).status_code == 200, link


def test_what_is_not_there_is_told_as_a_page(client: TestClient, batch: Seeder) -> None:
    for path in ("/batches/none", "/jobs/999999", "/batches/b?state=lost", "/batches/b?after=x"):
        answer = client.get(path)
        assert answer.status_code in (404, 422) and "<h1>" in answer.text and "Overview" in answer.text


def test_texts_of_catalogues_are_text(client: TestClient, batch: Seeder) -> None:
    batch.do(lambda connection: connection.execute(update(jobs).values(custom_id="<script>alert(1)</script>")
                                                   .where(jobs.c.id == 3)))  # fmt: skip
    for path in ("/batches/b", "/batches/b/sheet", "/jobs/3"):
        text = client.get(path).text
        assert "<script>alert" not in text and "<b>shop" not in text


def test_a_batch_shows_counts_that_sum_and_failures_grouped(client: TestClient, batch: Seeder) -> None:
    text = _words(client.get("/batches/b").text)
    for told in ("2 succeeded", "2 failed", "1 running", "1 pending", "4 of 6 ended", "unavailable", "Retry 1"):
        assert told in text
    assert "correct the catalogue" in text, "a bad row cannot be tried again"


def test_filters_stand_in_the_address_and_narrow_the_list(client: TestClient, batch: Seeder) -> None:
    def names(query: str) -> list[str]:
        return re.findall(r'class="name" href="/jobs/(\d+)"', client.get(f"/batches/b{query}").text)

    assert names("") == ["1", "2", "3", "4", "5", "6"]
    assert names("?state=failed") == ["3", "6"]
    assert names("?state=failed&code=unavailable") == ["3"]
    assert names("?q=PHOTO-2") == ["2"]
    assert names("?decision=approved") == []
    assert names(f"?after={write_cursor(4, 1)}") == ["5", "6"]


def test_a_group_is_retried_by_its_button(client: TestClient, batch: Seeder) -> None:
    answer = client.post("/batches/b/retry", data={"code": "unavailable"})
    assert answer.status_code == 303 and answer.headers["location"] == "/batches/b"
    for part in ("live", "jobs"):  # by the page that is being left: the answer's events have it asked for
        client.get(f"/batches/b?part={part}", headers={"hx-request": "true"})
    assert "1 job to be tried again" in client.get("/batches/b").text
    assert batch.row(3)["state"] == "pending" and batch.row(6)["state"] == "failed"
    assert "1 job to be tried again" not in client.get("/batches/b").text, "it is said once"


def test_a_batch_is_paused_resumed_and_cancelled(client: TestClient, batch: Seeder) -> None:
    for action, status in (("pause", "paused"), ("resume", "running"), ("cancel", "cancelling")):
        assert client.post(f"/batches/b/{action}").status_code == 303
        found = batch.do(queries.read_batch, "b")
        assert found is not None and found.status == status
    again = client.post("/batches/b/pause", headers={"referer": "http://testserver/batches/b?state=failed"})
    assert again.headers["location"] == "/batches/b?state=failed", "what cannot be done is said where one was"
    assert "only a running batch can be paused" in client.get("/batches/b").text
    with batch.engine.connect() as connection:
        told = [entry.action for entry in queries.list_audit(connection, limit=9)]
    assert told == ["batch.cancel", "batch.resume", "batch.pause"]


@pytest.mark.parametrize(
    ("form", "states"),
    [
        ({"do": "approve", "job": [1, 3]}, {1: "approved", 2: None}),
        ({"do": "reject", "all": "1"}, {1: "rejected", 2: "rejected"}),
    ],
)
def test_many_are_decided_at_once(
    client: TestClient, batch: Seeder, form: dict[str, object], states: dict[int, str | None]
) -> None:
    assert client.post("/batches/b/bulk", data=form).status_code == 303
    assert {job_id: batch.row(job_id)["decision"] for job_id in states} == states


def test_all_that_match_are_tried_again_and_a_take_is_made_of_each(client: TestClient, batch: Seeder) -> None:
    client.post("/batches/b/bulk?state=failed", data={"do": "retry", "all": "1"})
    assert [row["state"] for row in batch.rows()][2:] == ["pending", "running", "pending", "failed"]
    client.post("/batches/b/bulk", data={"do": "regenerate", "job": [1, 2, 4]})
    assert [(row["line"], row["take"]) for row in batch.rows()][:4] == [(1, 1), (1, 2), (2, 1), (2, 2)]
    assert "2 new takes asked for; 1 could not be" in client.get("/batches/b").text


def test_a_form_names_only_jobs_of_its_batch(client: TestClient, batch: Seeder) -> None:
    batch.batch("other", jobs=1)
    batch.do(queries.dispatch, "other", 1)
    [job] = batch.claim(ENCODE, 1)
    batch.do(queries.succeed, Stage.ENCODE, [Finished(job.id, 0, 0.1, "/r.png", "5")])
    client.post("/batches/b/bulk", data={"do": "approve", "job": [job.id]})
    client.post("/batches/b/bulk", data={"do": "retry", "job": [job.id]})
    client.post("/batches/b/bulk", data={"do": "regenerate", "job": [job.id]})
    assert batch.row(job.id)["decision"] is None and len(batch.rows("other")) == 1


def test_a_picture_is_decided_on_and_made_anew_beside_the_old(client: TestClient, batch: Seeder) -> None:
    assert client.post("/jobs/1/approve").status_code == 303
    assert batch.row(1)["decision"] == "approved"
    frame = client.post("/jobs/2/reject", headers={"hx-request": "true"})
    assert frame.status_code == 200 and 'data-decision="rejected"' in frame.text
    client.post("/jobs/2/reject")
    assert batch.row(2)["decision"] is None, "once more takes it back"
    frames = client.post("/jobs/1/regenerate", headers={"hx-request": "true"}).text
    assert re.findall(r'data-frame="(\d+)"', frames) == ["1", "7"] and "take 2" in frames
    refused = client.post("/jobs/1/regenerate", headers={"hx-request": "true"})
    assert refused.status_code == 409 and "Take 2 of this row is pending" in refused.text


def test_a_sheet_is_told_what_looks_otherwise_by_now(client: TestClient, batch: Seeder) -> None:
    seen = re.findall(r'name="seen" value="([^"]*)"', client.get("/batches/b/sheet").text)
    assert len(seen) == 4

    def changed() -> list[str]:
        answer = client.get("/batches/b/sheet", params={"part": "sheet", "seen": seen})
        assert answer.text.count('hx-swap-oob="true"') == answer.text.count("<article")
        return re.findall(r'data-frame="(\d+)" data-state="\w+" data-decision="(\w*)"', answer.text)

    assert changed() == []
    client.post("/jobs/2/reject")
    assert changed() == [("2", "rejected")], "also where somebody else decided"
    tabs = client.get("/batches/b/sheet?part=sheet&show=none").text
    assert re.findall(r'data-count="(\w+)">(\d+)', tabs) == [
        ("all", "4"), ("none", "3"), ("approved", "0"), ("rejected", "1"),
    ]  # fmt: skip
    assert client.get("/batches/b/sheet?part=sheet&seen=x").status_code == 422


def test_a_job_shows_how_its_picture_came_to_be(client: TestClient, batch: Seeder, tmp_path: Path) -> None:
    assert client.get("/jobs/1/previews").text.strip() == "", "none were recorded"
    strip = tmp_path / "results" / "b" / ".previews" / "photo-1.png"
    strip.parent.mkdir(parents=True)
    Image.new("RGB", (80 * 3, 60), "olive").save(strip)
    text = client.get("/jobs/1/previews").text
    assert re.findall(r'viewBox="([^"]*)"', text) == ["0 0 80 60", "80 0 80 60", "160 0 80 60"]
    (address,) = set(re.findall(r'image href="([^"]*)"', text))
    assert client.get(address).headers["cache-control"] == "private, max-age=86400"
    answer = client.get("/jobs/1/previews.webp")
    assert Image.open(io.BytesIO(answer.content)).size == (240, 60)
    assert client.get("/jobs/1/previews.webp", headers={"if-none-match": answer.headers["etag"]}).status_code == 304


def test_of_a_source_on_the_web_pages_show_what_a_worker_kept(
    client: TestClient, batch: Seeder, tmp_path: Path
) -> None:
    def change(job_id: int, **values: object) -> None:
        batch.do(lambda connection: connection.execute(update(jobs).where(jobs.c.id == job_id).values(**values)))

    url = "https://images.example.com/1.jpg?token=S3cret"
    change(1, image=url, image_sha256="7" * 64, fingerprint="8" * 64)
    change(5, image=url)
    sight = tmp_path / "results" / "b" / ".sights" / f"{'7' * 64}.webp"
    assert client.get("/jobs/1/source.webp").headers["content-type"] == "image/svg+xml", "it kept none"
    sight.parent.mkdir(parents=True)
    Image.new("RGB", (200, 100), "teal").save(sight)
    assert Image.open(io.BytesIO(client.get("/jobs/1/source.webp").content)).size == (96, 48)
    batch.batch("again", jobs=1, results_uri=str(tmp_path / "results" / "again"))
    reused = batch.rows("again")[0]["id"]
    change(reused, image=url, image_sha256="7" * 64, fingerprint="8" * 64, state="succeeded", reused=1)
    assert client.get(f"/jobs/{reused}/source.webp?w=320").headers["content-type"] == "image/webp"
    text = client.get("/batches/b/sheet").text
    assert ">images.example.com<" in text and "S3cret" not in text, "no worker has read it yet: whose it is"


def test_a_reader_sees_all_and_changes_nothing(enter: Callable[[Scope], TestClient], batch: Seeder) -> None:
    reader = enter(Scope.READ)
    assert "Retry 1" not in reader.get("/batches/b").text
    assert reader.get("/keys").status_code == 403
    for path in ("/batches/b/pause", "/jobs/1/approve", "/batches/b/bulk"):
        assert reader.post(path, data={"do": "approve", "job": 1}).status_code in (303, 403)
    assert batch.row(1)["decision"] is None
    found = batch.do(queries.read_batch, "b")
    assert found is not None and found.status == BatchStatus.RUNNING


def test_a_form_of_another_site_changes_nothing(client: TestClient, batch: Seeder) -> None:
    del client.headers["x-csrf-token"]
    client.post("/jobs/1/approve")
    client.post("/jobs/1/approve", data={"csrf_token": "guess"})
    assert batch.row(1)["decision"] is None


def test_the_list_is_exported_as_csv_that_runs_no_formula(client: TestClient, batch: Seeder) -> None:
    batch.do(lambda connection: connection.execute(update(jobs).values(custom_id="=1+1").where(jobs.c.id == 3)))
    answer = client.get("/batches/b/jobs.csv?state=failed")
    lines = answer.text.splitlines()
    assert len(lines) == 3 and lines[0].startswith("custom_id,line,take,state,decision")
    assert lines[1].startswith("'=1+1,3,1,failed") and "attachment" in answer.headers["content-disposition"]


def test_thumbnails_are_small_kept_and_asked_for_once(client: TestClient, batch: Seeder) -> None:
    for kind in ("source", "result"):
        answer = client.get(f"/jobs/1/{kind}.webp?w=90")
        assert answer.headers["content-type"] == "image/webp"
        assert max(Image.open(io.BytesIO(answer.content)).size) == 96
        again = client.get(f"/jobs/1/{kind}.webp?w=90", headers={"if-none-match": answer.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
    assert client.get("/jobs/2/source.webp").headers["content-type"] == "image/svg+xml", "its file is not there"
    assert client.get("/jobs/4/result.webp").status_code == 404, "it is not made yet"


def test_a_picture_is_kept_only_under_an_address_that_names_its_content(client: TestClient, batch: Seeder) -> None:
    batch.do(lambda connection: connection.execute(update(jobs).where(jobs.c.id == 1).values(image_sha256="7" * 64)))
    named = {f"/jobs/1/source.webp?w=1280&v={'7' * 12}", f"/jobs/1/result.webp?w=1280&v={'5' * 12}"}
    page = html.unescape(client.get("/jobs/1").text)
    assert named | {f"/jobs/1/result.png?v={'5' * 12}"} <= set(re.findall(r'(?:src|href)="([^"]+)"', page))
    for url in (*named, f"/jobs/1/result.png?v={'5' * 12}"):
        assert client.get(url).headers["cache-control"] == "private, max-age=86400"
        other = client.get(f"{url[:-12]}{'0' * 12}")
        assert (other.status_code, other.headers["cache-control"]) == (200, "private, no-cache"), "another job's, kept"
    for path in ("source.webp", "result.webp", "result.png"):
        assert client.get(f"/jobs/1/{path}").headers["cache-control"] == "private, no-cache"
    sheet = html.unescape(client.get("/batches/b/sheet").text)
    assert re.search(rf"/jobs/1/result\.webp\?w=\d+&v={'5' * 12}\b", sheet)


def test_a_key_is_made_shown_once_and_revoked(client: TestClient, batch: Seeder) -> None:
    made = client.post("/keys", data={"name": "shop", "scope": "submit"})
    found = re.search(r"kx_([0-9a-f]+)_[\w-]{43}", made.text)
    assert found is not None and found[0] not in client.get("/keys").text
    assert client.get("/batches", headers={"authorization": f"Bearer {found[0]}"}).status_code == 200
    client.post(f"/keys/{found[1]}/revoke")
    sent = client.get("/batches", headers={"authorization": f"Bearer {found[0]}"})
    assert sent.headers["location"] == "/sign-in?next=/batches"
    text = client.get("/audit").text
    assert "key.revoke" in text and found[0] not in text


def test_the_overview_says_why_work_stands_still(client: TestClient, batch: Seeder) -> None:
    text = _words(client.get("/").text)
    assert "Work stands still" in text and "no worker is alive" in text and "the broker does not answer" in text
    assert "unavailable" in text and "bad_steps" not in text, "of today's failures"


def _words(text: str) -> str:
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", text)).split())


def test_a_catalogue_is_dropped_its_columns_named_and_its_batch_started_once(
    client: TestClient, engine: Engine
) -> None:
    table = "Photo,SKU,note\na.jpg,1,x\nb.jpg,2,\nlost.jpg,3,\n"
    files = [("files", ("spring.csv", table.encode())), *(("files", (f"{n}.jpg", _photo())) for n in "ab")]
    dropped = client.post("/new", files=files)
    where = dropped.headers["location"]
    assert dropped.status_code == 303 and re.fullmatch(r"/new/[0-9a-f]{32}", where)
    assert client.post("/new", files=files).headers["location"] == where, "the same files make the same draft"
    text = _words(client.get(where).text)
    assert "Start 2 jobs" in text and "lost.jpg was not sent; send it too" in text, "the picture's column is guessed"
    chosen = f"{where}?choose=1&column.image=Photo&column.custom_id=SKU&preset=flat-lay&priority=3"
    page = client.get(chosen).text
    once = re.search(r'name="once" value="([0-9a-f]+)"', page)
    assert once is not None and "Start 2 jobs" in _words(page)
    made = [client.post(chosen, data={"once": once[1]}).headers["location"] for _ in range(2)]
    assert made[0] == made[1], "a form sent twice"
    with engine.connect() as connection:
        [batch] = queries.list_batches(connection, limit=9)
        rows = queries.list_jobs(connection, batch.id, limit=9).jobs
    assert (f"/batches/{batch.id}", batch.priority) == (made[0], 3)
    assert [(row["custom_id"], row["state"]) for row in rows] == [("1", "pending"), ("2", "pending"), ("3", "failed")]
    assert json.loads(rows[0]["given"]) == {"note": "x", "file": "a.jpg"}


def test_a_choice_that_changes_no_row_has_none_read_again(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    where = client.post("/new", files=[("files", ("a.jpg", _photo()))]).headers["location"]
    fetched = []
    monkeypatch.setattr(drafts, "fetch", lambda *given, fetch=drafts.fetch: fetched.append(given) or fetch(*given))
    for query, reads in (("preset=flat-lay", 1), ("preset=flat-lay&priority=3", 1), ("preset=flat-lay&deadline=2h", 1),
                         ("preset=light-grey", 2)):  # fmt: skip
        assert "Start 1 job" in _words(client.get(f"{where}?choose=1&{query}").text)
        assert len(fetched) == reads, query


def test_images_alone_and_a_zip_make_a_batch_too(client: TestClient) -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("looks/a.jpg", _photo())
    for files in ([("files", ("a.jpg", _photo())), ("files", ("a.png", _photo()))],
                  [("files", ("looks.zip", archive.getvalue()))]):  # fmt: skip
        where = client.post("/new", files=files).headers["location"]
        assert f"Start {len(files)} job" in _words(client.get(where).text)


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ([("files", ("a.exe", b"MZ"))], "is no catalogue and no image"),
        ([("files", ("a.csv", b"image\n")), ("files", ("b.csv", b"image\n"))], "one catalogue at a time"),
    ],
)
def test_what_makes_no_batch_is_said_where_it_was_dropped(client: TestClient, files: list[object], told: str) -> None:
    answer = client.post("/new", files=files, headers={"referer": "http://testserver/new"})
    assert answer.headers["location"] == "/new" and told in client.get("/new").text


def test_a_schedule_is_made_fired_paused_and_removed(client: TestClient, engine: Engine) -> None:
    form = {"name": "nightly", "cron": "0 2 * * *", "time_zone": "Asia/Shanghai", "catalogue": "s3://shop/a.csv",
            "preset": "flat-lay", "overlap": "queue"}  # fmt: skip
    refused = client.post("/schedules", data={**form, "time_zone": "Asia/Shangai"})
    assert refused.status_code == 422 and "did you mean Asia/Shanghai" in refused.text
    assert 'value="s3://shop/a.csv"' in refused.text, "the form keeps what was written"
    assert client.post("/schedules", data=form).status_code == 303
    text = _words(client.get("/schedules").text)
    assert "nightly" in text and "18:00:00 UTC" in text and "none yet" in text
    for action in ("fire", "pause"):
        assert client.post(f"/schedules/nightly/{action}").status_code == 303
    text = _words(client.get("/schedules").text)
    assert "by request" in text and "paused" in text and "Enable" in text
    client.post("/schedules/nightly/remove")
    assert "No schedule yet" in client.get("/schedules").text


def test_schedules_are_fired_with_scope_submit_and_changed_by_admins_alone(
    enter: Callable[[Scope], TestClient], seed: Seeder
) -> None:
    form = {"name": "nightly", "cron": "0 2 * * *", "catalogue": "s3://shop/a.csv"}
    admin, submitter = enter(Scope.ADMIN), enter(Scope.SUBMIT)
    assert admin.post("/schedules", data=form).status_code == 303

    def paused() -> bool:
        ((schedule, _),) = seed.do(queries.list_schedules)
        return bool(schedule.paused)

    assert submitter.post("/schedules/nightly/fire").headers["location"] == "/schedules"
    for action, before in (("pause", False), ("resume", True)):
        text = submitter.get("/schedules").text
        assert "Run now" in text and "Pause<" not in text and "Enable<" not in text
        submitter.post(f"/schedules/nightly/{action}")
        assert paused() is before
        admin.post(f"/schedules/nightly/{action}")
        assert paused() is not before
    text = admin.get("/schedules").text
    assert "Run now" in text and "Pause<" in text


def _photo() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (64, 64), "teal").save(stream, "JPEG")
    return stream.getvalue()


def test_what_an_older_version_stored_breaks_no_page_and_no_answer(client: TestClient, seed: Seeder) -> None:
    stored = {"never": float("inf"), "far": 8.6e12, "long-ago": -1e12, "in-time": 4e9}
    for batch_id, deadline_at in stored.items():
        given = {"deadline_at": deadline_at, "metadata": '{"a": "x\\ud800"}', "options": '{"prompt": "\\udfff 👗"}'}
        seed.batch(batch_id, jobs=1, **given)
    told = client.get("/v1/batches").json()["data"]
    assert {batch["id"]: batch["expires_at"] for batch in told} == {
        "never": None, "far": None, "long-ago": -62_135_596_800, "in-time": 4_000_000_000,
    }  # fmt: skip
    assert {(batch["metadata"]["a"], batch["options"]["prompt"]) for batch in told} == {("x?", "? 👗")}
    for path in ("/", "/batches", *(f"/batches/{batch_id}" for batch_id in stored)):
        assert client.get(path).status_code == 200, path
    for batch_id in stored:
        assert client.get(f"/v1/batches/{batch_id}").json()["expires_at"] in (None, -62_135_596_800, 4_000_000_000)
    assert str(show_time(-62_135_596_800)).startswith("0001-01-01")  # as `kontext show` writes it


def test_what_no_database_holds_names_nothing(client: TestClient, batch: Seeder) -> None:
    for path in ("/batches/a%00b", "/batches/a%00b/sheet", "/batches/a%00b/jobs.csv", "/batches/" + "x" * 3000):
        assert client.get(path).status_code == 404, path
    for cursor in (write_cursor(1.0, "\0"), write_cursor(1.0, "\ud800"), write_cursor(float("inf"), "b")):
        assert client.get("/batches", params={"before": cursor}).status_code == 422
    assert client.get("/batches/b", params={"after": write_cursor(2**66, 1)}).status_code == 422
    for code in ("\0", "a\0b"):
        answer = client.post("/batches/b/retry", data={"code": code}, headers={"accept": "application/json"})
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid")
    for action in ("pause", "resume", "cancel"):
        answer = client.post(f"/batches/a%00b/{action}", headers={"accept": "application/json"})
        assert answer.status_code in (404, 422), "that the database does not answer would be no truth"


def test_a_chart_counts_what_is_over_once_and_again_after_a_retry(
    seed: Seeder, monkeypatch: pytest.MonkeyPatch
) -> None:
    seed.batch("b", jobs=6)
    began_s = seed.do(queries.read_clock) - 3600
    seed.do(lambda c: c.execute(update(batch_table).values(started_at=began_s)))

    def end(line: int, state: str, ago_s: float) -> None:
        values = {"state": state, "code": "unavailable" if state == "failed" else None, "ended_at": began_s + ago_s}
        seed.do(lambda c: c.execute(update(jobs).where(jobs.c.line == line).values(**values)))

    for line, state, after_s in ((1, "succeeded", 10), (2, "failed", 20), (3, "succeeded", 3590)):
        end(line, state, after_s)
    asked: list[float] = []
    told = queries.throughput
    monkeypatch.setattr(queries, "throughput", lambda c, **given: (asked.append(given["since"]), told(c, **given))[1])
    ends = BatchEnds()

    def totals() -> tuple[int, int]:
        with reading(seed.engine).connect() as connection:
            batch = queries.read_batch(connection, "b")
            assert batch is not None
            chart = ends.chart(connection, batch, queries.read_clock(connection), 60.0)
        return sum(column.succeeded for column in chart.columns), sum(column.failed for column in chart.columns)

    assert totals() == (2, 1)
    end(4, "succeeded", 3595)
    assert totals() == (3, 1)
    assert asked[0] == asked[1] <= began_s and asked[2] == asked[3] > began_s + 3400, "what is over is not read again"
    assert control.retry(seed.engine, "b").jobs == 1
    assert totals() == (3, 0)
