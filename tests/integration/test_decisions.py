"""Decisions and takes: one approved picture a row, a new take beside the old, and a manifest that tells."""

import json
from pathlib import Path

import pytest
from sqlalchemy import Engine, update

from orchestrator import closing, decisions
from orchestrator.closing import Closer
from orchestrator.decisions import DecisionError, decide, decide_all, regenerate
from orchestrator.settings import Settings
from orchestrator.state import queries
from orchestrator.state.bulk import insert_jobs
from orchestrator.state.database import reading
from orchestrator.state.queries import Finished, Group
from orchestrator.state.tables import batches
from orchestrator.state.transitions import BatchStatus, Decision, Stage
from tests.integration.seeding import RECIPE, REVISION, Seeder, job_row

ENCODE = Group(Stage.ENCODE, RECIPE, "", REVISION)
APPROVED, REJECTED = Decision.APPROVED, Decision.REJECTED


def finish(seed: Seeder) -> None:
    """Let every pending job succeed."""
    seed.do(queries.dispatch, "b", 100)
    unit = seed.claim(ENCODE)
    seed.do(
        queries.succeed, Stage.ENCODE, [Finished(job.id, job.attempt, 0.1, f"/r/{job.id}.png", "s") for job in unit]
    )


def told(seed: Seeder) -> list[tuple[int, int, str | None]]:
    """(line, take, decision) of all jobs."""
    return [(row["line"], row["take"], row["decision"]) for row in seed.rows()]


def test_a_picture_is_approved_rejected_and_taken_back(seed: Seeder) -> None:
    seed.batch(jobs=2)
    finish(seed)
    assert decide(seed.engine, 1, APPROVED) and not decide(seed.engine, 1, APPROVED)
    assert decide(seed.engine, 2, REJECTED)
    assert told(seed) == [(1, 1, "approved"), (2, 1, "rejected")]
    assert seed.do(queries.count_decisions, "b") == {"approved": 1, "rejected": 1}
    assert decide(seed.engine, 1, None)
    assert told(seed) == [(1, 1, None), (2, 1, "rejected")]


def test_only_a_picture_can_be_decided_on(seed: Seeder) -> None:
    seed.batch(jobs=1)
    with pytest.raises(DecisionError, match="job 1 is pending"):
        decide(seed.engine, 1, APPROVED)
    with pytest.raises(DecisionError, match="there is no job 7"):
        decide(seed.engine, 7, APPROVED)
    assert told(seed) == [(1, 1, None)]


def test_a_new_take_stands_beside_the_old_and_runs_in_a_batch_that_had_ended(seed: Seeder) -> None:
    seed.batch(jobs=2)
    finish(seed)
    seed.do(queries.move_batch, "b", BatchStatus.COMPLETED)
    made = regenerate(seed.engine, 1)
    assert (made.take, made.seed) == (2, 1)
    batch = seed.do(queries.read_batch, "b")
    assert batch is not None and (batch.status, batch.total, batch.ended_at) == (BatchStatus.RUNNING, 3, None)
    first, second, _ = seed.rows()
    same = ("batch_id", "line", "custom_id", "image", "recipe_id", "priority", "given")
    assert [second[name] for name in same] == [first[name] for name in same]
    assert (second["state"], second["take"], second["seed"], second["result"]) == ("pending", 2, 1, None)
    assert first["result"] == "/r/1.png", "the old one stays"
    finish(seed)
    assert regenerate(seed.engine, made.id, seed=99).take == 3, "also asked from the newest"


def test_a_take_is_asked_once_at_a_time(seed: Seeder) -> None:
    seed.batch(jobs=1)
    finish(seed)
    regenerate(seed.engine, 1)
    with pytest.raises(DecisionError, match="take 2 of this row is pending"):
        regenerate(seed.engine, 1)
    assert len(seed.rows()) == 2


