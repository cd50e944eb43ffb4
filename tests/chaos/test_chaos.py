"""The chaos suite in its short form: a small fleet, a dozen faults, nothing lost and nothing done twice."""

from pathlib import Path

from tests.chaos.checker import Figure, check, render
from tests.chaos.drill import Run, drill, summary
from tests.chaos.plans import SHORT, SHORT_BARS_S


def test_a_fleet_under_attack_loses_nothing_and_does_nothing_twice(tmp_path: Path) -> None:
    figures: list[Figure] = []
    said: list[str] = []

    def look(run: Run) -> None:
        figures.extend(check(run, SHORT_BARS_S))
        said.append(summary(run.struck))

    drill(SHORT, tmp_path, said.append, look)
    assert all(figure.holds for figure in figures), "\n".join([*said, render(figures)])
