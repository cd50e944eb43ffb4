"""The processes a command brings along, the servers it shares, and what it shows of a batch's progress."""

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import Engine

from orchestrator.cli import crew as crew_module
from orchestrator.cli import locations
from orchestrator.cli.crew import Crew, Wanted, hold_marker, interruptible, missing_stages, read_marker
from orchestrator.cli.display import LineDisplay
from orchestrator.cli.failures import RunError
from orchestrator.local_stack import ServerStatus
from orchestrator.progress import Pace, Snapshot, show_duration
from orchestrator.settings import Settings
from orchestrator.state import queries
from orchestrator.state.database import open_database
from orchestrator.state.queries import Batch, BatchCounts, Worker
from orchestrator.state.tables import metadata
from orchestrator.state.transitions import BatchStatus, Stage
from tests.waiting import PATIENCE_S, wait_until

WANTED = Wanted("a" * 40, "float32/v1")
SLEEP = (sys.executable, "-c", "import time; time.sleep(60)")


@pytest.fixture
def engine(settings: Settings) -> Iterator[Engine]:
    engine = open_database(f"sqlite:///{settings.home / 'state.db'}")
    metadata.create_all(engine)
    yield engine
    engine.dispose()


@pytest.fixture(autouse=True)
def commands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew_module, "DISPATCH", SLEEP)
    monkeypatch.setattr(crew_module, "worker_command", lambda stages: SLEEP)
    monkeypatch.setattr(crew_module, "CHECK_S", 0.0)


def register(engine: Engine, name: str, stages: str, wanted: Wanted = WANTED) -> None:
    worker = {"id": name, "host": "h", "pid": 1, "stages": stages, "device": "cpu", "rss_bytes": 1}
    with engine.begin() as connection:
        queries.register_worker(connection, worker | {"revision": wanted.revision, "numerics": wanted.numerics})


def started(crew: Crew) -> set[str]:
    return set(crew._supervisors)


def worker(stages: str, revision: str = WANTED.revision, numerics: str = WANTED.numerics) -> Worker:
    return Worker("w", "h", 1, stages, "cpu", revision, numerics, 0.0, 0.0, None, 0)


def test_stages_are_missing_unless_workers_of_the_same_revision_and_numerics_do_them() -> None:
    assert missing_stages([worker("encode,decode"), worker("sample")], WANTED) == []
    assert missing_stages([worker("encode")], WANTED) == [Stage.SAMPLE, Stage.DECODE]
    others = [worker("encode,sample,decode", revision="b" * 40), worker("encode,sample,decode", numerics="bfloat16/v1")]
    assert missing_stages(others, WANTED) == list(Stage)


def test_alone_a_run_brings_a_dispatcher_and_a_worker(settings: Settings, engine: Engine) -> None:
    crew = Crew(settings, engine, WANTED, print)
    try:
        crew.tick()
        assert started(crew) == {"dispatcher", "worker"}
        assert crew.waiting_for == "the worker is starting"
    finally:
        crew.stop(0.0)


def test_a_fleet_is_used_as_it_is(settings: Settings, engine: Engine) -> None:
    register(engine, "gpu-1", "sample")
    register(engine, "cpu-1", "encode,decode")
    crew = Crew(settings, engine, WANTED, print)
    try:
        crew.tick()
        assert started(crew) == {"dispatcher"} and crew.waiting_for == ""
    finally:
        crew.stop(0.0)


def test_beside_a_running_up_nothing_is_brought(settings: Settings, engine: Engine) -> None:
    crew = Crew(settings, engine, WANTED, print)
    with hold_marker(settings.home) as note:
        note(WANTED)
        crew.tick()
        assert started(crew) == set() and crew.waiting_for == "waiting for a worker"


def test_an_up_of_another_checkpoint_dispatches_only(settings: Settings, engine: Engine) -> None:
    crew = Crew(settings, engine, WANTED, print)
    with hold_marker(settings.home) as note:
        note(Wanted("b" * 40, "float32/v1"))
        try:
            crew.tick()
            assert started(crew) == {"worker"}
        finally:
            crew.stop(0.0)


