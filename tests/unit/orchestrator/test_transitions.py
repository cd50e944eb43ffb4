"""The table of moves is what the statements do, what the design says and what the README shows."""

import re
from pathlib import Path

import pytest

from orchestrator.state.queries import statements
from orchestrator.state.transitions import (
    ACTIVE,
    BATCH_MOVES,
    ENDED,
    JOB_MOVES,
    OPEN_BATCH,
    BatchStatus,
    JobState,
    Stage,
    diagram,
)

README = Path(__file__).parents[3] / "README.md"


def test_every_statement_that_writes_a_job_is_a_legal_move() -> None:
    for name, change in statements._CHANGES.items():
        target = re.search(r"\bstate = '(\w+)'", change)
        assert target is not None
        move = JOB_MOVES[name]
        assert (target[1], JobState.RUNNING in move.source) == (move.target, True), name


def test_active_and_ended_are_the_six_states() -> None:
    assert sorted(ACTIVE + ENDED) == sorted(JobState)


def test_every_state_is_reached_and_none_is_a_trap() -> None:
    reached, left = {JobState.PENDING}, set()
    for move in JOB_MOVES.values():
        reached.add(move.target)
        left.update(move.source)
    assert reached == set(JobState)
    assert left == set(JobState) - {JobState.SUCCEEDED}  # a picture is written once


def test_a_batch_ends_only_from_where_work_has_stopped() -> None:
    assert {source for source, target in BATCH_MOVES if target == BatchStatus.COMPLETED} == {BatchStatus.RUNNING}
    assert {source for source, target in BATCH_MOVES if target == BatchStatus.CANCELLED} == {BatchStatus.CANCELLING}
    ended = set(BatchStatus) - set(OPEN_BATCH)
    after = {source: {target for start, target in BATCH_MOVES if start == source} for source in ended}
    assert after == {
        BatchStatus.COMPLETED: {BatchStatus.RUNNING, BatchStatus.DELETING},
        BatchStatus.CANCELLED: {BatchStatus.RUNNING, BatchStatus.DELETING},
        BatchStatus.FAILED: {BatchStatus.DELETING},
        BatchStatus.DELETING: set(),
    }


@pytest.mark.parametrize(("stage", "following"), [("encode", "sample"), ("sample", "decode"), ("decode", None)])
def test_stages_follow_each_other(stage: str, following: str | None) -> None:
    assert Stage(stage).following == following


def test_the_readme_shows_the_moves_as_they_are() -> None:
    assert f"```mermaid\n{diagram()}\n```" in README.read_text(encoding="utf-8")


def test_the_diagram_draws_every_move() -> None:
    lines = diagram().splitlines()
    for move in JOB_MOVES.values():
        for source in move.source:
            assert any(line.startswith(f"    {source} --> {move.target}: {move.name.split('_')[0]}") for line in lines)
