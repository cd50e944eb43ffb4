"""Two hundred who wait for a batch by long polls, and one live page: what a worker on the other core loses by them.

The API, those who wait, the dispatcher, PostgreSQL and Valkey stand on core 0, the worker alone on core 1. One worker
works through one batch; the crowd comes and goes, so that the rates compared are minutes apart on one warm process.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from sqlalchemy import Engine, select

from bench.api import SERVE
from bench.databases import fresh_database
from bench.figure import Figure
from bench.images import await_until, checkpoint_folder, live_workers, make_photo
from bench.pipeline import running
from kontext_model.revision import resolve
from orchestrator.access.keys import create_key
from orchestrator.access.scopes import Scope
from orchestrator.batches import Request, create_batch, ingest
from orchestrator.catalogs import open_catalogue
from orchestrator.local_stack import stack_status
from orchestrator.settings import Settings
from orchestrator.state.database import open_database, reading
from orchestrator.state.tables import jobs

POLLERS = 200
BAR = 0.95
HERE, AWAY = 0, 1
STEPS = 8
SETTLE_S = 4.0
# Ends of one unit are written by one statement: what is nearer than so is one unit's.
UNIT_S = 0.1
COUNTED = ("polls", "events", "parts")


def measure(folder: Path, stack: Settings, *, seconds: float, pairs: int) -> list[Figure]:
    """One figure: the worker's rate with the crowd and without, in turns of `seconds`."""
    if len(os.sched_getaffinity(0)) < 2:
        raise RuntimeError("this figure needs two cores: one for the worker, one for all else")
    memory = Path("/dev/shm")
    with (
        _standing_on(HERE),
        tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else folder) as scratch,
        fresh_database(folder, "postgresql") as database,
    ):
        postmaster = int((folder / "postgres" / "postmaster.pid").read_text().split()[0])
        for pid in (postmaster, *(server.pid for server in stack_status(stack) if server.pid)):
            _pin(pid, HERE)
        settings = stack.model_copy(
            update={
                "database_url": database.url, "results_uri": f"{scratch}/results", "home": Path(scratch) / "home",
                "checkpoint": str(checkpoint_folder(folder)), "threads": 1, "unit_size": 2,
            }
        )  # fmt: skip
        rates = _run(settings, Path(scratch), seconds, pairs)
    with_them, without, tally, server_share = rates
    wrong = {name: count for name, count in tally.items() if name not in COUNTED}
    told = ", ".join(f"{tally[name]:,} {name}" for name in COUNTED)
    note = f"{told}; errors: {wrong or 0}; the API took {server_share:.0%} of its core"
    return [
        Figure(
            f"a worker beside {POLLERS} long-pollers and a live page on the other core, against without them",
            "images/s", with_them, without, BAR, note, not wrong,
        )
    ]  # fmt: skip


def _run(
    settings: Settings, scratch: Path, seconds: float, pairs: int
) -> tuple[list[float], list[float], Counter[str], float]:
    assert settings.database_url is not None and settings.results_uri is not None
    photos = scratch / "photos"
    photos.mkdir()
    # Far more than one worker can do meanwhile: all see a batch that runs.
    for seed in range(int(8 * pairs * seconds)):
        (photos / f"{seed:05d}.jpg").write_bytes(make_photo(seed % 16))
    engine = open_database(settings.database_url)
    keys = [create_key(engine, f"caller {number}", Scope.READ).secret for number in range(POLLERS + 1)]
    asked = {"preset": "flat-lay", "steps": STEPS, "fit": "stretch", "only_changed": False}
    request = Request(asked, settings.results_uri, resolve(str(settings.checkpoint)), settings.numerics)
    catalogue = open_catalogue(str(photos), settings)
    with running(settings, [["-m", "orchestrator.cli", "dispatch"]]), _serving(settings) as (server, url):
        batch = ingest(engine, create_batch(engine, catalogue, request), catalogue, request)
        with _standing_on(AWAY), running(settings, [["-m", "workers", "--name", "bench"]]):
            await_until(lambda: live_workers(engine, settings) == 1)
            await_until(lambda: _count_ends(engine) >= 4)
            with_them, without, tally, used_s = [], [], Counter[str](), 0.0
            for _ in range(pairs):
                without.append(_rate(engine, seconds))
                with _crowd(url, batch.id, keys, tally):
                    before_s = sum(server.cpu_times()[:2])
                    with_them.append(_rate(engine, seconds))
                    used_s += sum(server.cpu_times()[:2]) - before_s
    engine.dispose()
    return with_them, without, tally, used_s / (pairs * (seconds + SETTLE_S))


def _rate(engine: Engine, seconds: float) -> float:
    """Pictures a second, from one unit's end to another's, over about so many seconds."""
    time.sleep(SETTLE_S)
    before = _count_ends(engine)
    time.sleep(seconds)
    with reading(engine).connect() as connection:
        ends = select(jobs.c.ended_at).where(jobs.c.state == "succeeded").order_by(jobs.c.ended_at).offset(before)
        times: list[float] = list(connection.execute(ends).scalars())
    later = [time_s for time_s in times if time_s > times[0] + UNIT_S]
    return len(later) / (later[-1] - times[0])


def _count_ends(engine: Engine) -> int:
    with reading(engine).connect() as connection:
        return len(connection.execute(select(jobs.c.id).where(jobs.c.state == "succeeded")).all())


@contextmanager
def _serving(settings: Settings) -> Iterator[tuple[psutil.Process, str]]:
    command = [sys.executable, "-c", SERVE, settings.model_dump_json()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            yield psutil.Process(server.pid), server.stdout.readline().strip()
        finally:
            server.terminate()


@contextmanager
def _crowd(url: str, batch: str, keys: list[str], tally: Counter[str]) -> Iterator[None]:
    """The crowd, there for the block; what it met is added to the tally."""
    command = [sys.executable, "-m", "bench.crowd", url, batch]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as crowd:
        assert crowd.stdin is not None and crowd.stdout is not None
        crowd.stdin.write("\n".join(keys))
        crowd.stdin.close()
        try:
            if crowd.stdout.readline().strip() != "here":
                raise RuntimeError("the crowd did not come: see its error above")
            yield
        finally:
            crowd.send_signal(signal.SIGTERM)
            tally.update(json.loads(crowd.stdout.readline() or "{}"))


@contextmanager
def _standing_on(core: int) -> Iterator[None]:
    """This process, and whatever it starts meanwhile, on one core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {sorted(_CORES)[core]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _pin(pid: int, core: int) -> None:
    """A process that runs already, with its children and all their threads."""
    found = psutil.Process(pid)
    for process in (found, *found.children(recursive=True)):
        for task in Path(f"/proc/{process.pid}/task").iterdir():
            with suppress(ProcessLookupError):
                os.sched_setaffinity(int(task.name), {sorted(_CORES)[core]})


_CORES = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
