"""Results under attack: writers killed at work, a crash between upload and commit, a disk that fills up."""

import hashlib
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image
from sqlalchemy import Engine, update

from orchestrator.settings import Settings
from orchestrator.state import queries
from orchestrator.state.tables import jobs
from orchestrator.storage import open_object, open_store
from tests.integration.seeding import Seeder
from tests.integration.shop import CountingEditor, Shop, photo
from tests.waiting import PATIENCE_S

LARGE_BYTES = 48 << 20
WRITER = """
import json, sys
from orchestrator.settings import Settings
from orchestrator.storage import open_store

store = open_store(sys.argv[1], Settings.model_validate(json.loads(sys.argv[2])))
data = sys.argv[3].encode() * int(sys.argv[4])
print("writing", flush=True)
store.put("batch/picture.png", data)
print("written", flush=True)
"""
# A worker that is killed when its pictures are stored and nobody has been told yet.
CRASHING = """
import json, os, signal, sys
from PIL import Image
from orchestrator.settings import Settings
from orchestrator.state import queries
from orchestrator.state.database import open_database
from tests.integration.shop import CountingEditor, Shop

queries.succeed = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
settings = Settings.model_validate(json.loads(sys.argv[1]))
editor = CountingEditor(lambda size: Image.new("RGB", size, "red"))
Shop(open_database(sys.argv[2]), settings, sys.argv[3], editor).work()
"""


@pytest.fixture(params=["folder", "s3"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    """Results in a folder, and in S3."""
    s3: Settings = request.getfixturevalue("s3")
    here = {"home": tmp_path / "home", "unit_size": 4}
    return s3.model_copy(update=here | ({} if request.param == "s3" else {"results_uri": str(tmp_path / "results")}))


def start(script: str, *arguments: str) -> "subprocess.Popen[str]":
    paths = os.pathsep.join(filter(None, sys.path))
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        env={**os.environ, "PYTHONPATH": paths, "PYTHONWARNINGS": "ignore"},
        text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


@pytest.mark.parametrize("delay_s", [0.0, 0.02, 0.08])
def test_a_writer_killed_at_work_leaves_the_whole_picture_or_none(settings: Settings, delay_s: float) -> None:
    assert settings.results_uri is not None
    store = open_store(settings.results_uri, settings)
    with start(WRITER, settings.results_uri, settings.model_dump_json(), "a", str(LARGE_BYTES)) as writer:
        assert writer.stdout is not None and writer.stdout.readline() == "writing\n"
        time.sleep(delay_s)
        writer.kill()
    found = store.head("batch/picture.png")
    listed = [info.key for info in store.list()]
    if found is None:
        assert listed == []
        assert store.put("batch/picture.png", b"second")
        assert store.get("batch/picture.png") == b"second"
    else:
        assert listed == ["batch/picture.png"]
        assert store.get("batch/picture.png") == b"a" * LARGE_BYTES
        assert not store.put("batch/picture.png", b"second")


def test_of_processes_that_write_at_once_one_wins_whole(settings: Settings) -> None:
    assert settings.results_uri is not None
    given = (settings.results_uri, settings.model_dump_json())
    writers = [start(WRITER, *given, letter, str(4 << 20)) for letter in "abc"]
    for writer in writers:
        _, stderr = writer.communicate(timeout=PATIENCE_S)
        assert writer.returncode == 0, stderr
    data = open_store(settings.results_uri, settings).get("batch/picture.png")
    assert data in [letter * (4 << 20) for letter in (b"a", b"b", b"c")]


@pytest.mark.parametrize(("engine", "settings"), [("sqlite", "folder"), ("postgresql", "s3")], indirect=True)
def test_a_crash_between_upload_and_commit_ends_with_that_very_object(
    engine: Engine, settings: Settings, valkey_url: str, tmp_path: Path
) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.jpg").write_bytes(photo("green"))
    shop = Shop(engine, settings, valkey_url)
    shop.submit("b", ["a.jpg"], str(tmp_path / "photos"))
    url = engine.url.render_as_string(hide_password=False)
    with start(CRASHING, settings.model_dump_json(), url, valkey_url) as crashing:
        _, stderr = crashing.communicate(timeout=PATIENCE_S)
    assert crashing.returncode == -signal.SIGKILL, stderr
    [row] = shop.rows("b")
    assert (row["state"], row["stage"]) == ("running", "decode")
    store = open_store(f"{settings.results_uri}/b", settings)
    stored, info = store.get("photo-1.png"), store.head("photo-1.png")
    Seeder(engine).do(queries.take_back, "w", crashes_allowed=3)
    # This worker's model would draw another picture; it is not asked.
    assert shop.work()["decode"] == 0
    [row] = shop.rows("b")
    assert (row["state"], row["attempt"], row["crashes"]) == ("succeeded", 1, 1)
    assert row["sha256"] == hashlib.sha256(stored).hexdigest()
    found, key = open_object(row["result"], settings)
    assert found.get(key) == stored and store.head("photo-1.png") == info
    assert [entry.key for entry in store.list()] == ["photo-1.png"]


@contextmanager
def small_disk(folder: Path, size_bytes: int) -> Iterator[None]:
    """A disk of this size at the folder; where none can be mounted, a limit that fails writes just so."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(folder)], capture_output=True
    )
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    if mounted.returncode:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        if not mounted.returncode:
            subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
def test_a_full_disk_is_said_waited_for_and_loses_nothing(
    s3: Settings, valkey_url: str, tmp_path: Path, engine: Engine
) -> None:
    results = tmp_path / "results"
    (tmp_path / "photos").mkdir()
    for number in range(3):
        (tmp_path / f"photos/{number}.jpg").write_bytes(photo("green", (64, 64 + 16 * number)))
    settings = s3.model_copy(update={"home": tmp_path / "home", "results_uri": str(results)})
    shop = Shop(engine, settings, valkey_url, CountingEditor(lambda size: Image.effect_noise(size, 99).convert("RGB")))
    with small_disk(results, 64 << 10):
        filler = results / "filler"
        filler.write_bytes(b"x" * (60 << 10))
        shop.submit("b", [f"{number}.jpg" for number in range(3)], str(tmp_path / "photos"))
        shop.work()
        rows = shop.rows("b")
        assert [(row["state"], row["stage"], row["failures"], row["code"]) for row in rows] == [
            ("queued", "decode", 1, "storage_full")
        ] * 3
        assert all("free some space" in row["message"] and str(results) in row["message"] for row in rows)
        assert [path.name for path in results.rglob("*") if path.is_file()] == ["filler"], "no half picture is left"
    with engine.begin() as connection:
        connection.execute(update(jobs).values(run_at=None))
    # The disk is larger now; what was made before is not made again.
    calls = shop.work()
    assert calls == {"encode": 0, "sample": 0, "decode": 3}
    assert [row["state"] for row in shop.rows("b")] == ["succeeded"] * 3
    assert len(list(results.rglob("*.png"))) == 3
