"""The command line: what a call prints, which exit status it gives, and what it leaves behind."""

import hashlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from sqlalchemy import Engine
from typer.testing import CliRunner, Result

from kontext_model.revision import PARTS, Defaults
from orchestrator import checkpoints
from orchestrator.batches import read_batch
from orchestrator.cli import app
from orchestrator.cli import run as run_module
from orchestrator.cli.crew import Wanted
from orchestrator.manifest import write_manifest
from orchestrator.settings import Settings, read_settings
from orchestrator.state import queries
from orchestrator.state.database import open_database, reading
from orchestrator.state.queries import Batch, Claimed, Failed, Finished
from orchestrator.state.transitions import BatchStatus, Stage
from orchestrator.storage import open_store, result_name

SUMMARY_KEYS = {
    "batch", "status", "total", "succeeded", "failed", "cancelled", "reused", "seconds", "results", "manifest",
    "errors",
}  # fmt: skip
COUNTS = {"total", "pending", "queued", "running", "succeeded", "failed", "cancelled"}
JOB_KEYS = {
    "custom_id", "line", "take", "state", "stage", "attempt", "code", "message", "result", "sha256", "seed", "seconds",
}  # fmt: skip


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to be in, every location set to a place in it, no server anywhere."""
    for name in [name for name in os.environ if name.startswith("KONTEXT_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    checkpoint = tmp_path / "checkpoint"
    for part in PARTS:
        (checkpoint / part).mkdir(parents=True)
        (checkpoint / part / "config.json").write_text("{}")
    (checkpoint / "model_index.json").write_text("{}")
    (checkpoint / "kontext.json").write_text('{"area_px": 4096, "steps": 2}')
    monkeypatch.setenv("KONTEXT_CHECKPOINT", str(checkpoint))
    monkeypatch.setenv("KONTEXT_DATABASE_URL", f"sqlite:///{tmp_path / 'state.db'}")
    monkeypatch.setenv("KONTEXT_BROKER_URL", "redis://127.0.0.1:1/0")
    monkeypatch.setenv("KONTEXT_CACHE_URL", "redis://127.0.0.1:1/1")
    monkeypatch.setenv("KONTEXT_RESULTS_URI", str(tmp_path / "results"))
    write_catalogue(tmp_path / "rows.csv", "image,custom_id,note", "a.jpg,a,x", "b.jpg,b,y", "c.jpg,c,z")
    return tmp_path


def write_catalogue(path: Path, *lines: str) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def write_lora(path: Path) -> None:
    """A file whose header says all that the control plane looks at."""
    header = json.dumps({"x.lora_A.weight": {"dtype": "F16", "shape": [1, 2], "data_offsets": [0, 4]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


@contextmanager
def opened() -> Iterator[Engine]:
    engine = open_database(str(read_settings().database_url))
    try:
        yield engine
    finally:
        engine.dispose()


class FakeCrew:
    """Works through every batch that is stored as a whole, by itself."""

    fails: frozenset[str] = frozenset()
    waiting_for = ""

    def __init__(self, settings: Settings, engine: Engine, wanted: Wanted, say: Callable[[str], None]) -> None:
        self.settings, self.engine = settings, engine

    def stop(self) -> None:
        pass

    def tick(self) -> None:
        with reading(self.engine).connect() as connection:
            batches = queries.open_batches(connection)
        for batch in batches:
            if batch.status == BatchStatus.RUNNING:
                self._work(batch)

    def _work(self, batch: Batch) -> None:
        with self.engine.begin() as connection:
            if queries.dispatch(connection, batch.id, 100):
                given = {"revision": batch.revision, "numerics": batch.numerics, "worker_id": "w", "limit": 100}
                unit = queries.claim(connection, Stage.ENCODE, **given)
                bad = [job for job in unit if job.custom_id in self.fails]
                queries.fail(
                    connection, Stage.ENCODE, [Failed(job.id, job.attempt, 0.1, "image_missing", "gone") for job in bad]
                )
                queries.succeed(connection, Stage.ENCODE, [self._store(batch, job) for job in unit if job not in bad])
        write_manifest(self.engine, batch, self.settings)
        with self.engine.begin() as connection:
            queries.move_batch(connection, batch.id, BatchStatus.COMPLETED)

    def _store(self, batch: Batch, job: Claimed) -> Finished:
        store, data = open_store(batch.results_uri, self.settings), picture(job.custom_id)
        store.put(result_name(job.custom_id), data)
        return Finished(
            job.id, job.attempt, 0.5, store.locate(result_name(job.custom_id)), hashlib.sha256(data).hexdigest()
        )


def picture(name: str) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (16, 16), hashlib.sha256(name.encode()).digest()[:3].hex().join(("#", ""))).save(data, "PNG")
    return data.getvalue()


@pytest.fixture
def crew(monkeypatch: pytest.MonkeyPatch) -> type[FakeCrew]:
    class Crew(FakeCrew):
        pass

    monkeypatch.setattr(run_module, "Crew", Crew)
    monkeypatch.setattr(run_module, "check_redis", lambda settings: None)
    return Crew


BAD_CALLS: Mapping[str, tuple[tuple[str, ...], str]] = {
    "no such catalogue": (("nowhere.csv", "--preset", "flat-lay"), "nowhere.csv"),
    "no image column": (("no-image.csv", "--preset", "flat-lay"), "no column 'image'; rename 'imgae'"),
    "no rows": (("no-rows.csv", "--preset", "flat-lay"), "nothing to do"),
    "unknown preset": (("rows.csv", "--preset", "flatlay"), "did you mean flat-lay?"),
    "two kinds of prompt": (("rows.csv", "--preset", "flat-lay", "--prompt", "x"), "keep one"),
    "no prompt at all": (("rows.csv",), "pass --preset flat-lay or --prompt"),
    "unknown option": (("rows.csv", "--prompt", "x", "--set", "step=3"), "did you mean steps?"),
    "no value": (("rows.csv", "--prompt", "x", "--set", "steps"), "expected KEY=VALUE"),
    "wrong value": (("rows.csv", "--prompt", "x", "--set", "steps=many"), "expected a whole number, not 'many'"),
    "twice": (("rows.csv", "--prompt", "x", "--set", "steps=1", "--set", "steps=2"), "set twice"),
    "wrong seed": (("rows.csv", "--prompt", "x", "--set", "seed=-1"), "expected 0 to"),
    "priority for all": (("rows.csv", "--prompt", "x", "--set", "priority=1"), "use --priority"),
    "no such LoRA": (("rows.csv", "--prompt", "x", "--set", "lora=no.safetensors"), "there is no such file"),
    "no share": (
        ("rows.csv", "--prompt", "x", "--max-error-rate", "20"),
        "--max-error-rate: max_error_rate: expected 0",
    ),
    "no time": (("rows.csv", "--prompt", "x", "--deadline", "tomorrow"), "expected 90m, 2h, 1d or a time"),
    "a time without a zone": (("rows.csv", "--prompt", "x", "--set", "deadline=2026-11-26T06:00"), "with its zone"),
    "unknown flag": (("rows.csv", "--prompt", "x", "--bogus"), "--bogus"),
    "priority out of range": (("rows.csv", "--prompt", "x", "--priority", "101"), "100"),
    "results in a file": (("rows.csv", "--prompt", "x", "--out", "rows.csv/results"), "results cannot be written"),
    "wrong suffix": (("rows.txt", "--prompt", "x"), "rows.txt"),
    "results nowhere": (("rows.csv", "--prompt", "x", "--out", "ftp://host/x"), "ftp"),
}


@pytest.mark.parametrize("command", ["run", "submit"])
@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_call_is_one_sentence_and_makes_no_batch(place: Path, crew: type, command: str, name: str) -> None:
    write_catalogue(place / "no-image.csv", "imgae", "a.jpg")
    write_catalogue(place / "no-rows.csv", "image")
    write_catalogue(place / "rows.txt", "image", "a.jpg")
    arguments, said = BAD_CALLS[name]
    result = call(command, *arguments)
    assert result.exit_code == 2, result.output
    assert said in result.stderr and "Traceback" not in result.output
    assert result.stdout == ""
    listed = call("batches", "--json")
    assert json.loads(listed.stdout) == []


BAD_ENVIRONMENTS = {
    "unknown": ({"KONTEXT_CHEKPOINT": "x"}, "KONTEXT_CHEKPOINT is no setting; did you mean KONTEXT_CHECKPOINT?"),
    "wrong": ({"KONTEXT_UNIT_SIZE": "many"}, "KONTEXT_UNIT_SIZE='many'"),
    "no checkpoint": ({"KONTEXT_CHECKPOINT": "/no/such/folder"}, "/no/such/folder"),
    "home": ({"KONTEXT_HOME": "rows.csv/home"}, "set KONTEXT_HOME"),
    "database": ({"KONTEXT_DATABASE_URL": "mysql://x/y"}, "KONTEXT_DATABASE_URL"),
}


@pytest.mark.parametrize("name", BAD_ENVIRONMENTS)
def test_bad_setting_is_told_by_name(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    variables, said = BAD_ENVIRONMENTS[name]
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    result = call("run", "rows.csv", "--prompt", "x")
    assert result.exit_code == 2 and said in result.stderr


def test_checkpoint_without_a_part_is_told(place: Path) -> None:
    (place / "checkpoint/vae/config.json").unlink()
    result = call("submit", "rows.csv", "--prompt", "x")
    assert result.exit_code == 2 and "has no part vae/" in result.stderr


def test_dry_run_names_bad_rows_and_stores_nothing(place: Path) -> None:
    write_catalogue(place / "rows.csv", "image,steps", "a.jpg,4", "b.jpg,many", ",4")
    result = call("run", "rows.csv", "--prompt", "x", "--dry-run")
    assert result.exit_code == 3
    assert "rows.csv, line 3, column steps: steps: expected a whole number, not 'many'" in result.stdout
    assert "rows.csv, line 4, column image" in result.stdout
    assert "3 rows: 1 good, 2 bad, 1 recipe; no batch was made" in result.stdout
    assert not (place / "state.db").exists()
    told = json.loads(call("submit", "rows.csv", "--prompt", "x", "--dry-run", "--json").stdout)
    assert (told["rows"], told["bad"], [error["line"] for error in told["errors"]]) == (3, 2, [3, 4])


def test_dry_run_of_good_rows_succeeds() -> None:
    result = call("run", "rows.csv", "--preset", "flat-lay", "--dry-run")
    assert result.exit_code == 0 and "3 good, 0 bad" in result.stdout
    assert result.stdout.count("warning: ") == 1 and "are lost to CLIP's summary" in result.stdout
    told = json.loads(call("run", "rows.csv", "--preset", "flat-lay", "--dry-run", "--json").stdout)
    assert len(told["warnings"]) == 1


def test_run_to_the_end(place: Path, crew: type) -> None:
    result = call("run", "rows.csv", "--prompt", "x", "--set", "steps=3", "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout.splitlines()[-1])
    assert set(told) == SUMMARY_KEYS
    assert (told["status"], told["total"], told["succeeded"], told["failed"]) == ("completed", 3, 3, 0)
    assert told["errors"] == [] and told["results"].startswith(str(place / "results"))
    lines = Path(told["manifest"]).read_text().splitlines()
    assert [json.loads(line)["custom_id"] for line in lines] == ["a", "b", "c"]
    assert "completed: 3 of 3 ended" in result.stderr


def test_run_with_a_failed_job_gives_3_and_says_which(crew: type[FakeCrew]) -> None:
    crew.fails = frozenset({"b"})
    result = call("run", "rows.csv", "--prompt", "x", "--json")
    assert result.exit_code == 3
    told = json.loads(result.stdout.splitlines()[-1])
    assert told["errors"] == [{"custom_id": "b", "line": 3, "code": "image_missing", "message": "gone"}]
    assert (told["status"], told["succeeded"], told["failed"]) == ("completed", 2, 1)
    assert "failed: b: image_missing: gone" in result.stderr
    result = call("run", "rows.csv", "--prompt", "x")
    assert "failed    1 × image_missing" in result.stdout
    assert "kontext jobs" in result.stdout and "--state failed" in result.stdout


def test_many_failures_are_cut_and_it_is_said(place: Path, crew: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.cli.summary.ERRORS_TOLD", 2)
    write_catalogue(place / "rows.csv", "image,steps", *(f"{number}.jpg,no" for number in range(4)), "a.jpg,1")
    result = call("run", "rows.csv", "--prompt", "x", "--json")
    told = json.loads(result.stdout.splitlines()[-1])
    assert result.exit_code == 3 and told["failed"] == 4
    assert [error["line"] for error in told["errors"]] == [2, 3] and told["errors_truncated"] is True


def test_run_goes_on_with_the_unfinished_batch_of_the_same_request(crew: type) -> None:
    submitted = call("submit", "rows.csv", "--prompt", "x")
    assert submitted.exit_code == 0
    batch_id = submitted.stdout.split()[-1]
    result = call("run", "rows.csv", "--prompt", "x", "--json")
    assert json.loads(result.stdout.splitlines()[-1])["batch"] == batch_id
    assert "goes on" in result.stderr
    other = call("run", "rows.csv", "--prompt", "y", "--json")
    assert json.loads(other.stdout.splitlines()[-1])["batch"] != batch_id


def test_interrupted_run_gives_130_and_keeps_the_batch(crew: type[FakeCrew], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(self: FakeCrew) -> None:
        with reading(self.engine).connect() as connection:
            if any(batch.status == BatchStatus.RUNNING for batch in queries.open_batches(connection)):
                raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(crew, "tick", interrupt)
        result = call("run", "rows.csv", "--prompt", "x", "--json")
    assert result.exit_code == 130
    told = json.loads(result.stdout.splitlines()[-1])
    assert (told["status"], told["total"]) == ("running", 3)
    assert f"the same command resumes batch {told['batch']}" in result.stderr
    again = call("run", "rows.csv", "--prompt", "x", "--json")
    assert again.exit_code == 0 and json.loads(again.stdout.splitlines()[-1])["batch"] == told["batch"]


def test_run_of_a_paused_batch_says_so_and_gives_3(crew: type) -> None:
    batch_id = call("submit", "rows.csv", "--prompt", "x").stdout.split()[-1]
    with opened() as engine, engine.begin() as connection:
        assert queries.move_batch(connection, batch_id, BatchStatus.PAUSED, reason="asked")
    result = call("run", "rows.csv", "--prompt", "x", "--json")
    assert result.exit_code == 3 and json.loads(result.stdout.splitlines()[-1])["status"] == "paused"


def test_run_writes_a_contact_sheet(place: Path, crew: type) -> None:
    for name in "abc":
        (place / f"{name}.jpg").write_bytes(picture(name))
    result = call("run", "rows.csv", "--prompt", "x", "--sheet", "out/sheet.png")
    assert result.exit_code == 0
    assert str(place / "out/sheet.png") in result.stdout
    with Image.open(place / "out/sheet.png") as sheet:
        assert sheet.format == "PNG" and sheet.width > 1000


def test_sheet_that_cannot_be_written_is_told_before_the_work(crew: type) -> None:
    result = call("run", "rows.csv", "--prompt", "x", "--sheet", "rows.csv/sheet.png")
    assert result.exit_code == 2 and "--sheet rows.csv/sheet.png cannot be written" in result.stderr
    assert json.loads(call("batches", "--json").stdout) == []


def test_run_without_a_broker_says_so_at_once() -> None:
    result = call("run", "rows.csv", "--prompt", "x")
    assert result.exit_code == 1 and "the Redis of KONTEXT_BROKER_URL does not answer" in result.stderr
    assert json.loads(call("batches", "--json").stdout) == []


def test_submit_prints_the_id_last_and_says_how_many_rows_are_bad(place: Path) -> None:
    write_catalogue(place / "rows.csv", "image,steps", "a.jpg,4", "b.jpg,many")
    told = json.loads(call("submit", "rows.csv", "--prompt", "x", "--priority", "7", "--json").stdout)
    assert set(told) == {"batch", "total", "failed"} and (told["total"], told["failed"]) == (2, 1)
    with opened() as engine:
        batch = read_batch(engine, told["batch"])
    assert (batch.priority, batch.status) == (7, "running")
    assert batch.results_uri == f"{place / 'results'}/{batch.id}"


def test_a_seed_and_a_lora_are_asked_for_all_rows_that_say_nothing_else(place: Path) -> None:
    write_lora(place / "style.safetensors")
    write_catalogue(place / "rows.csv", "image,seed,lora_scale", "a.jpg,,", "b.jpg,7,", "c.jpg,,0.5")
    asked = ("--prompt", "x", "--set", "seed=5", "--set", "lora=style.safetensors", "--set", "lora_scale=0.8")
    batch_id = call("submit", "rows.csv", *asked).stdout.split()[-1]
    jobs = [json.loads(line) for line in call("jobs", batch_id, "--json").stdout.splitlines()]
    assert [job["seed"] for job in jobs] == [5, 7, 5]
    with opened() as engine, reading(engine).connect() as connection:
        bodies = [queries.read_recipe(connection, job["recipe"]) or {} for job in jobs]
    assert [body["lora_scale"] for body in bodies] == [0.8, 0.8, 0.5]
    digest = hashlib.sha256((place / "style.safetensors").read_bytes()).hexdigest()
    assert {(body["lora"], body["lora_sha256"]) for body in bodies} == {(str(place / "style.safetensors"), digest)}
    assert json.loads(call("show", batch_id, "--json").stdout)["options"]["lora_sha256"] == digest
    dry = json.loads(call("run", "rows.csv", *asked, "--dry-run", "--json").stdout)
    assert (dry["bad"], dry["recipes"]) == (0, 2)


def test_reports_have_the_promised_shapes(crew: type[FakeCrew]) -> None:
    crew.fails = frozenset({"c"})
    batch_id = json.loads(call("run", "rows.csv", "--prompt", "x", "--json").stdout.splitlines()[-1])["batch"]
    (listed,) = json.loads(call("batches", "--json").stdout)
    assert listed["batch"] == batch_id and set(listed["request_counts"]) == COUNTS
    shown = json.loads(call("show", batch_id, "--json").stdout)
    assert {"batch", "status", "request_counts", "reused", "reason", "catalogue", "results", "manifest", "revision",
            "created_at", "started_at", "ended_at", "seconds", "errors"} <= set(shown)  # fmt: skip
    assert set(shown["request_counts"]) == COUNTS and shown["request_counts"]["succeeded"] == 2
    assert shown["errors"] == {"image_missing": 1} and set(shown["seconds"]) == {"encode", "sample", "decode"}
    assert shown["ended_at"].endswith("Z") and shown["ended_at"] >= shown["created_at"]
    jobs = [json.loads(line) for line in call("jobs", batch_id, "--json").stdout.splitlines()]
    assert [job["line"] for job in jobs] == [2, 3, 4] and set(jobs[0]) >= JOB_KEYS
    failed = [json.loads(line) for line in call("jobs", batch_id, "--state", "failed", "--json").stdout.splitlines()]
    assert [job["custom_id"] for job in failed] == ["c"]
    assert "image_missing: gone" in call("jobs", batch_id).stdout
    assert "2 succeeded" in call("show", batch_id).stdout and batch_id in call("batches").stdout


@pytest.mark.parametrize(
    "arguments", [("show", "x"), ("jobs", "x"), ("export", "x", "out"), ("pause", "x"), ("retry", "x")]
)
def test_unknown_batch_is_a_bad_call(arguments: tuple[str, ...]) -> None:
    call("submit", "rows.csv", "--prompt", "x")
    result = call(*arguments)
    assert result.exit_code == 2 and "there is no batch 'x'; see: kontext batches" in result.stderr


def test_looking_where_no_batch_was_made_makes_nothing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KONTEXT_DATABASE_URL")
    assert json.loads(call("batches", "--json").stdout) == []
    result = call("show", "x")
    assert result.exit_code == 2 and "there are no batches in" in result.stderr
    assert not (place / ".kontext").exists()


def ask(*arguments: str) -> dict[str, Any]:
    result = call(*arguments, "--json")
    assert result.exit_code == 0, result.output
    told: dict[str, Any] = json.loads(result.stdout)
    return told


def test_a_batch_is_paused_resumed_cancelled_and_given_another_priority(place: Path) -> None:
    batch_id = call("submit", "rows.csv", "--prompt", "x").stdout.split()[-1]
    standing = {"batch": batch_id, "jobs": 0, "priority": 0}
    for changed in (True, False):
        told = ask("pause", batch_id)
        assert told == standing | {"status": "paused", "changed": changed, "reason": "by request"}
    assert "paused (by request)" in call("show", batch_id).stdout
    assert f"kontext resume {batch_id}" in call("pause", batch_id).stdout
    for changed in (True, False):
        assert ask("resume", batch_id) == standing | {"status": "running", "changed": changed, "reason": None}
    assert ask("priority", batch_id, "-5") | {"status": ""} == standing | {
        "status": "", "changed": True, "priority": -5, "reason": None,
    }  # fmt: skip
    assert call("priority", batch_id, "101").exit_code == 2
    told = ask("cancel", batch_id)
    assert (told["status"], told["changed"], told["jobs"]) == ("cancelling", True, 3)
    assert json.loads(call("show", batch_id, "--json").stdout)["request_counts"]["cancelled"] == 3
    refused = call("resume", batch_id)
    assert refused.exit_code == 2 and "is being cancelled; only a paused batch" in refused.stderr


def test_failed_jobs_are_tried_again_in_the_same_batch(crew: type[FakeCrew]) -> None:
    crew.fails = frozenset({"b", "c"})
    batch_id = run_batch()
    assert f"kontext retry {batch_id}" in call("show", batch_id).stdout
    assert "no failed job to try again that matches" in call("retry", batch_id, "--code", "other").stdout
    assert "no cancelled job" in call("retry", batch_id, "--state", "cancelled").stdout
    assert "1 jobs are pending again" in call("retry", batch_id, "--line", "3").stdout
    told = ask("retry", batch_id, "--code", "image_missing")
    assert (told["status"], told["jobs"], told["changed"]) == ("running", 1, True)
    crew.fails = frozenset()
    again = call("run", "rows.csv", "--prompt", "x", "--json")  # the same call goes on with the reopened batch
    ended = json.loads(again.stdout.splitlines()[-1])
    assert (again.exit_code, ended["batch"], ended["succeeded"]) == (0, batch_id, 3)


def test_a_batch_has_a_deadline_and_a_most_error_rate(place: Path) -> None:
    arguments = ("rows.csv", "--prompt", "x", "--max-error-rate", "0.2", "--deadline")
    shown = json.loads(call("show", call("submit", *arguments, "2h").stdout.split()[-1], "--json").stdout)
    assert shown["options"] == {"prompt": "x", "max_error_rate": 0.2, "deadline": "2h"}
    with opened() as engine:
        batch = read_batch(engine, shown["batch"])
    assert batch.deadline_at is not None and abs(batch.deadline_at - batch.created_at - 7200) < 1
    shown = json.loads(
        call("show", call("submit", *arguments, "2031-01-01T08:00+08:00").stdout.split()[-1], "--json").stdout
    )
    assert shown["deadline_at"] == "2031-01-01T00:00:00.000Z"


def test_wrong_state_is_a_bad_call() -> None:
    assert call("jobs", "x", "--state", "done").exit_code == 2


def run_batch() -> str:
    return str(json.loads(call("run", "rows.csv", "--prompt", "x", "--json").stdout.splitlines()[-1])["batch"])


def test_export_copies_checks_and_never_overwrites(place: Path, crew: type) -> None:
    batch_id = run_batch()
    result = call("export", batch_id, "copy")
    assert result.exit_code == 0 and "3 copied, 0 there already, 0 failed" in result.stdout
    assert (place / "copy/a.png").read_bytes() == picture("a")
    assert len((place / "copy/manifest.jsonl").read_text().splitlines()) == 3
    (place / "copy/a.png").unlink()
    (place / "copy/b.png").write_bytes(b"mine")
    result = call("export", batch_id, "copy")
    assert result.exit_code == 1 and "1 copied, 1 there already, 1 failed" in result.stdout
    assert "copy/b.png holds another picture" in result.stderr
    assert (place / "copy/b.png").read_bytes() == b"mine"


def test_export_refuses_a_picture_that_changed(place: Path, crew: type) -> None:
    batch_id = run_batch()
    (place / "results" / batch_id / "a.png").write_bytes(picture("other"))
    result = call("export", batch_id, "copy")
    assert result.exit_code == 1 and "its sha256 differs" in result.stderr
    assert not (place / "copy/a.png").exists() and (place / "copy/b.png").exists()


def test_export_into_a_place_that_cannot_be_written_is_a_bad_call(place: Path, crew: type) -> None:
    result = call("export", run_batch(), "rows.csv/inside")
    assert result.exit_code == 2 and "cannot be written" in result.stderr


def test_database_commands() -> None:
    before = call("db", "current")
    assert before.exit_code == 0 and before.stdout.startswith("none (newest: ")
    upgraded = call("db", "upgrade")
    assert upgraded.exit_code == 0
    assert call("db", "current").stdout.strip() == upgraded.stdout.split()[-1]


@pytest.fixture
def no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.cli.doctor._look_at_device", lambda settings: iter(()))


def examine() -> tuple[int, dict[str, dict[str, str]]]:
    result = call("doctor", "--json")
    told = json.loads(result.stdout)
    assert told["ok"] == (result.exit_code == 0)
    return result.exit_code, {check["check"]: check for check in told["checks"]}


def test_doctor_finds_what_is_wrong_and_says_what_to_do(place: Path, no_device: None) -> None:
    open_database(f"sqlite:///{place / 'state.db'}").connect().close()
    (place / "checkpoint/vae/config.json").unlink()
    status, checks = examine()
    assert status == 1
    assert {name for name, check in checks.items() if check["result"] == "fail"} == {
        "database", "broker", "cache", "checkpoint",
    }  # fmt: skip
    assert checks["database"]["hint"] == "kontext db upgrade"
    assert "KONTEXT_BROKER_URL" in checks["broker"]["hint"] and "no part vae/" in checks["checkpoint"]["found"]
    assert checks["results"]["result"] == "ok" and "KONTEXT_DATABASE_URL" in checks["settings"]["found"]
    shown = call("doctor")
    assert shown.exit_code == 1 and "kontext db upgrade" in shown.stdout


def test_doctor_of_an_untouched_home_is_content_and_starts_nothing(
    place: Path, no_device: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("DATABASE_URL", "BROKER_URL", "CACHE_URL", "RESULTS_URI", "CHECKPOINT"):
        monkeypatch.delenv(f"KONTEXT_{name}")
    status, checks = examine()
    assert status == 0, checks
    assert "does not run" in checks["valkey"]["found"]
    assert not (place / ".kontext").exists()


def test_doctor_names_a_wrong_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KONTEXT_UNIT_SIZE", "0")
    status, checks = examine()
    assert status == 1 and "KONTEXT_UNIT_SIZE='0'" in checks["settings"]["found"]


def test_worker_refuses_unknown_stages() -> None:
    result = call("worker", "--stages", "encode,smaple")
    assert result.exit_code == 2 and "expected some of encode, sample, decode" in result.stderr


def test_unexpected_error_is_one_line_and_its_traceback_is_kept(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("orchestrator.cli.submit.create_batch", fail)
    result = call("submit", "rows.csv", "--prompt", "x")
    assert result.exit_code == 1
    assert "unexpected ZeroDivisionError: a bug" in result.stderr and "Traceback" not in result.stderr
    log = place / ".kontext/logs/errors.log"
    assert str(log) in result.stderr and "ZeroDivisionError: a bug" in log.read_text()


def test_without_a_setting_the_checkpoint_is_the_packages_own(place: Path) -> None:
    pinned = checkpoints.pin_checkpoint(Settings(home=place / "home", checkpoint=None))
    assert pinned.folder == checkpoints.PACKAGED
    assert pinned.defaults == Defaults(area_px=256 * 256, text_length=144, steps=8, guidance=2.5)


def test_no_command_loads_the_model_or_the_workers() -> None:
    script = (
        "import importlib, pkgutil, sys, orchestrator.cli as cli\n"
        "print(*sorted({'sqlalchemy', 'celery', 'boto3', 'pyarrow', 'PIL'} & set(sys.modules)))\n"
        "for module in pkgutil.iter_modules(cli.__path__):\n"
        "    module.name == '__main__' or importlib.import_module(f'orchestrator.cli.{module.name}')\n"
        "print(*sorted({'torch', 'diffusers', 'transformers', 'workers'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=Path.cwd(),
                          env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})  # fmt: skip
    assert done.stdout.split("\n") == ["", "", ""], "the first line: loaded before any command is called"