def test_a_bad_row_and_a_batch_being_cancelled_get_no_take(seed: Seeder) -> None:
    seed.batch(jobs=1)
    with seed.engine.begin() as connection:
        insert_jobs(connection, [job_row("b", 2, None, state="failed", ended_at=1.0, code="bad_steps", message="m")])
    with pytest.raises(DecisionError, match="bad row"):
        regenerate(seed.engine, 2)
    finish(seed)
    seed.do(queries.move_batch, "b", BatchStatus.CANCELLING)
    with pytest.raises(DecisionError, match="being read, cancelled or deleted"):
        regenerate(seed.engine, 1)


def test_of_the_takes_of_a_row_one_is_approved(seed: Seeder) -> None:
    seed.batch(jobs=2)
    finish(seed)
    decide(seed.engine, 1, APPROVED)
    made = regenerate(seed.engine, 1)
    finish(seed)
    decide(seed.engine, made.id, APPROVED)
    assert told(seed) == [(1, 1, None), (1, 2, "approved"), (2, 1, None)]
    assert decide_all(seed.engine, "b", [1, 2, made.id, 999], APPROVED) == 1, "the latest take stays approved"
    assert told(seed) == [(1, 1, None), (1, 2, "approved"), (2, 1, "approved")]
    assert decide_all(seed.engine, "b", [1, 2], REJECTED) == 2
    assert told(seed) == [(1, 1, "rejected"), (1, 2, "approved"), (2, 1, "rejected")]


def test_many_decisions_go_in_chunks(seed: Seeder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decisions, "CHUNK_JOBS", 2)
    seed.batch(jobs=5)
    finish(seed)
    assert decide_all(seed.engine, "b", [5, 4, 3, 2, 1], APPROVED) == 5


def test_the_manifest_of_an_ended_batch_is_written_anew_and_names_the_approved_take(
    seed: Seeder, engine: Engine, tmp_path: Path
) -> None:
    seed.batch(jobs=2, results_uri=str(tmp_path / "results"))
    finish(seed)
    made = regenerate(seed.engine, 1)
    finish(seed)
    closer = Closer(engine, Settings())
    closer.begin(_batch(seed))
    closer.wait()
    assert [line["approved_take"] for line in _manifest(tmp_path)] == [None, None, None]
    decide(engine, made.id, APPROVED)
    decide(engine, 2, REJECTED)
    closer = Closer(engine, Settings())
    closer.tell_decisions()
    closer.wait()
    lines = _manifest(tmp_path)
    assert [(line["take"], line["decision"], line["approved_take"]) for line in lines] == [
        (1, None, 2),
        (2, "approved", 2),
        (1, "rejected", None),
    ]
    with reading(engine).connect() as connection:
        assert queries.untold_batches(connection, limit=9) == []


def test_ended_batches_whose_manifest_cannot_be_written_keep_no_other_untold(
    seed: Seeder, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(closing, "TELLING_INTERVAL_S", 0.0)
    (tmp_path / "file").touch()
    for name in ("a1", "a2", "a3", "a4", "b"):
        seed.batch(name, jobs=1, results_uri=str(tmp_path / ("results" if name == "b" else "file/results")))
        assert seed.do(queries.move_batch, name, BatchStatus.COMPLETED)
        with engine.begin() as connection:
            connection.execute(update(batches).where(batches.c.id == name).values(decisions=1))
    closer = Closer(engine, Settings())
    for _ in range(2):
        closer.tell_decisions()
        closer.wait()
    assert [batch.id for batch in seed.do(queries.untold_batches, limit=9)] == ["a1", "a2", "a3", "a4"]
    assert len(_manifest(tmp_path)) == 1


def test_the_trail_of_a_job_tells_who_worked_on_it_and_when(seed: Seeder) -> None:
    seed.queued(1)
    seed.claim(ENCODE, worker="anna")
    seed.do(queries.succeed, Stage.ENCODE, [Finished(1, 0, 0.1, "/r/1.png", "s")])
    row = seed.row(1)
    assert row["encode_by"] == "anna" and row["queued_at"] <= row["encode_from"] <= row["encode_to"]
    assert row["sample_by"] is None


def _batch(seed: Seeder) -> queries.Batch:
    batch = seed.do(queries.read_batch, "b")
    assert batch is not None
    return batch


def _manifest(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "results" / "manifest.jsonl").read_text().splitlines()]
