"""Worker processes, stopped, hung, grown and gone deaf: real ones, around a model that takes as long as told."""

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis
from sqlalchemy import select, update

from orchestrator import dispatcher
from orchestrator.settings import Settings
from orchestrator.state.database import now, open_database, reading
from orchestrator.state.migration import upgrade
from orchestrator.state.tables import attempts, jobs, workers
from orchestrator.state.transitions import Stage
from tests.chaos.proxy import HOST, Proxy
from tests.chaos.record import START, read_record
from tests.chaos.work import submit
from tests.waiting import PATIENCE_S, wait_until

ROOT = Path(__file__).parents[2]
STUCK = 70


@dataclass
class Post:
    """One machine: a database, a broker, a folder of results, and the processes started on it."""

    settings: Settings
    folder: Path
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        assert self.settings.database_url is not None
        self.engine = open_database(self.settings.database_url)
        upgrade(self.engine)

    def start(self, *command: str, **changed: Any) -> subprocess.Popen[bytes]:
        """Start a process of the fleet with changed settings; its output goes to `log`."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("KONTEXT_")}
        told = {
            "PYTHONPATH": str(ROOT),
            "CHAOS_FOLDER": str(self.folder),
            "CHAOS_RECORD": str(self.record),
            "PYTHONUNBUFFERED": "1",
        }
        environment = inherited | self.settings.model_copy(update=changed).environment() | told
        with self.log.open("ab") as log:
            process = subprocess.Popen([sys.executable, "-m", *command], env=environment, stdout=log, stderr=log)
        self.started.append(process)
        return process

    def worker(self, name: str = "w", stages: str = ",".join(Stage), **changed: Any) -> subprocess.Popen[bytes]:
        return self.start("tests.chaos.worker", "--stages", stages, "--name", name, **changed)

    def submit(self, count: int) -> str:
        return submit(self.engine, self.settings, str(self.folder / "shop"), count)

    def tell(self, name: str, text: str = "") -> None:
        (self.folder / name).write_text(text)

    @property
    def log(self) -> Path:
        return self.folder / "log"

    @property
    def record(self) -> Path:
        return self.folder / "record"

    def said(self, text: str) -> bool:
        return self.log.exists() and text in self.log.read_text()

    def began(self, stage: Stage, worker: str = "w") -> bool:
        return any(e.kind == START and e.stage == stage and e.worker == worker for e in read_record(self.record))

    def rows(self) -> list[dict[str, Any]]:
        with reading(self.engine).connect() as connection:
            return [dict(row) for row in connection.execute(select(jobs).order_by(jobs.c.id)).mappings()]

    def outcomes(self) -> list[str]:
        with reading(self.engine).connect() as connection:
            return list(connection.execute(select(attempts.c.outcome).order_by(attempts.c.id)).scalars())

    def succeeded(self) -> int:
        return sum(row["state"] == "succeeded" for row in self.rows())

    def ended(self, worker: str = "w") -> bool:
        with reading(self.engine).connect() as connection:
            found = connection.execute(select(workers.c.ended_at).where(workers.c.id == worker)).scalar()
        return found is not None

    def forget(self, worker: str) -> None:
        """Let a worker have been silent for longer than its lease."""
        with self.engine.begin() as connection:
            connection.execute(update(workers).where(workers.c.id == worker).values(seen_at=now() - 3600))

    def freeze(self, process: subprocess.Popen[bytes]) -> None:
        """Stop a process where it stands, but within no transaction: SQLite has one lock for all."""

        def stands() -> bool:
            process.send_signal(signal.SIGSTOP)
            wait_until(lambda: psutil.Process(process.pid).status() == psutil.STATUS_STOPPED)
            free = sqlite3.connect(self.folder / "state.db", timeout=0.5, isolation_level=None)
            try:
                free.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                process.send_signal(signal.SIGCONT)
                return False
            finally:
                free.close()
            return True

        wait_until(stands, "it stands", pause_s=0.1)

    @contextmanager
    def dispatching(self) -> Iterator[None]:
        stop = threading.Event()
        thread = threading.Thread(target=dispatcher.serve, args=(self.settings, stop))
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


@pytest.fixture
def post(stack: Settings, valkey_url: str, tmp_path: Path) -> Iterator[Post]:
    changed = {
        "home": tmp_path / "home",
        "database_url": f"sqlite:///{tmp_path / 'state.db'}",
        "results_uri": str(tmp_path / "results"),
        "checkpoint": "echo",
        "unit_size": 2,
        "threads": 1,
        "heartbeat_s": 0.3,
        "lease_s": 60.0,
    }
    there = Post(stack.model_copy(update=changed), tmp_path)
    try:
        yield there
    finally:
        for process in there.started:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
            process.wait()
        there.engine.dispose()


def await_(condition: Callable[[], object]) -> float:
    """Wait until it holds; gives the seconds that it took."""
    return wait_until(condition, pause_s=0.05)


def test_a_worker_told_to_stop_ends_its_stage_and_claims_no_more(post: Post) -> None:
    post.tell("hang-sample")
    post.submit(6)
    worker = post.worker()
    with post.dispatching():
        await_(lambda: post.began(Stage.SAMPLE))
    worker.terminate()
    (post.folder / "hang-sample").unlink()
    assert worker.wait(PATIENCE_S) == 0
    rows = post.rows()
    assert [row["stage"] for row in rows].count("decode") == 2, "the unit at hand went on to the next stage"
    assert {row["state"] for row in rows} == {"queued"} and post.ended()
    assert {(row["attempt"], row["crashes"]) for row in rows} == {(0, 0)}, "and counts against nobody"


def test_a_stop_is_bounded_and_hands_back_what_is_not_done(post: Post) -> None:
    post.tell("hang-sample")
    post.submit(2)
    worker = post.worker(stop_s=1.0)
    with post.dispatching():
        await_(lambda: post.began(Stage.SAMPLE))
    worker.terminate()
    assert await_(lambda: worker.poll() is not None) < 20.0
    assert worker.returncode == 0 and post.said("KONTEXT_STOP_S")
    assert {(row["state"], row["stage"], row["attempt"], row["crashes"]) for row in post.rows()} == {
        ("queued", "sample", 1, 0)
    }
    assert post.outcomes() == ["hand_back", "hand_back"] and post.ended()


def test_a_hung_stage_ends_the_process_and_another_finishes_its_jobs(post: Post) -> None:
    post.tell("hang-sample")
    post.submit(2)
    hung = post.worker("hung", stage_deadline_s=4.0)
    with post.dispatching():
        await_(lambda: post.began(Stage.SAMPLE, "hung"))
        assert await_(lambda: hung.poll() is not None) < 40.0
        assert hung.returncode == STUCK
        assert post.said("KONTEXT_STAGE_DEADLINE_S") and post.said("in linger"), "it says what hung, and where"
        (post.folder / "hang-sample").unlink()
    post.forget("hung")
    with post.dispatching():  # one that has not looked before
        post.worker("next")
        await_(lambda: post.succeeded() == 2)
    assert {row["crashes"] for row in post.rows()} == {1}


def test_a_grown_process_starts_anew_between_two_units(post: Post) -> None:
    post.submit(2)
    worker = post.worker(worker_memory_bytes=1)
    with post.dispatching():
        assert worker.wait(PATIENCE_S) == 0
    assert post.said("KONTEXT_WORKER_MEMORY_BYTES")
    assert post.succeeded() == 2 and post.outcomes() == []


def test_a_worker_that_slept_beyond_its_lease_changes_nothing_and_ends(post: Post) -> None:
    post.tell("hang-sample")
    post.submit(4)
    zombie = post.worker("zombie")
    with post.dispatching():
        await_(lambda: post.began(Stage.SAMPLE, "zombie"))
    post.freeze(zombie)
    post.forget("zombie")
    (post.folder / "hang-sample").unlink()
    with post.dispatching():  # one that has not looked before
        post.worker("other")
        await_(lambda: post.succeeded() == 4)
        before = post.rows()
        zombie.send_signal(signal.SIGCONT)
        assert zombie.wait(PATIENCE_S) == 0
        assert post.rows() == before and post.said("declared dead")
        written = [e for e in read_record(post.record) if e.worker == "zombie" and e.kind != START]
        assert {e.kind for e in written if e.at_s > max(row["ended_at"] for row in before)} <= {"done"}


@pytest.mark.parametrize("deaf_for_ever", [False, True], ids=["once", "for-ever"])
def test_a_worker_that_hears_no_bell_reconnects_then_ends(post: Post, deaf_for_ever: bool) -> None:
    broker_url = post.settings.broker_url
    assert broker_url is not None
    port = int(broker_url.rpartition(":")[2].partition("/")[0])
    with Proxy((HOST, port)) as proxy:
        through = broker_url.replace(f":{port}/", f":{proxy.port}/")
        worker = post.worker(broker_url=through, watchdog_s=1.0 if deaf_for_ever else 4.0)
        with redis.Redis.from_url(broker_url) as broker:
            await_(lambda: any(c["cmd"] == "brpop" and c["addr"] in proxy.addresses() for c in broker.client_list()))
        assert proxy.silence() >= 1
        if deaf_for_ever:  # whoever waits for bells is cut off; all else passes
            proxy.silencing = (b"BRPOP",)
        post.submit(2)
        with post.dispatching():
            if deaf_for_ever:
                assert worker.wait(PATIENCE_S) == 0
                assert post.said("made anew") and post.said("started anew")
            else:
                await_(lambda: post.succeeded() == 2)
                assert post.said("made anew") and worker.poll() is None


def test_a_second_sigterm_kills_the_children_and_loses_nothing(post: Post) -> None:
    post.tell("hang-sample")
    post.submit(2)
    supervisor = post.start("tests.chaos.command", "worker", "--name", "first", stop_s=60.0)
    with post.dispatching():
        await_(lambda: any(e.stage == Stage.SAMPLE for e in read_record(post.record)))
        [(pid, worker)] = {(e.pid, e.worker) for e in read_record(post.record)}
        supervisor.terminate()
        await_(lambda: post.said("Warm shutdown"))
        assert supervisor.poll() is None and psutil.pid_exists(pid) and not post.said("KONTEXT_STOP_S")
        supervisor.terminate()
        assert await_(lambda: supervisor.poll() is not None) < 40.0
        assert supervisor.returncode == 0 and not psutil.pid_exists(pid)
        assert "-first-0" in worker and post.ended(worker), "its death is told, not found out"
        (post.folder / "hang-sample").unlink()
        post.worker("next")
        await_(lambda: post.succeeded() == 2)
