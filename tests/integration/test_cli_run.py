"""`kontext run` and `kontext up` as people call them: real processes, embedded servers, a tiny checkpoint."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image
from typer.testing import CliRunner

from orchestrator.cli import app
from orchestrator.local_stack import stop_stack
from orchestrator.settings import Settings

TIMEOUT_S = 150
KONTEXT = (sys.executable, "-m", "orchestrator.cli")
COLOURS = ("red", "green", "blue", "orange", "purple", "brown")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with six JPEGs in `photos` and a tiny checkpoint; no process of its home is left at the end."""
    from kontext_model.checkpoint_maker import make_checkpoint

    place = tmp_path_factory.mktemp("shop")
    make_checkpoint(place / "tiny", size="tiny")
    (place / "photos/summer").mkdir(parents=True)
    for number, colour in enumerate(COLOURS):
        Image.new("RGB", (64, 64 + 16 * number), colour).save(place / f"photos/summer/look {number}.JPG")
    yield place
    left = processes_of(place)
    stop_stack(Settings(home=place / ".kontext"))
    assert left == []


def test_database_server_of_another_schema_is_not_touched(
    fresh_database_url: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("KONTEXT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("KONTEXT_DATABASE_URL", fresh_database_url)
    monkeypatch.setenv("KONTEXT_CHECKPOINT", str(place / "tiny"))
    monkeypatch.setenv("KONTEXT_HOME", str(place / "home"))
    submit = ("submit", str(place / "photos"), "--prompt", "x", "--json")
    refused = CliRunner().invoke(app, submit)
    assert refused.exit_code == 1 and "run: kontext db upgrade" in refused.stderr
    assert CliRunner().invoke(app, ("db", "upgrade")).exit_code == 0
    stored = CliRunner().invoke(app, submit)
    assert stored.exit_code == 0 and json.loads(stored.stdout)["total"] == 6


def environment(place: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("KONTEXT_")}
    paths = os.pathsep.join(filter(None, sys.path))
    return kept | {"KONTEXT_CHECKPOINT": str(place / "tiny"), "KONTEXT_THREADS": "1", "PYTHONPATH": paths}


def start(place: Path, *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [*KONTEXT, *arguments],
        cwd=place,
        env=environment(place),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def call(place: Path, *arguments: str) -> tuple[int, str, str]:
    with start(place, *arguments) as process:
        stdout, stderr = process.communicate(timeout=TIMEOUT_S)
    return process.returncode, stdout, stderr


def run(place: Path, *arguments: str) -> dict[str, Any]:
    status, stdout, stderr = call(place, "run", *arguments, "--json")
    assert status == 0, stderr
    return dict(json.loads(stdout.splitlines()[-1]))


def read_jobs(place: Path, batch_id: str) -> list[dict[str, Any]]:
    status, stdout, stderr = call(place, "jobs", batch_id, "--json")
    assert status == 0, stderr
    return [json.loads(line) for line in stdout.splitlines()]


def read_batch_id(process: "subprocess.Popen[str]") -> str:
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("batch "):
            return line.split()[1]
    raise AssertionError("the run ended before it made a batch")


def processes_of(place: Path) -> list[str]:
    """What still runs in the folder."""
    found = []
    for process in psutil.process_iter(["cmdline", "cwd"]):
        if (process.info["cwd"] or "").startswith(str(place)):
            found.append(" ".join(process.info["cmdline"] or ()))
    return found


REQUEST = ("photos", "--preset", "flat-lay", "--out", "results")


def test_interrupted_run_is_resumed_and_makes_every_result(place: Path) -> None:
    with start(place, "run", *REQUEST, "--json") as process:
        batch_id = read_batch_id(process)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 130, stderr
    assert f"the same command resumes batch {batch_id}" in stderr
    assert json.loads(stdout.splitlines()[-1])["batch"] == batch_id
    assert processes_of(place) == []

    resumed = run(place, *REQUEST, "--sheet", "sheet.png")
    assert (resumed["batch"], resumed["status"]) == (batch_id, "completed")
    assert (resumed["total"], resumed["succeeded"], resumed["reused"]) == (6, 6, 0)
    for number in range(6):
        with Image.open(Path(resumed["results"]) / f"summer/look {number}.png") as picture:
            assert picture.format == "PNG" and picture.width % 16 == 0
    jobs = read_jobs(place, batch_id)
    assert [job["custom_id"] for job in jobs] == [f"summer/look {number}" for number in range(6)]
    assert all(hashlib.sha256(Path(job["result"]).read_bytes()).hexdigest() == job["sha256"] for job in jobs)
    with Image.open(place / "sheet.png") as sheet:
        assert sheet.width > 1500
    assert processes_of(place) == []


def test_up_works_on_what_is_submitted_and_a_second_run_samples_nothing(place: Path) -> None:
    process = start(place, "up")
    try:
        assert process.stdout is not None
        address = process.stdout.readline().split()
        assert address[0] == "serving" and address[1].startswith("http://127.0.0.1:")
        status, stdout, stderr = call(place, "submit", *REQUEST[:-2])
        assert status == 0, stderr
        done = run(place, *REQUEST[:-2])
        assert (done["batch"], done["succeeded"], done["reused"]) == (stdout.split()[-1], 6, 6)
        workers = [text for text in processes_of(place) if " -m workers " in text and "child.py" not in text]
        assert len(workers) == 1, "run brought a second worker"
        status, stdout, stderr = call(place, "export", done["batch"], "copy")
        assert status == 0 and "6 copied" in stdout, stderr
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=TIMEOUT_S)
        assert process.returncode == 0, stderr
    finally:
        process.kill()
        process.communicate()
    assert processes_of(place) == []
