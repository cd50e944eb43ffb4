"""How a run tells how far it is: a bar on a terminal, lines elsewhere.

Owns the words. Refuses to know what is trained.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

STEPS_A_LINE = 25


@dataclass(frozen=True)
class Pace:
    """Where a run stands after `step` of `steps`: a running mean of the loss, and seconds a step."""

    step: int
    steps: int
    loss: float
    step_s: float

    @property
    def left(self) -> str:
        """The time to the end, as people say it."""
        minutes = self.step_s * (self.steps - self.step) / 60
        return f"{minutes:.1f} min left" if minutes < 120 else f"{minutes / 60:.1f} h left"


Say = Callable[[str], None]
OnPace = Callable[[Pace], None]


def print_lines(say: Say) -> OnPace:
    """A line now and then."""

    def on_pace(pace: Pace) -> None:
        if pace.step % STEPS_A_LINE == 0 or pace.step == pace.steps:
            say(f"step {pace.step}/{pace.steps}  loss {pace.loss:.4f}  {pace.step_s:.2f} s/step  {pace.left}")

    return on_pace


@contextmanager
def open_progress(console: Console) -> Iterator[tuple[Say, OnPace]]:
    """How to say a line and how to show the pace: a bar below the lines on a terminal, else lines alone."""

    def say(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    if not console.is_terminal:
        yield say, print_lines(say)
        return
    columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[told]}"))
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=None, told="")

        def on_pace(pace: Pace) -> None:
            told = f"loss {pace.loss:.4f}  {pace.step_s:.2f} s/step  {pace.left}"
            progress.update(task, total=pace.steps, completed=pace.step, told=told)

        yield say, on_pace
