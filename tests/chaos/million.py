"""A million pending jobs: what the dispatcher holds in memory, and how soon work begins after everything was killed.

Owns two figures. The rows are written as an ingest leaves them; their photos do not exist, so that each job ends at
once, and what is measured is the way to it.
"""

import signal
import time
from contextlib import suppress
from pathlib import Path

import psutil
from sqlalchemy import Engine, text

from orchestrator.state import queries
from orchestrator.state.database import open_database, reading
from orchestrator.state.transitions import BatchStatus
from tests.chaos.checker import Figure
from tests.chaos.fleet import Fleet
from tests.chaos.record import START, Tail
from tests.chaos.servers import Servers, running_servers
from tests.chaos.work import submit

MEMORY_BAR_BYTES = 200e6
START_BAR_S = 5.0
SETTLED_S = 20.0
MEMBERS = ("dispatch", "host-a")


def measure(folder: Path, jobs: int) -> list[Figure]:
    """The figures with `jobs` pending jobs on PostgreSQL."""
    with running_servers(folder, "postgresql") as servers:
        assert servers.direct.database_url is not None
        engine = open_database(servers.direct.database_url)
        batch = submit(engine, servers.direct, "s3://kontext-local/million", 1)
        _multiply(engine, batch, jobs)
        (folder / "sleep-encode").write_text("0.2")
        fleet = Fleet(servers.settings.model_copy(update={"checkpoint": "echo", "threads": 1}), folder, MEMBERS)
        try:
            for member in MEMBERS:
                fleet.start(member)
            _await_start(fleet, 0.0)
            time.sleep(SETTLED_S)
            peak_bytes = max(_peak_bytes(process.pid) for process in fleet.family("dispatch"))
            waited_s = _kill_everything(engine, servers, fleet)
        finally:
            fleet.stop()
            engine.dispose()
    return [
        Figure(
            f"memory of dispatcher and rescuer at {jobs:,} pending jobs", peak_bytes / 1e6, MEMORY_BAR_BYTES / 1e6, "MB"
        ),
        Figure(
            f"kill -9 of everything with {jobs:,} pending jobs; servers answer, model loaded → first job runs",
            waited_s, START_BAR_S, "s",
        ),
    ]  # fmt: skip


def _multiply(engine: Engine, batch: str, jobs: int) -> None:
    """Make a batch of one job one of so many."""
    with engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO jobs (batch_id, line, take, custom_id, image, recipe_id, seed, priority, state)"
                " SELECT batch_id, line + n, take, 'sku-' || n, 'photos/none-' || n || '.png', recipe_id, n, 0,"
                " 'pending' FROM jobs, generate_series(1, :count) AS n WHERE batch_id = :batch"
            ),
            {"count": jobs, "batch": batch},
        )
        connection.execute(
            text("UPDATE batches SET total = total + :count WHERE id = :batch"), {"count": jobs, "batch": batch}
        )
        found = queries.read_batch(connection, batch)
        assert found is not None and found.status == BatchStatus.RUNNING
    with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        connection.execute(text("ANALYZE jobs"))


def _kill_everything(engine: Engine, servers: Servers, fleet: Fleet) -> float:
    """SIGKILL to every process, start all again; seconds from the last of servers and models to the first job."""
    for member in MEMBERS:
        fleet.lose(member)
    assert servers.postgres is not None
    for name in ("valkey", "seaweedfs"):
        servers.end(name, signal.SIGKILL)
    servers.postgres.kill()
    servers.start()
    servers.postgres.start()
    answered_s = time.monotonic()
    for member in MEMBERS:
        fleet.start(member)
    loaded_s = _await_loaded(engine)
    return _await_start(fleet, answered_s) - max(answered_s, loaded_s)


def _await_loaded(engine: Engine) -> float:
    """When a worker has registered: its model is loaded by then."""
    began = time.time()
    while True:
        with suppress(Exception), reading(engine).connect() as connection:
            if any(worker.started_at > began - 1 for worker in queries.live_workers(connection, lease_s=60)):
                return time.monotonic()
        time.sleep(0.02)


def _await_start(fleet: Fleet, after_s: float) -> float:
    """When the first job began after a time."""
    tail = Tail(fleet.record)
    deadline_s = time.monotonic() + 120
    while time.monotonic() < deadline_s:
        for event in tail.read():
            if event.kind == START and event.at_s > after_s:
                return event.at_s
        time.sleep(0.02)
    raise TimeoutError(f"no job began; the logs are in {fleet.folder}")


def _peak_bytes(pid: int) -> int:
    """Peak resident memory of a process; a shell around it counts too."""
    with suppress(OSError, psutil.Error):
        status = Path(f"/proc/{pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024
    return 0
