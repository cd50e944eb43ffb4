"""The supervisor: child processes that are started again when they die.

Owns its children and their logs. Refuses to know what they do: it reports a death and starts the next.
"""

import contextlib
import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import IO

from orchestrator.local_stack import child
from orchestrator.local_stack.servers import open_log

log = logging.getLogger(__name__)

FIRST_DELAY_S, LONGEST_DELAY_S = 1.0, 30.0
STEADY_S = 15.0  # a child that lived so long is no crash loop: the back-off starts anew
KILLED_S = 5.0  # for killed children to be seen and reported
REPORT_S = 1.0  # between tries to report a death that could not be reported at once

OnDeath = Callable[[str, str, int], None]


class Supervisor:
    """Keep one child process per command alive.

    `commands`: role → command; "{name}" in an argument becomes the child's worker id, new at every start.
    `environment`: variables added to this process's own. Logs go to `<log_folder>/<role>.log`; without a folder the
    children write where this process does, as containers want it.
    `on_death(role, worker_id, returncode)` is called, in a thread, as soon as a child has ended, also during `stop`;
    a negative return code is the signal that killed it. When it raises, it is called again while the next child runs.
    """

    def __init__(
        self,
        commands: Mapping[str, Sequence[str]],
        environment: Mapping[str, str],
        log_folder: Path | None,
        on_death: OnDeath,
    ) -> None:
        self._environment = {**os.environ, **environment}
        self._log_folder = log_folder
        self._on_death = on_death
        # Host name and process id come again when a container starts anew, and in a second one of the same name.
        self._born = secrets.token_hex(3)
        self._stopping = threading.Event()
        self._lock = threading.RLock()  # a signal handler may call `stop` inside `stop`
        self._running: dict[str, tuple[str, subprocess.Popen[bytes]]] = {}
        self._unreported: list[tuple[str, str, int]] = []
        self._keepers = [
            threading.Thread(target=self._keep, args=(role, tuple(command)), name=f"supervisor-{role}", daemon=True)
            for role, command in commands.items()
        ]
        # A join that a signal interrupts takes its thread for ended (Python 3.11): who ended is noted here instead.
        self._ended = {keeper.name: threading.Event() for keeper in self._keepers}

    def start(self) -> None:
        """Start every child; returns at once."""
        if self._log_folder is not None:
            self._log_folder.mkdir(parents=True, exist_ok=True)
        for keeper in self._keepers:
            keeper.start()

    def stop(self, timeout_s: float = 30.0) -> None:
        """End every child: SIGTERM, at most `timeout_s` of waiting, SIGKILL.

        Called a second time, while the first call waits or was interrupted, it kills at once.
        """
        if self._stopping.is_set():
            timeout_s = 0.0
        self._stopping.set()
        if timeout_s > 0:
            self._signal(signal.SIGTERM)
        self._join(timeout_s)
        self._signal(signal.SIGKILL)
        self._join(KILLED_S)

    def workers(self) -> dict[str, str]:
        """Which children run now: role → worker id."""
        with self._lock:
            return {role: worker_id for role, (worker_id, _) in self._running.items()}

    def __enter__(self) -> "Supervisor":
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _keep(self, role: str, command: tuple[str, ...]) -> None:
        try:
            self._run_again_and_again(role, command)
        finally:
            self._ended[threading.current_thread().name].set()

    def _run_again_and_again(self, role: str, command: tuple[str, ...]) -> None:
        delay_s, start = FIRST_DELAY_S, 0
        while not self._stopping.is_set():
            worker_id = f"{socket.gethostname()}-{os.getpid()}-{self._born}-{role}-{start}"
            start += 1
            started_s = time.monotonic()
            returncode = self._run(role, worker_id, command)
            if returncode is None:
                return
            if not self._stopping.is_set():
                log.warning("%s ended with status %s", worker_id, returncode)
            self._report(role, worker_id, returncode)
            if time.monotonic() - started_s >= STEADY_S:
                delay_s = FIRST_DELAY_S
            self._stopping.wait(delay_s)
            delay_s = min(2 * delay_s, LONGEST_DELAY_S)

    def _run(self, role: str, worker_id: str, command: tuple[str, ...]) -> int | None:
        """Run one child to its end. None: the supervisor was stopped before it began."""
        arguments = [argument.replace("{name}", worker_id) for argument in command]
        # With the check inside the lock, no child starts that `stop` does not see.
        with self._open_log(role) as output, self._lock:
            if self._stopping.is_set():
                return None
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", child.__file__, *arguments],
                stdin=subprocess.PIPE,  # ends with this process: the child's guard waits for that
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self._environment,
                process_group=0,
            )
            self._running[role] = worker_id, process
        with process:
            returncode = self._await_end(process)
        with self._lock:
            del self._running[role]
        return returncode

    def _await_end(self, process: subprocess.Popen[bytes]) -> int:
        """Wait for a child's end; meanwhile report earlier deaths that could not be reported when they happened."""
        while self._unreported:
            try:
                return process.wait(REPORT_S)
            except subprocess.TimeoutExpired:
                with self._lock:
                    late, self._unreported = self._unreported, []
                for death in late:
                    self._report(*death)
        return process.wait()

    def _report(self, role: str, worker_id: str, returncode: int) -> None:
        try:
            self._on_death(role, worker_id, returncode)
        except Exception as error:  # a database that is away must not end the supervision
            log.warning("the death of %s could not be reported yet: %s", worker_id, str(error).partition("\n")[0])
            with self._lock:
                self._unreported.append((role, worker_id, returncode))

    def _signal(self, number: signal.Signals) -> None:
        with self._lock:
            for _, process in self._running.values():
                if process.poll() is None:
                    with contextlib.suppress(ProcessLookupError, PermissionError):  # ended just now
                        os.killpg(process.pid, number)

    def _join(self, timeout_s: float) -> None:
        deadline_s = time.monotonic() + timeout_s
        for keeper in self._keepers:
            if keeper.ident is not None:
                self._ended[keeper.name].wait(max(0.0, deadline_s - time.monotonic()))

    def _open_log(self, role: str) -> AbstractContextManager[IO[bytes] | None]:
        return contextlib.nullcontext() if self._log_folder is None else open_log(self._log_folder / f"{role}.log")
