"""Images a second, S3 in and S3 out, against a plain loop over diffusers' own pipeline, one image at a time."""

import io
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sqlalchemy import Engine

from bench.databases import fresh_database
from bench.figure import Figure
from bench.pipeline import PATIENCE_S, running
from kontext_model import wardrobe
from kontext_model.checkpoint_maker import make_checkpoint
from kontext_model.revision import resolve
from kontext_model.wardrobe import draw
from orchestrator.batches import Request, create_batch, ingest
from orchestrator.catalogs import open_catalogue
from orchestrator.manifest import describe_jobs
from orchestrator.settings import Settings
from orchestrator.state import queries
from orchestrator.state.database import open_database, reading
from orchestrator.state.transitions import BatchStatus
from orchestrator.storage import open_object, open_store

STEPS, SIDE_PX = 8, 256
PRESET = "flat-lay"
# One process a core: a small model gains more from a second image than from a second thread.
WORKERS = 2
BUCKET = "s3://kontext-local"
BAR = 1.2


def measure(folder: Path, stack: Settings, *, photos: int, repeats: int) -> list[Figure]:
    """One figure: the same photos, checkpoint, steps and prompt on both sides; pictures compared as law 6 says."""
    checkpoint = checkpoint_folder(folder)
    ours: list[float] = []
    theirs: list[float] = []
    worst = 0.0
    for repeat in range(repeats):
        prefix = f"{BUCKET}/bench/{repeat}"
        store = open_store(f"{prefix}/in", stack)
        for index in range(photos):
            store.put(f"{index:04d}.jpg", make_photo(1_000 * repeat + index))
        theirs.append(photos / _run_loop(stack, checkpoint, prefix))
        with fresh_database(folder, "sqlite") as database:
            settings = stack.model_copy(
                update={"database_url": database.url, "checkpoint": str(checkpoint), "unit_size": 8, "threads": 1}
            )
            seconds, results = _run_ours(settings, prefix)
            ours.append(photos / seconds)
            worst = max(worst, _compare(settings, prefix, results))
    note = f"values more than 1 level apart: {worst:.4%}"
    return [
        Figure(
            f"{photos} photos {SIDE_PX}², {STEPS} steps, S3 to S3", "images/s", ours, theirs, BAR, note, worst <= 0.001
        )
    ]


def make_photo(seed: int) -> bytes:
    """A drawn photo as a JPEG, the same for the same seed."""
    buffer = io.BytesIO()
    draw(seed, SIDE_PX, "flat-lay").photo.save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


def checkpoint_folder(folder: Path) -> Path:
    """The small checkpoint that is shipped; where it is not, one like it with random weights."""
    shipped = Path(wardrobe.__file__).parent / "checkpoint"
    return shipped if shipped.is_dir() else make_checkpoint(folder / "checkpoint", size="small")


def _run_loop(stack: Settings, checkpoint: Path, prefix: str) -> float:
    """Seconds of the plain loop, in a process of its own that leaves its pictures under `prefix`/loop."""
    command = [sys.executable, "-m", "bench.plain_loop", str(checkpoint), prefix, str(STEPS)]
    environment = {**os.environ, **stack.environment()}
    return float(subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1])


def _run_ours(settings: Settings, prefix: str) -> tuple[float, dict[str, str]]:
    """Seconds from the batch's start to its last picture, and the results by custom_id; workers are warm."""
    assert settings.database_url is not None
    engine = open_database(settings.database_url)
    request = Request(
        {"preset": PRESET, "steps": STEPS, "fit": "stretch"},
        f"{prefix}/out",
        resolve(str(settings.checkpoint)),
        settings.numerics,
    )
    workers = [["-m", "workers", "--stages", "encode,sample,decode", "--name", f"bench-{i}"] for i in range(WORKERS)]
    with running(settings, [*workers, ["-m", "orchestrator.cli", "dispatch"]]):
        await_until(lambda: live_workers(engine, settings) == WORKERS)
        catalogue = open_catalogue(f"{prefix}/in/", settings)
        batch = ingest(engine, create_batch(engine, catalogue, request), catalogue, request)
        await_until(lambda: _ended(engine, batch.id))
    jobs = list(describe_jobs(engine, batch))
    with reading(engine).connect() as connection:
        done = queries.read_batch(connection, batch.id)
        last = queries.last_end(connection, batch.id)
    engine.dispose()
    failed = [job for job in jobs if job["result"] is None]
    if failed or done is None or done.started_at is None or last is None:
        raise RuntimeError(f"the measured batch did not succeed: {failed[:3]}")
    return last - done.started_at, {job["custom_id"]: job["result"] for job in jobs}


def _compare(settings: Settings, prefix: str, results: dict[str, str]) -> float:
    """The largest share of values in any picture that is more than 1 level from the loop's; 1 when one is over 2."""
    worst = 0.0
    for custom_id, uri in results.items():
        store, key = open_object(uri, settings)
        mine = _pixels(store.get(key))
        its_store, its_key = open_object(f"{prefix}/loop/{custom_id}.png", settings)
        difference = np.abs(mine - _pixels(its_store.get(its_key)))
        worst = max(worst, 1.0 if difference.max() > 2 else float((difference > 1).mean()))
    return worst


def _pixels(data: bytes) -> Any:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), dtype=np.int16)


def live_workers(engine: Engine, settings: Settings) -> int:
    """How many workers are ready."""
    with reading(engine).connect() as connection:
        return len(queries.live_workers(connection, lease_s=settings.lease_s))


def _ended(engine: Engine, batch_id: str) -> bool:
    with reading(engine).connect() as connection:
        batch = queries.read_batch(connection, batch_id)
    return batch is not None and batch.status == BatchStatus.COMPLETED


def await_until(condition: Callable[[], bool]) -> None:
    """Wait for a condition. Raises TimeoutError."""
    patience = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > patience:
            raise TimeoutError(f"nothing came of it within {PATIENCE_S} s")
        time.sleep(0.25)
