"""Every statement from every state: what moves a job is a move of the diagram, and all of the diagram is there."""

from collections.abc import Callable
from itertools import product
from typing import Any

from sqlalchemy import update

from orchestrator.state import queries
from orchestrator.state.queries import Advanced, Ended, Failed, Finished, Group, Retried
from orchestrator.state.tables import attempts, batches, jobs
from orchestrator.state.transitions import JOB_MOVES, BatchStatus, JobState, Stage
from tests.integration.seeding import RECIPE, REVISION, Seeder

SAMPLE = Group(Stage.SAMPLE, RECIPE, "256x256", REVISION)
Statement = Callable[[Seeder, int], Any]
ATTEMPT = 3


def _end(kind: type[Ended], **more: Any) -> Callable[[int], list[Any]]:
    return lambda job_id: [kind(job_id, ATTEMPT, 0.1, **more)]


ADVANCED, FINISHED = _end(Advanced, canvas="256x256"), _end(Finished, result="/r/1.png", sha256="sha")
FAILED, RETRIED = _end(Failed, code="code", message="m"), _end(Retried, code="code", message="m")
STATEMENTS: dict[str, Statement] = {
    "dispatch": lambda seed, _: seed.do(queries.dispatch, "b", 1),
    "claim": lambda seed, _: seed.claim(SAMPLE),
    "advance": lambda seed, job: seed.do(queries.advance, Stage.SAMPLE, ADVANCED(job)),
    "carry": lambda seed, job: seed.do(queries.carry, Stage.SAMPLE, ADVANCED(job)),
    "succeed": lambda seed, job: seed.do(queries.succeed, Stage.SAMPLE, FINISHED(job)),
    "retry": lambda seed, job: seed.do(queries.retry, Stage.SAMPLE, RETRIED(job)),
    "hand_back": lambda seed, _: seed.do(queries.hand_back, "w"),
    "take_back": lambda seed, _: seed.do(queries.take_back, "w", crashes_allowed=2),
    "lose_handoff": lambda seed, job: seed.do(queries.lose_handoffs, Stage.SAMPLE, _end(Ended)(job)),
    "fail": lambda seed, job: seed.do(queries.fail, Stage.SAMPLE, FAILED(job)),
    "expire": lambda seed, _: seed.do(queries.expire_jobs, "b", 1),
    "cancel": lambda seed, _: seed.do(queries.cancel_jobs, "b", 1),
    "restart": lambda seed, job: seed.do(queries.restart_jobs, [job]),
}
# A bad row is stored as failed: no statement moves it there. A handoff is found lost by whoever has claimed the job.
BY_NO_STATEMENT = {("reject", JobState.PENDING), ("lose_handoff", JobState.QUEUED)}


def put(seed: Seeder, state: JobState, **batch: Any) -> int:
    """One job in this state, at the stage sample of worker w, alone in the database."""
    with seed.engine.begin() as connection:
        for table in (attempts, jobs, batches):
            connection.execute(table.delete())
    seed.batch(jobs=1)
    with seed.engine.begin() as connection:
        connection.execute(
            update(jobs).values(state=state, stage="sample", canvas="256x256", worker_id="w", attempt=ATTEMPT)
        )
        if batch:
            connection.execute(update(batches).values(**batch))
    (row,) = seed.rows()
    return int(row["id"])


def test_every_move_has_its_statement() -> None:
    assert set(STATEMENTS) | {name for name, _ in BY_NO_STATEMENT} == set(JOB_MOVES)


def test_a_statement_moves_a_job_only_along_the_diagram(seed: Seeder) -> None:
    for name, state in product(STATEMENTS, JobState):
        move, overdue = JOB_MOVES[name], {"deadline_at": 1.0} if name == "expire" else {}
        job_id = put(seed, state, **overdue)
        before = seed.row(job_id)
        STATEMENTS[name](seed, job_id)
        after = seed.row(job_id)
        if state in move.source and (name, state) not in BY_NO_STATEMENT:
            assert (after["state"], after != before) == (move.target, True), (name, state)
        else:
            assert after == before, (name, state)
        assert after["attempt"] >= before["attempt"], (name, state)


def test_no_work_begins_in_a_batch_that_does_not_run(seed: Seeder) -> None:
    # What was claimed ends its stage, and is not carried into the next.
    names = [name for name in STATEMENTS if name not in ("expire", "cancel", "restart")]
    for name, status in product(names, set(BatchStatus) - {BatchStatus.RUNNING}):
        job_id = put(seed, JOB_MOVES[name].source[0], status=status)
        before = seed.row(job_id)
        STATEMENTS[name](seed, job_id)
        assert (seed.row(job_id) == before) == (name in ("dispatch", "claim", "carry")), (name, status)
