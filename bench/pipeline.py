"""The whole durable pipeline with a model that does nothing, against a bare chain of three no-op Celery tasks."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis
from PIL import Image
from sqlalchemy import Engine

from bench.databases import Database, fresh_database
from bench.figure import Figure
from bench.null_worker import DEFAULTS, REVISION
from kontext_model.revision import CheckpointRef
from orchestrator.batches import Request, create_batch, ingest
from orchestrator.catalogs import open_catalogue
from orchestrator.settings import Settings
from orchestrator.state import queries
from orchestrator.state.database import open_database, reading
from orchestrator.state.transitions import BatchStatus

BARS = {1: 0.5, 16: 2.0}
PATIENCE_S = 300


def measure(folder: Path, broker_url: str, *, count: int, repeats: int) -> list[Figure]:
    """Figures for both databases at unit sizes 1 and 16, the bare chain measured beside each."""
    figures = []
    for kind in ("sqlite", "postgresql"):
        for unit_size, bar in BARS.items():
            ours: list[float] = []
            theirs: list[float] = []
            for _ in range(repeats):
                with fresh_database(folder, kind) as database:
                    ours.append(count / run_pipeline(folder, database, broker_url, unit_size, count))
                theirs.append(count / run_bare_chain(broker_url, count))
            name = f"durable pipeline, null model, {kind}, unit {unit_size}, against a chain of 3 no-op tasks"
            figures.append(Figure(name, "jobs/s", ours, theirs, bar))
    return figures


def run_bare_chain(broker_url: str, count: int) -> float:
    """Seconds for `count` chains."""
    redis.Redis.from_url(broker_url).flushdb()
    command = [sys.executable, "-m", "bench.bare_chain", broker_url, str(count)]
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, timeout=PATIENCE_S).stdout.split()[0])


def run_pipeline(folder: Path, database: Database, broker_url: str, unit_size: int, count: int) -> float:
    """Seconds from the start of a batch to the end of its last job; processes were started and warmed before."""
    redis.Redis.from_url(broker_url).flushdb()
    # Photos and results in memory: what a disk takes to flush a file is not the pipeline's, and no-op tasks have none.
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else folder) as scratch:
        settings = Settings(
            database_url=database.url,
            broker_url=broker_url,
            cache_url=broker_url,
            results_uri=f"{scratch}/results",
            checkpoint="null",
            unit_size=unit_size,
            home=Path(scratch) / "home",
            threads=1,
        )
        write_photos(Path(scratch) / "warm", 2 * unit_size)
        write_photos(Path(scratch) / "photos", count)
        engine = open_database(database.url)
        with running(settings, [["-m", "bench.null_worker", "bench"], ["-m", "orchestrator.cli", "dispatch"]]):
            finish_batch(engine, settings, Path(scratch) / "warm")
            batch_id = finish_batch(engine, settings, Path(scratch) / "photos")
        with reading(engine).connect() as connection:
            batch = queries.read_batch(connection, batch_id)
            last = queries.last_end(connection, batch_id)
            counts = queries.count_by_state(connection, batch_id)
        engine.dispose()
        if counts.succeeded != count or batch is None or batch.started_at is None or last is None:
            raise RuntimeError(f"the measured batch did not succeed: {counts}")
        return last - batch.started_at


def write_photos(folder: Path, count: int) -> None:
    """Small photos, each its own picture, so that none is reused."""
    folder.mkdir(parents=True)
    for index in range(count):
        Image.new("RGB", (64, 64), (index % 256, index // 256 % 256, count % 256)).save(folder / f"{index:06d}.png")


def finish_batch(engine: Engine, settings: Settings, photos: Path) -> str:
    """Ingest a folder of photos and wait until its batch has ended."""
    assert settings.results_uri is not None
    checkpoint = CheckpointRef("null", None, REVISION, DEFAULTS)
    request = Request({"preset": "flat-lay"}, settings.results_uri, checkpoint, settings.numerics)
    catalogue = open_catalogue(photos, settings)
    batch = ingest(engine, create_batch(engine, catalogue, request), catalogue, request)
    patience = time.monotonic() + PATIENCE_S
    while time.monotonic() < patience:
        with reading(engine).connect() as connection:
            now = queries.read_batch(connection, batch.id)
        if now is not None and now.status == BatchStatus.COMPLETED:
            return batch.id
        time.sleep(0.5)
    raise TimeoutError(f"batch {batch.id} did not end within {PATIENCE_S} s")


@contextmanager
def running(settings: Settings, commands: list[list[str]]) -> Iterator[None]:
    """Python processes that live for the block, stopped in good order at its end."""
    environment = {**os.environ, **settings.environment()}
    processes = [subprocess.Popen([sys.executable, *command], env=environment) for command in commands]
    try:
        yield
    finally:
        for process in processes:
            process.send_signal(signal.SIGTERM)
        for process in processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
