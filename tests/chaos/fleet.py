"""The processes of a chaos run: what a small company would run, every one of them real but for the model.

Owns who runs and who is at what. Refuses to break anything: `faults` does.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import psutil

from orchestrator.settings import Settings
from orchestrator.state.transitions import Stage
from tests.chaos.record import DONE, START, Event, Tail

ROOT = Path(__file__).parents[2]
MEMBERS: Mapping[str, tuple[str, ...]] = {
    "up": ("up",),
    "dispatch": ("dispatch",),
    "host-a": ("worker", "--name", "host-a"),
    "host-b": ("worker", "--name", "host-b"),
    "host-c": ("worker", "--name", "host-c", "--stages", "sample"),
    "host-d": ("worker", "--name", "host-d", "--stages", "encode,decode"),
}
STOP_S = 40.0
START_S = 60.0  # the most that a process takes, on a busy machine, until it hears signals


class Fleet:
    """Members by name, each a `kontext` command with a home of its own."""

    def __init__(self, settings: Settings, folder: Path, members: tuple[str, ...] = tuple(MEMBERS)) -> None:
        self.settings, self.folder, self.members = settings, folder, members
        self.record = folder / "record"
        self._tail = Tail(self.record)
        self._latest: dict[str, Event] = {}
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._started_s: dict[str, float] = {}
        self.frozen: set[int] = set()

    def start(self, member: str) -> None:
        """Start a member, or do nothing when it runs."""
        if member in self._running and self._running[member].poll() is None:
            return
        settings = self.settings.model_copy(update={"home": self.folder / member})
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("KONTEXT_")}
        told = {"PYTHONPATH": str(ROOT), "CHAOS_FOLDER": str(self.folder), "CHAOS_RECORD": str(self.record)}
        command = [sys.executable, "-m", "tests.chaos.command", *MEMBERS[member]]
        self._started_s[member] = time.monotonic()
        with (self.folder / f"{member}.log").open("ab") as log:
            self._running[member] = subprocess.Popen(
                command, env=inherited | settings.environment() | told, stdout=log, stderr=log
            )

    def stop(self) -> dict[str, int]:
        """End every member in good order; gives their exit statuses. One that is still starting may die of SIGTERM."""
        told_s = time.monotonic()
        for pid in self.frozen:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        for process in self._running.values():
            process.terminate()
        deadline_s = time.monotonic() + STOP_S
        for member, process in self._running.items():
            try:
                process.wait(max(0.1, deadline_s - time.monotonic()))
            except subprocess.TimeoutExpired:
                self.lose(member)
        return {
            member: 0
            if process.returncode == -signal.SIGTERM and told_s - self._started_s[member] < START_S
            else process.returncode
            for member, process in self._running.items()
        }

    def pid(self, member: str) -> int:
        return self._running[member].pid

    def lose(self, member: str) -> None:
        """Kill a member with all its processes at once, as a machine that loses its power does."""
        family = self.family(member)
        for process in family:
            with suppress(psutil.NoSuchProcess):
                process.suspend()
        for process in family:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._running[member].wait()

    def family(self, member: str) -> list[psutil.Process]:
        """A member's process, and all below it."""
        try:
            process = psutil.Process(self.pid(member))
            return [process, *process.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def look(self) -> None:
        """Read what the workers have noted since."""
        for event in self._tail.read():
            self._latest[event.worker] = event

    def at(self, stage: Stage | None = None) -> list[Event]:
        """The units being worked on now, at a stage or at any, one for each living worker."""
        self.look()
        return [
            event
            for event in self._latest.values()
            if event.kind == START
            and stage in (None, event.stage)
            and event.pid not in self.frozen
            and _lives(event.pid)
        ]

    def held_by(self, worker: str) -> tuple[int, ...]:
        """The jobs that a worker is at."""
        self.look()
        latest = self._latest[worker]
        return tuple(job for job, _ in latest.jobs) if latest.kind in (START, DONE) else ()

    def member_of(self, pid: int) -> str | None:
        """Whose process it is."""
        for member in self.members:
            if any(process.pid == pid for process in self.family(member)):
                return member
        return None


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_STOPPED)
    except psutil.NoSuchProcess:
        return False