def test_a_worker_that_goes_away_is_replaced_after_some_patience(
    settings: Settings, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    register(engine, "gone", "encode,sample,decode")
    register(engine, "other", "encode,sample,decode", Wanted("b" * 40, "float32/v1"))
    crew = Crew(settings, engine, WANTED, said.append)
    try:
        crew.tick()
        with engine.begin() as connection:
            queries.end_worker(connection, "gone")
        crew.tick()
        assert started(crew) == {"dispatcher"}
        monkeypatch.setattr(crew_module, "LOST_PATIENCE_S", 0.0)
        crew._patience_s = 0.0
        crew.tick()
        assert started(crew) == {"dispatcher", "worker"}
        assert "encode, sample, decode of revision aaaaaaaaaaaa" in said[0] and "other does encode" in said[0]
    finally:
        crew.stop(0.0)


def test_a_worker_that_cannot_start_ends_the_run_with_its_last_words(
    settings: Settings, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    hopeless = (sys.executable, "-c", "import sys; print('vae/ lacks a key'); sys.exit(2)")
    monkeypatch.setattr(crew_module, "worker_command", lambda stages: hopeless)
    log = settings.home / "logs/worker.log"
    log.parent.mkdir(parents=True)
    log.write_text("of an earlier run\n")
    crew = Crew(settings, engine, WANTED, print)
    try:
        with pytest.raises(RunError, match="vae/ lacks a key") as caught:
            wait_until(crew.tick, "it gives up")
        assert str(log) in str(caught.value) and "of an earlier run" not in str(caught.value)
        assert log.read_text().count("vae/ lacks a key") == 1, "status 2 means that trying again is of no use"
    finally:
        crew.stop(0.0)


def test_a_dead_worker_is_marked_in_sql_at_once(settings: Settings, engine: Engine) -> None:
    said: list[str] = []
    crew = Crew(settings, engine, WANTED, said.append)
    register(engine, "w-0", "encode")
    crew._note_death("worker", "w-0", -signal.SIGKILL)
    with engine.begin() as connection:
        assert queries.live_workers(connection, lease_s=60) == []
    assert "killed by SIGKILL" in said[0]


def test_second_stop_kills_at_once(settings: Settings, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    ignore = "signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    deaf = f"import signal, time; {ignore}; print('up', flush=True); time.sleep(600)"
    monkeypatch.setattr(crew_module, "worker_command", lambda stages: (sys.executable, "-c", deaf))
    crew = Crew(settings.model_copy(update={"stop_s": 300.0}), engine, WANTED, print)
    crew.tick()
    log = settings.home / "logs/worker.log"
    wait_until(lambda: log.exists() and "up" in log.read_text(), "the worker is deaf")
    crew._stopping = True  # as the first call left it, interrupted
    began_s = time.monotonic()
    crew.stop()
    assert time.monotonic() - began_s < 60


def test_one_up_per_home_and_the_mark_dies_with_its_process(settings: Settings) -> None:
    script = (
        "import sys, time; from pathlib import Path; from orchestrator.cli.crew import *\n"
        "with hold_marker(Path(sys.argv[1])) as note:\n"
        "    note(Wanted('r', 'n')); print('held', flush=True); time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(settings.home)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert read_marker(settings.home) is None
    with process:
        assert process.stdout is not None and process.stdout.readline() == b"held\n"
        assert read_marker(settings.home) == Wanted("r", "n")
        with pytest.raises(RunError, match=r"runs in .* already"), hold_marker(settings.home):
            pass
        process.kill()
    assert read_marker(settings.home) is None
    with hold_marker(settings.home):
        assert read_marker(settings.home) == Wanted("", "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_interrupt_as_ctrl_c_does(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), interruptible():
        os.kill(os.getpid(), number)
        time.sleep(PATIENCE_S)
    assert signal.getsignal(number) == before


class Servers:
    """Stands in for the embedded servers: whether they run, how often they were stopped."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, run: bool) -> None:
        self.run, self.stops = run, 0
        monkeypatch.setattr(locations, "ensure_stack", self._ensure)
        monkeypatch.setattr(locations, "stop_stack", self._stop)
        monkeypatch.setattr(locations, "stack_status", self._status)

    def _ensure(self, settings: Settings) -> Settings:
        self.run = True
        return settings

    def _stop(self, settings: Settings) -> None:
        self.run, self.stops = False, self.stops + 1

    def _status(self, settings: Settings) -> list[ServerStatus]:
        return [ServerStatus("valkey", 1 if self.run else None, 1, 0, Path("log"), None)]


def test_the_last_command_stops_the_servers_whoever_started_them(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    servers = Servers(monkeypatch, run=False)
    first, second = locations.open_stack(settings), locations.open_stack(settings)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert servers.run
    second.__exit__(None, None, None)
    assert not servers.run and servers.stops == 1


def test_servers_that_no_command_started_stay(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    servers = Servers(monkeypatch, run=True)
    with locations.open_stack(settings):
        pass
    assert servers.run


def test_servers_left_by_a_killed_command_are_taken_over(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    servers = Servers(monkeypatch, run=False)
    with locations.open_stack(settings):
        left_behind = (settings.home / "users.lock").read_bytes()
    servers.run, servers.stops = True, 0
    (settings.home / "users.lock").write_bytes(left_behind)
    with locations.open_stack(settings):
        pass
    assert servers.stops == 1


def snapshot(batch: Batch, at_s: float, status: BatchStatus, **counts: int) -> Snapshot:
    return Snapshot(replace(batch, status=status), BatchCounts(total=10, **counts), at_s)


BATCH = Batch(
    "b", "r", "c.csv", ".", (), {}, BatchStatus.RUNNING, None, 0, "c", "r", "n", 1, "results", 10, 1, 0.0, None, None
)  # fmt: skip


def test_pace_leaves_the_wait_for_the_first_job_out() -> None:
    pace = Pace()
    for at_s, ended in ((0, 0), (20, 0), (21, 0), (22, 2), (23, 4)):
        pace.note(at_s, ended)
    assert pace.rate == pytest.approx(2.0) and pace.mean_rate == pytest.approx(2.0)
    assert pace.remaining_s(6) == pytest.approx(3.0)


def test_pace_forgets_what_is_long_ago_but_the_mean_does_not() -> None:
    pace = Pace()
    for at_s in range(101):
        pace.note(at_s, 10 * at_s if at_s < 50 else 500 + (at_s - 50))
    assert pace.rate == pytest.approx(1.0) and pace.mean_rate == pytest.approx(5.5)


def test_pace_tells_nothing_before_anything_ended() -> None:
    pace = Pace()
    for at_s in range(3):
        pace.note(at_s, 0)
    assert pace.rate is None and pace.mean_rate is None and pace.remaining_s(5) is None


def test_lines_come_at_the_start_now_and_then_and_at_the_end() -> None:
    stream, pace = io.StringIO(), Pace()
    display = LineDisplay(stream)
    for at_s in range(1000, 1012):
        display.show(snapshot(BATCH, at_s, BatchStatus.RUNNING, running=1, pending=9), pace, "the worker is starting")
    display.show(snapshot(BATCH, 1012, BatchStatus.COMPLETED, succeeded=9, failed=1, reused=2), pace)
    lines = stream.getvalue().splitlines()
    assert lines == [
        *["running: 0 of 10 ended, 1 running, the worker is starting"] * 3,
        "completed: 10 of 10 ended, 9 succeeded, 1 failed, 2 reused",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"), [(8.31, "8.3 s"), (59, "59 s"), (125, "2 min 05 s"), (12_000, "3 h 20 min")]
)
def test_durations_read_well(seconds: float, text: str) -> None:
    assert show_duration(seconds) == text
