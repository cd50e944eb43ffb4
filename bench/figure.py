"""A measured comparison, and the table of them."""

import platform
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True)
class Figure:
    """One line of the table: ours and theirs in the same unit, higher is better; `bar` is the least ratio."""

    name: str
    unit: str
    ours: Sequence[float]
    theirs: Sequence[float]
    bar: float
    note: str = ""
    holds: bool = True

    @property
    def ratio(self) -> float:
        return statistics.median(self.ours) / statistics.median(self.theirs)

    @property
    def passed(self) -> bool:
        return self.holds and self.ratio >= self.bar


def render(figures: Sequence[Figure]) -> str:
    """The figures as a Markdown table with the machine they were measured on."""
    lines = [
        "| figure | ours | theirs | ratio | bar | |",
        "|---|---:|---:|---:|---:|---|",
    ]
    for figure in figures:
        ours, theirs = statistics.median(figure.ours), statistics.median(figure.theirs)
        verdict = "reached" if figure.passed else "**missed**"
        lines.append(
            f"| {figure.name} | {ours:,.4g} {figure.unit} | {theirs:,.4g} {figure.unit} | {figure.ratio:.2f} "
            f"| ≥ {figure.bar:g} | {'; '.join(filter(None, (verdict, figure.note)))} |"
        )
    return "\n".join([*lines, "", f"Medians of {len(figures[0].ours)} runs. {machine()}"])


def machine() -> str:
    """Processor, cores, memory and system, for people."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    memory = psutil.virtual_memory().total / 2**30
    system = f"{platform.system()}, Python {platform.python_version()}"
    return f"{model}, {psutil.cpu_count()} cores, {memory:.0f} GiB, {system}."
