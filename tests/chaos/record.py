"""The append-only record that chaos workers keep: what each process began and what its writes moved.

Owns the form of a line. One `write` a line: whole also when many processes append and some are killed. Times are the
machine's monotonic clock, the same for every process.
"""

import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

START, DONE = "start", "done"
WRITES = ("carry", "advance", "succeed", "retry", "fail", "lose_handoffs")


@dataclass(frozen=True)
class Event:
    """`kind` is START or DONE of a stage's work, or the write that moved the jobs; `jobs` holds (id, attempt).

    `asked_s` is when a write was sent; it was through at `at_s`.
    """

    at_s: float
    pid: int
    worker: str
    kind: str
    stage: str
    jobs: tuple[tuple[int, int], ...]
    asked_s: float


class Record:
    """Appends to the record's file."""

    def __init__(self, path: Path, worker: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._worker = worker

    def note(self, kind: str, stage: str, jobs: Sequence[tuple[int, int]], asked_s: float | None = None) -> None:
        at_s = time.monotonic()
        line = [at_s, os.getpid(), self._worker, kind, stage, jobs, at_s if asked_s is None else asked_s]
        os.write(self._file, json.dumps(line).encode() + b"\n")


class Tail:
    """Reads a record as it grows: each call gives what is new."""

    def __init__(self, path: Path) -> None:
        self._path, self._offset = path, 0

    def read(self) -> Iterator[Event]:
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self._offset += len(line)
                yield _parse(json.loads(line))


def read_record(path: Path) -> list[Event]:
    """The whole record, in the order of time."""
    return sorted(Tail(path).read(), key=lambda event: event.at_s)


def _parse(line: list[Any]) -> Event:
    at_s, pid, worker, kind, stage, jobs, asked_s = line
    return Event(at_s, pid, worker, kind, stage, tuple((job, attempt) for job, attempt in jobs), asked_s)
