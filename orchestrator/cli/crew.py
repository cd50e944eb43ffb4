"""The processes that a command brings along: a dispatcher and a worker, and only those that nobody else runs.

Owns when they are started and what is said of their deaths. Refuses to go on when one of them cannot even start.
"""

import fcntl
import json
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from sqlalchemy import Engine

from orchestrator.cli.failures import RunError
from orchestrator.local_stack import Supervisor
from orchestrator.settings import Settings
from orchestrator.state import queries
from orchestrator.state.database import reading
from orchestrator.state.queries import Worker
from orchestrator.state.transitions import Stage

# How much longer than KONTEXT_STOP_S a worker's good end may take, before it is killed.
STOP_MARGIN_S = 5.0
DEATHS_ALLOWED = 3
LOG_LINES = 8
WORKERS_SHOWN = 5
# How long a worker that was seen, or that `kontext up` is starting, may be away before one is started here.
LOST_PATIENCE_S, UP_PATIENCE_S = 15.0, 60.0
CHECK_S = 1.0
# The exit status of a call or a checkpoint that can never work: no use in trying again.
HOPELESS = 2

# -P: the folder where the command was called must not shadow our packages.
DISPATCH = (sys.executable, "-P", "-m", "orchestrator.cli", "dispatch")


def worker_command(stages: Sequence[Stage]) -> tuple[str, ...]:
    """How a worker process of these stages is executed; the supervisor fills in its id."""
    return (sys.executable, "-P", "-m", "workers", "--stages", ",".join(stages), "--name", "{name}")


@dataclass(frozen=True)
class Wanted:
    """Which workers a batch needs: those of its checkpoint revision and numerics."""

    revision: str
    numerics: str


class Crew:
    """A dispatcher unless `kontext up` of this home runs one; a worker unless living ones do every stage."""

    def __init__(self, settings: Settings, engine: Engine, wanted: Wanted, say: Callable[[str], None]) -> None:
        self._settings, self._engine, self._wanted, self._say = settings, engine, wanted, say
        self._supervisors: dict[str, Supervisor] = {}
        self._log_starts: dict[str, int] = {}
        self._deaths: Counter[str] = Counter()
        self._next_s = 0.0
        self._missing_since_s: float | None = None
        self._patience_s = 0.0
        self._warned = False
        self._stopping = False

    def tick(self) -> None:
        """Start who is missing; say when nobody can work. Raises RunError when one of ours keeps dying at its start."""
        if time.monotonic() < self._next_s:
            return
        self._next_s = time.monotonic() + CHECK_S
        for role, deaths in list(self._deaths.items()):
            if deaths >= DEATHS_ALLOWED:
                raise RunError(
                    f"the {role} cannot start, it ended before it could work. The end of its log, "
                    f"{self._log(role)}:\n{self._log_tail(role)}"
                )
        marker = read_marker(self._settings.home)
        if marker is None:
            self._start("dispatcher", DISPATCH)
        self._look_for_workers(marker == self._wanted)

    @property
    def waiting_for(self) -> str:
        """What keeps the work from beginning, in a few words; empty when nothing does."""
        if self._missing_since_s is None:
            return ""
        return "the worker is starting" if "worker" in self._supervisors else "waiting for a worker"

    def stop(self, timeout_s: float | None = None) -> None:
        """End all that was started, side by side, in the time workers have for it; called a second time, at once."""
        if timeout_s is None:
            timeout_s = self._settings.stop_s + STOP_MARGIN_S
        timeout_s = 0.0 if self._stopping else timeout_s
        self._stopping = True
        endings = [
            threading.Thread(target=supervisor.stop, args=(timeout_s,), daemon=True)
            for supervisor in self._supervisors.values()
        ]
        for ending in endings:
            ending.start()
        for ending in endings:
            ending.join()

    def _look_for_workers(self, up_has_one: bool) -> None:
        with reading(self._engine).connect() as connection:
            alive = queries.live_workers(connection, lease_s=self._settings.lease_s)
        missing = missing_stages(alive, self._wanted)
        now_s = time.monotonic()
        if not missing:
            self._missing_since_s, self._warned, self._patience_s = None, False, LOST_PATIENCE_S
            return
        if self._missing_since_s is None:
            self._missing_since_s = now_s
            self._patience_s = max(self._patience_s, UP_PATIENCE_S if up_has_one else 0.0)
        waited_s = now_s - self._missing_since_s
        if waited_s >= self._patience_s:
            self._start("worker", worker_command(tuple(Stage)))
        if waited_s >= LOST_PATIENCE_S and not self._warned:
            self._warned = True
            own = f"; one is starting here, its log: {self._log('worker')}" if "worker" in self._supervisors else ""
            self._say(describe_missing(missing, self._wanted, alive) + own)

    def _start(self, role: str, command: Sequence[str]) -> None:
        if role in self._supervisors:
            return
        log = self._log(role)
        self._log_starts[role] = log.stat().st_size if log.exists() else 0
        supervisor = Supervisor({role: command}, self._settings.environment(), log.parent, self._note_death)
        self._supervisors[role] = supervisor
        supervisor.start()

    def _note_death(self, role: str, worker_id: str, returncode: int) -> None:
        if returncode == 0:  # it stopped in good order, to start anew
            self._deaths[role] = 0
        # Whoever registered in SQL had started well: its jobs are taken back, and the guilty one is set aside there.
        elif role == "worker" and end_worker(self._engine, worker_id):
            if self._stopping:
                return
            self._deaths[role] = 0
            self._say(f"a worker died ({describe_status(returncode)}) and is started again; its log: {self._log(role)}")
        else:
            self._deaths[role] += DEATHS_ALLOWED if returncode == HOPELESS else 1

    def _log(self, role: str) -> Path:
        return self._settings.home.absolute() / "logs" / f"{role}.log"

    def _log_tail(self, role: str) -> str:
        return read_tail(self._log(role), self._log_starts.get(role, 0))


