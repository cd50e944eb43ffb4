"""What a person sees on stderr while a batch runs: a bar on a terminal, now and then a line elsewhere.

Owns the drawing. Refuses stdout, which belongs to the summary and to programs.
"""

import sys
import time
from typing import Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

from orchestrator.client.shapes import Counts
from orchestrator.progress import Pace, show_duration
from orchestrator.state.queries import BatchCounts
from orchestrator.state.transitions import BatchStatus

LINE_INTERVAL_S = 5.0


class Seen(Protocol):
    """A batch as it was seen at one moment; `at_s` is a monotonic clock's."""

    @property
    def status(self) -> BatchStatus: ...
    @property
    def counts(self) -> BatchCounts | Counts: ...
    @property
    def at_s(self) -> float: ...
    @property
    def standing(self) -> bool: ...


class Display(Protocol):
    """Shows a batch as it goes on."""

    def say(self, text: str) -> None:
        """Print a line that stays."""

    def show(self, snapshot: Seen, pace: Pace, note: str = "") -> None:
        """Show how the batch stands; `note` says what is waited for."""

    def count(self, what: str, number: int) -> None:
        """Show how many of something are done, where the end is not known."""

    def advance(self, text: str, done: int, total: int) -> None:
        """Show how far something is whose end is known."""

    def close(self) -> None:
        """Leave the terminal as a shell wants it."""


def open_display(stream: TextIO | None = None) -> Display:
    """A bar where stderr is a terminal, else lines."""
    stream = stream or sys.stderr
    return BarDisplay(stream) if stream.isatty() else LineDisplay(stream)


class LineDisplay:
    """A line at the start, every few seconds, and at the end."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._next_s, self._ended = stream, 0.0, -1

    def say(self, text: str) -> None:
        print(text, file=self._stream, flush=True)

    def show(self, snapshot: Seen, pace: Pace, note: str = "") -> None:
        if snapshot.at_s >= self._next_s or snapshot.standing:
            self._next_s = snapshot.at_s + LINE_INTERVAL_S
            self.say(f"{snapshot.status}: {_describe(snapshot, pace, note)}")

    def count(self, what: str, number: int) -> None:
        if time.monotonic() >= self._next_s:
            self._next_s = time.monotonic() + LINE_INTERVAL_S
            self.say(f"{number:,} {what}")

    def advance(self, text: str, done: int, total: int) -> None:
        if time.monotonic() >= self._next_s or (done == total and self._ended != total):
            self._next_s, self._ended = time.monotonic() + LINE_INTERVAL_S, done
            self.say(text)

    def close(self) -> None:
        pass


class BarDisplay:
    """One bar that is drawn again in its place; lines that stay go above it."""

    def __init__(self, stream: TextIO) -> None:
        self._console = Console(file=stream, highlight=False)
        self._progress = Progress(
            SpinnerColumn(),
            BarColumn(bar_width=28),
            TextColumn("{task.description}", markup=False),
            console=self._console,
            auto_refresh=False,
            transient=True,
        )
        self._task = self._progress.add_task("", total=None)
        self._progress.start()

    def say(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)

    def show(self, snapshot: Seen, pace: Pace, note: str = "") -> None:
        counts = snapshot.counts
        text = f"{counts.ended:,} of {counts.total:,}  {_describe(snapshot, pace, note, brief=True)}"
        self._draw(text, counts.ended, counts.total)

    def count(self, what: str, number: int) -> None:
        self._draw(f"{number:,} {what}", 0, None)

    def advance(self, text: str, done: int, total: int) -> None:
        self._draw(text, done, total)

    def close(self) -> None:
        self._progress.stop()

    def _draw(self, text: str, ended: int, total: int | None) -> None:
        self._progress.update(self._task, description=text, completed=ended, total=total)
        self._progress.refresh()


def describe_counts(counts: BatchCounts | Counts, *, brief: bool = False) -> str:
    """Jobs by state in words, those that are none left out; `brief` leaves out what a bar shows."""
    names = ("running", "queued", "pending") if brief else ("running", "succeeded")
    parts = [] if brief else [f"{counts.ended:,} of {counts.total:,} ended"]
    parts += [
        f"{number:,} {name}" for name in (*names, "failed", "cancelled", "reused") if (number := getattr(counts, name))
    ]
    return ", ".join(parts)


def _describe(snapshot: Seen, pace: Pace, note: str, *, brief: bool = False) -> str:
    """Counts, then rate and time left, or what is waited for."""
    parts = [describe_counts(snapshot.counts, brief=brief)]
    if note and not snapshot.standing:
        parts.append(note)
    elif pace.rate is not None and (jobs := snapshot.counts.total - snapshot.counts.ended):
        left_s = pace.remaining_s(jobs) or 0.0
        parts += [show_rate(pace.rate), f"{show_duration(left_s)} left"]
    return ", ".join(filter(None, parts))


def show_rate(rate: float) -> str:
    """Images in a second, or in a minute where that reads better."""
    return f"{rate:.1f} images/s" if rate >= 1 else f"{rate * 60:.1f} images/min"
