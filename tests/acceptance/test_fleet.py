"""A fleet as it runs in production: separate processes on PostgreSQL, Valkey and S3, one of them killed at work."""

import csv
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import redis
from PIL import Image

from kontext_model import Edit, KontextEditor
from kontext_model.checkpoint_maker import make_checkpoint
from kontext_model.wardrobe import draw
from orchestrator.presets import PRESETS
from orchestrator.settings import Settings
from orchestrator.state import queries
from orchestrator.state.database import open_database, reading
from orchestrator.state.transitions import BatchStatus, Stage
from orchestrator.storage import open_object, open_store
from tests.waiting import wait_until

PHOTOS = 12
STEPS = 4
PATIENCE_S = 180
SHAPES = ((96, 128), (128, 96), (112, 112))


@dataclass(frozen=True)
class Fleet:
    """Servers, settings and how to call the command line on them."""

    settings: Settings
    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("KONTEXT_")}
        return inherited | self.settings.environment() | {"PYTHONWARNINGS": "ignore"}

    def kontext(self, *arguments: str) -> str:
        """Run one command to its end; gives its standard output."""
        done = subprocess.run(
            [sys.executable, "-m", "orchestrator.cli", *arguments],
            env=self.environment, cwd=self.folder, capture_output=True, text=True, timeout=PATIENCE_S,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start a command that stays."""
        command = [sys.executable, "-m", "orchestrator.cli", *arguments]
        with (self.folder / f"{arguments[-1]}.log").open("ab") as log:
            return subprocess.Popen(command, env=self.environment, cwd=self.folder, stdout=log, stderr=log)


@pytest.fixture
def fleet(stack: Settings, valkey_url: str, fresh_database_url: str, tmp_path: Path) -> Iterator[Fleet]:
    checkpoint = make_checkpoint(tmp_path / "checkpoint", size="tiny")
    settings = stack.model_copy(
        update={
            "home": tmp_path / "home",
            "database_url": fresh_database_url,
            "results_uri": "s3://kontext-local/fleet",
            "checkpoint": str(checkpoint),
            "unit_size": 4,
            "threads": 1,
            "heartbeat_s": 0.5,
            "lease_s": 8.0,
        }
    )
    running = Fleet(settings, tmp_path)
    running.kontext("db", "upgrade")
    processes = [running.start("dispatch"), running.start("dispatch")]
    processes += [running.start("worker", "--stages", stage) for stage in Stage]
    try:
        yield running
    finally:
        for process in processes:
            process.send_signal(signal.SIGTERM)
        statuses = [process.wait(PATIENCE_S) for process in processes]
    assert statuses == [0] * len(processes), "every process ends in good order"


@pytest.fixture
def catalogue(fleet: Fleet) -> str:
    """A catalogue in S3: good photos of three shapes, a missing photo, a bad cell, a file that is no image."""
    store = open_store("s3://kontext-local/shop", fleet.settings)
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(["image", "custom_id", "seed", "steps", "colour"])
    for index in range(PHOTOS):
        photo = io.BytesIO()
        draw(index, SHAPES[index % len(SHAPES)], "flat-lay").photo.save(photo, "JPEG", quality=90)
        store.put(f"photos/{index}.jpg", photo.getvalue())
        writer.writerow([f"photos/{index}.jpg", f"sku/{index}", index, "", "blau, “grün”"])
    store.put("photos/page.jpg", b"<!doctype html><title>not found</title>")
    writer.writerow(["photos/none.jpg", "missing", "", "", ""])
    writer.writerow(["photos/page.jpg", "page", "", "", ""])
    writer.writerow(["photos/0.jpg", "wrong", "", "many", ""])
    store.put("catalogue.csv", buffer.getvalue().encode())
    return "s3://kontext-local/shop/catalogue.csv"


def test_batch_survives_a_killed_worker_and_is_reused(fleet: Fleet, catalogue: str) -> None:
    arguments = ("--preset", "flat-lay", "--set", f"steps={STEPS}")
    batch = fleet.kontext("submit", catalogue, *arguments).split()[-1]
    _await(lambda: _read(fleet, queries.count_by_state, batch).succeeded >= 1)
    os.kill(_worker_pid(fleet, "sample"), signal.SIGKILL)
    _await(lambda: _read(fleet, queries.read_batch, batch).status == BatchStatus.COMPLETED)

    shown = _show(fleet, batch)
    assert shown["request_counts"] == {
        "total": PHOTOS + 3, "pending": 0, "queued": 0, "running": 0, "succeeded": PHOTOS, "failed": 3, "cancelled": 0,
    }  # fmt: skip
    jobs = {job["custom_id"]: job for job in map(json.loads, fleet.kontext("jobs", batch, "--json").splitlines())}
    assert {name: jobs[name]["code"] for name in ("missing", "page", "wrong")} == {
        "missing": "image_missing",
        "page": "image_unreadable",
        "wrong": "bad_steps",
    }
    assert "catalogue.csv, line 16, column steps" in jobs["wrong"]["message"]
    _check_pictures(fleet, jobs)
    _check_manifest(fleet, shown, jobs)

    again = fleet.kontext("submit", catalogue, *arguments).split()[-1]
    _await(lambda: _read(fleet, queries.read_batch, again).status == BatchStatus.COMPLETED)
    second = _show(fleet, again)
    assert second["reused"] == PHOTOS
    assert second["seconds"]["sample"] == 0, "a second run samples nothing"

    assert fleet.settings.broker_url is not None
    broker = redis.Redis.from_url(fleet.settings.broker_url)
    assert not broker.exists("unacked", "unacked_index"), "a bell is gone once it is heard: none may come back"


def _check_pictures(fleet: Fleet, jobs: dict[str, dict[str, Any]]) -> None:
    """Each picture is whole, and law 6 holds: the same job done alone in this process gives the same picture."""
    editor = KontextEditor.open(str(fleet.settings.checkpoint))
    store = open_store("s3://kontext-local/shop", fleet.settings)
    prompt = PRESETS["flat-lay"].prompt
    for index in range(PHOTOS):
        job = jobs[f"sku/{index}"]
        found, key = open_object(job["result"], fleet.settings)
        data = found.get(key)
        assert hashlib.sha256(data).hexdigest() == job["sha256"]
        photo = Image.open(io.BytesIO(store.get(f"photos/{index}.jpg")))
        [alone] = editor([photo], [Edit(prompt, seed=index, steps=STEPS)])
        picture = Image.open(io.BytesIO(data))
        difference = np.abs(np.asarray(picture, np.int16) - np.asarray(alone, np.int16))
        assert difference.max() <= 2 and (difference > 1).mean() <= 0.001


def _check_manifest(fleet: Fleet, shown: dict[str, Any], jobs: dict[str, dict[str, Any]]) -> None:
    store, key = open_object(shown["manifest"], fleet.settings)
    lines = [json.loads(line) for line in store.get(key).decode().splitlines()]
    assert [line["line"] for line in lines] == list(range(2, PHOTOS + 5))
    assert {line["custom_id"]: line["sha256"] for line in lines} == {name: job["sha256"] for name, job in jobs.items()}
    table = list(csv.DictReader(io.StringIO(store.get(key.replace(".jsonl", ".csv")).decode())))
    assert table[0]["colour"] == "blau, “grün”" and table[0]["status"] == "succeeded"


def _show(fleet: Fleet, batch: str) -> Any:
    return json.loads(fleet.kontext("show", batch, "--json"))


def _worker_pid(fleet: Fleet, stages: str) -> int:
    """The process that serves these stages, not its supervisor."""
    alive = _read(fleet, lambda connection: queries.live_workers(connection, lease_s=60))
    [worker] = [each for each in alive if each.stages == stages]
    assert psutil.pid_exists(worker.pid)
    return int(worker.pid)


def _read(fleet: Fleet, query: Callable[..., Any], *arguments: object) -> Any:
    assert fleet.settings.database_url is not None
    engine = open_database(fleet.settings.database_url)
    try:
        with reading(engine).connect() as connection:
            return query(connection, *arguments)
    finally:
        engine.dispose()


def _await(condition: Callable[[], bool]) -> None:
    wait_until(condition, patience_s=PATIENCE_S, pause_s=0.1)