def end_worker(engine: Engine, worker_id: str) -> bool:
    """Mark a dead worker's end in SQL, so that its jobs are taken back at once. False when it never registered."""
    with engine.begin() as connection:
        return queries.end_worker(connection, worker_id)


def missing_stages(alive: Sequence[Worker], wanted: Wanted) -> list[Stage]:
    """The stages that no living worker of the wanted revision and numerics does."""
    done = {
        stage
        for worker in alive
        if (worker.revision, worker.numerics) == (wanted.revision, wanted.numerics)
        for stage in worker.stages.split(",")
    }
    return [stage for stage in Stage if stage not in done]


def describe_missing(missing: Sequence[Stage], wanted: Wanted, alive: Sequence[Worker]) -> str:
    """Why nothing moves: which worker is wanted, and which ones live."""
    others = "; ".join(
        f"{worker.id} does {worker.stages} of revision {worker.revision[:12]} ({worker.numerics})"
        for worker in alive[:5]
    )
    return (
        f"no worker does {', '.join(missing)} of revision {wanted.revision[:12]} ({wanted.numerics}) yet; "
        f"alive: {others or 'none'}"
    )


def describe_status(returncode: int) -> str:
    """A process's end for people."""
    if returncode >= 0:
        return f"status {returncode}"
    try:
        return f"killed by {signal.Signals(-returncode).name}"
    except ValueError:
        return f"killed by signal {-returncode}"


def read_tail(log: Path, start: int = 0, lines: int = LOG_LINES) -> str:
    """The last lines of a log, from byte `start` on."""
    try:
        with log.open("rb") as file:
            file.seek(max(start, log.stat().st_size - 16_384))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        text = ""
    return "\n".join(f"  {line}" for line in text.splitlines()[-lines:]) or "  (it is empty)"


@contextmanager
def hold_marker(home: Path) -> Iterator[Callable[[Wanted], None]]:
    """Be the one `kontext up` of a home; the function given notes which batches its worker takes.

    The kernel drops the mark when the process dies. Raises RunError when there is one already.
    """
    home.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(home / "up.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        if not _try_lock(descriptor):
            raise RunError(f"a `kontext up` runs in {home.absolute()} already; end it first, or set KONTEXT_HOME")
        os.ftruncate(descriptor, 0)

        def note(wanted: Wanted) -> None:
            os.pwrite(descriptor, json.dumps([wanted.revision, wanted.numerics]).encode(), 0)

        yield note
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    # A `run` that looks whether the mark is held holds it for a moment itself.
    deadline_s = time.monotonic() + 1.0
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline_s:
                return False
            time.sleep(0.02)
        else:
            return True


def read_marker(home: Path) -> Wanted | None:
    """What the running `kontext up` of a home works on; None when none runs."""
    try:
        descriptor = os.open(home / "up.lock", os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        content = os.pread(descriptor, 4096, 0)
        return Wanted(*json.loads(content)) if content else Wanted("", "")
    else:
        return None
    finally:
        os.close(descriptor)


@contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM and SIGHUP end the block as Ctrl-C does; SIGINT does also in a script's background, which ignores it."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    # Under nohup SIGHUP is ignored, and stays so.
    numbers = [signal.SIGINT, signal.SIGTERM]
    numbers += [signal.SIGHUP] if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN else []
    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
