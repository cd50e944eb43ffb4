"""The way of a job, statement by statement.

Every write to a running job names its attempt: the fencing token. A write that changes no row came from a stale worker
and is dropped by the caller.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import (
    Connection,
    Double,
    and_,
    bindparam,
    func,
    insert,
    literal,
    or_,
    select,
    union_all,
    update,
)

from orchestrator.state.database import now, tellable
from orchestrator.state.messages import bells_needed
from orchestrator.state.queries.outbox import tell_of_failed_jobs
from orchestrator.state.queries.rows import Advanced, Claimed, Ended, Failed, Finished, Group, Retried
from orchestrator.state.queries.statements import (
    as_json,
    carry_statement,
    claim_statement,
    write_statement,
)
from orchestrator.state.tables import attempts, batches, in_state, jobs
from orchestrator.state.transitions import BatchStatus, JobState, Stage

AGING_S = 600.0
"""Seconds of waiting that weigh as much as one point of a batch's priority: the urgent go first, nobody starves."""
# A job's own priority orders the jobs of its batch: all of its range is less than one point of the batch's.
JOB_PRIORITY_S = AGING_S / 1000


def dispatch(connection: Connection, batch_id: str, limit: int) -> Mapping[str, int]:
    """Move up to `limit` pending jobs of a running batch to queued(encode); gives the number of jobs by recipe.

    When it is queued and the priorities of batch and job become the order of claims, for all its stages.
    """
    asked = update(batches).where(batches.c.id == batch_id, batches.c.status == BatchStatus.RUNNING)
    # Locks the row: a change of priority or status comes wholly before or wholly after.
    priority = connection.execute(asked.values(dispatched_at=now()).returning(batches.c.priority)).scalar_one_or_none()
    if priority is None:
        return {}
    chosen = (
        select(jobs.c.id)
        .where(jobs.c.batch_id == batch_id, in_state(JobState.PENDING))
        .order_by(jobs.c.priority.desc(), jobs.c.id)
        .limit(limit)
        .with_for_update(skip_locked=True)
        .cte("chosen")
        .prefix_with("MATERIALIZED")
    )
    queued_at = select(now()).scalar_subquery()  # the same for all of them
    statement = (
        update(jobs)
        .where(jobs.c.id.in_(select(chosen.c.id)))
        .values(
            state=JobState.QUEUED,
            stage=Stage.ENCODE,
            canvas="",
            queued_at=queued_at,
            urgency=priority * AGING_S + jobs.c.priority * JOB_PRIORITY_S - queued_at,
        )
        .returning(jobs.c.recipe_id)
    )
    return Counter(connection.execute(statement).scalars())


def claim(
    connection: Connection, stage: Stage, *, revision: str, numerics: str, worker_id: str, limit: int
) -> list[Claimed]:
    """Take up to `limit` queued jobs of the most urgent group of a stage for a worker.

    A job whose worker died is claimed alone, so that a next death blames only the guilty one; one that found too little
    memory in a smaller unit. Batches that are paused, cancelled, overdue, or pinned to another revision or numerics
    give nothing, and a worker that was declared dead gets nothing.
    """
    given = {"stage": stage, "revision": revision, "numerics": numerics, "worker_id": worker_id, "limit": limit}
    rows = connection.execute(claim_statement(connection.dialect.name), given).all()
    return sorted((Claimed(*row) for row in rows), key=lambda job: job.id)


def advance(connection: Connection, stage: Stage, ends: Sequence[Advanced]) -> set[int]:
    """Move jobs whose `stage` is done to queued(next stage); gives the ids that moved, the others were stale."""
    if stage.following is None:
        raise ValueError(f"no stage follows {stage}")
    return _write(connection, "advance", stage, ends, stage_to=stage.following)


def carry(connection: Connection, stage: Stage, ends: Sequence[Advanced]) -> list[Claimed]:
    """Advance jobs and claim them for the next stage at once, for the worker that holds them: one statement.

    Gives those that went on. The others are stale, or their batch is no longer running: they are still where they were.
    """
    statement = carry_statement(connection.dialect.name, stage)
    rows = connection.execute(statement, {"given": as_json(ends), "stage": stage, "stage_to": stage.following})
    return sorted((Claimed(*row) for row in rows), key=lambda job: job.id)


def succeed(connection: Connection, stage: Stage, ends: Sequence[Finished]) -> set[int]:
    """Close jobs whose picture is stored (after decode) or reused (at encode); gives the ids that moved."""
    return _write(connection, "succeed", stage, ends)


def fail(connection: Connection, stage: Stage, ends: Sequence[Failed]) -> set[int]:
    """End jobs that cannot succeed; gives the ids that moved."""
    ends = [replace(end, message=tellable(end.message)) for end in ends]
    failed = _record(connection, "fail", stage, ends, _write(connection, "fail", stage, ends))
    if failed:
        tell_of_failed_jobs(connection, jobs.c.id.in_(failed))
    return failed


def retry(connection: Connection, stage: Stage, ends: Sequence[Retried]) -> set[int]:
    """Queue jobs for the same stage again, each not before its own time; raises the attempt, counts a failure."""
    ends = [replace(end, message=tellable(end.message)) for end in ends]
    return _record(connection, "retry", stage, ends, _write(connection, "retry", stage, ends))


def lose_handoffs(connection: Connection, stage: Stage, ends: Sequence[Ended]) -> set[int]:
    """Send jobs whose handoff is gone back to encode; counts against nobody."""
    return _record(connection, "lose_handoff", stage, ends, _write(connection, "lose_handoff", stage, ends))


def hand_back(connection: Connection, worker_id: str) -> list[Group]:
    """Queue again all that a worker still holds, as it stops in good order; counts against nobody."""
    return _release(connection, worker_id, "hand_back", crashed=0, crashes_allowed=0)


def take_back(connection: Connection, worker_id: str, *, crashes_allowed: int) -> list[Group]:
    """Queue again all that a dead worker held, counting a crash for each; gives their groups.

    A job that has outlived more than `crashes_allowed` of its workers fails as `poison`.
    """
    return _release(connection, worker_id, "crash", crashed=1, crashes_allowed=crashes_allowed)


def _release(
    connection: Connection, worker_id: str, outcome: str, *, crashed: int, crashes_allowed: int
) -> list[Group]:
    held = and_(in_state(JobState.RUNNING), jobs.c.worker_id == worker_id)
    released = (
        update(jobs)
        .where(held)
        .values(
            state=JobState.QUEUED, worker_id=None, attempt=jobs.c.attempt + 1, crashes=jobs.c.crashes + crashed,
            unit_limit=1 if crashed else jobs.c.unit_limit, queued_at=now(), run_at=None,
        )
        .returning(
            jobs.c.id, jobs.c.batch_id, jobs.c.stage, jobs.c.recipe_id, jobs.c.canvas, jobs.c.attempt, jobs.c.crashes,
            jobs.c.stage_at,
        )
    )  # fmt: skip
    rows = connection.execute(released).all()
    if rows:
        connection.execute(
            insert(attempts).values(worker_id=worker_id, outcome=outcome, ended_at=now()),
            [
                {"job_id": row.id, "attempt": row.attempt - 1, "stage": row.stage, "began_at": row.stage_at}
                for row in rows
            ],
        )
    poisoned = {row.id for row in rows if crashed and row.crashes > crashes_allowed}
    if poisoned:
        connection.execute(
            update(jobs)
            .where(jobs.c.id.in_(poisoned), in_state(JobState.QUEUED))
            .values(
                state=JobState.FAILED,
                ended_at=now(),
                code="poison",
                message=f"its worker died {crashes_allowed + 1} times, or hung, holding this job; it is set aside",
            )
        )
        tell_of_failed_jobs(connection, jobs.c.id.in_(poisoned))
    revisions = dict(
        connection.execute(
            select(batches.c.id, batches.c.revision).where(batches.c.id.in_({row.batch_id for row in rows}))
        ).all()
    )
    return [
        Group(Stage(row.stage), row.recipe_id, row.canvas or "", revisions[row.batch_id])
        for row in rows
        if row.id not in poisoned
    ]


def any_held(connection: Connection, attempts_by_id: Mapping[int, int]) -> bool:
    """Whether any of these jobs still runs at the attempt given: if none does, nobody wants the work."""
    statement = select(jobs.c.id, jobs.c.attempt).where(jobs.c.id.in_(list(attempts_by_id)), in_state(JobState.RUNNING))
    return any(attempts_by_id[row.id] == row.attempt for row in connection.execute(statement))


def in_flight(connection: Connection) -> Mapping[str, int]:
    """Jobs queued or running, by batch: what fills the window."""
    # Every one has a stage, and a worker: said so, SQLite too reads the two small indexes, and never the backlog's.
    held = union_all(
        select(jobs.c.batch_id).where(in_state(JobState.QUEUED), jobs.c.stage.in_(list(Stage))),
        select(jobs.c.batch_id).where(in_state(JobState.RUNNING), jobs.c.worker_id.is_not(None)),
    ).subquery()
    statement = select(held.c.batch_id, func.count()).group_by(held.c.batch_id)
    return dict(connection.execute(statement).all())


def backing_off(connection: Connection) -> Mapping[str, int]:
    """Jobs in flight that wait for the time of their next try, by batch: no worker is busy with them."""
    statement = (
        select(jobs.c.batch_id, func.count())
        .where(in_state(JobState.QUEUED), jobs.c.stage.in_(list(Stage)), jobs.c.run_at > now())
        .group_by(jobs.c.batch_id)
    )
    return dict(connection.execute(statement).all())


def units_queued(connection: Connection, *, older_than_s: float, unit_size: int) -> Mapping[Group, int]:
    """Units of claimable queued jobs by group, of those that wait longer than `older_than_s`.

    The longest waiting group comes first.
    """
    key = (jobs.c.stage, jobs.c.recipe_id, jobs.c.canvas, batches.c.revision)
    statement = (
        select(*key, jobs.c.unit_limit, func.count().label("rows"))
        .join(batches, batches.c.id == jobs.c.batch_id)
        .where(
            in_state(JobState.QUEUED),
            batches.c.status == BatchStatus.RUNNING,
            or_(batches.c.deadline_at.is_(None), batches.c.deadline_at > now()),
            jobs.c.queued_at <= now() - literal(older_than_s, Double),
            or_(jobs.c.run_at.is_(None), jobs.c.run_at <= now()),
        )
        .group_by(*key, jobs.c.unit_limit)
        .order_by(func.min(jobs.c.queued_at))
    )
    units: Counter[Group] = Counter()
    for row in connection.execute(statement):
        group = Group(Stage(row.stage), row.recipe_id, row.canvas or "", row.revision)
        units[group] += bells_needed(row.rows, min(row.unit_limit or unit_size, unit_size))
    return units


def unfinished(connection: Connection, batch_id: str) -> bool:
    """Whether a batch still has jobs pending, queued or running."""
    for state in (JobState.PENDING, JobState.QUEUED, JobState.RUNNING):
        statement = select(jobs.c.id).where(jobs.c.batch_id == batch_id, in_state(state)).limit(1)
        if connection.execute(statement).first() is not None:
            return True
    return False


def _write(connection: Connection, move: str, stage: Stage, ends: Sequence[Ended], **more: Any) -> set[int]:
    if not ends:
        return set()
    statement = write_statement(connection.dialect.name, move, stage)
    return set(connection.execute(statement, {"given": as_json(ends), "stage": stage, **more}).scalars())


def _record(connection: Connection, outcome: str, stage: Stage, ends: Sequence[Ended], moved: set[int]) -> set[int]:
    """Keep in the history what ended these attempts; the jobs row tells only how it stands now."""
    rows = [
        {
            "job_id": end.id,
            "of_job": end.id,
            "attempt": end.attempt,
            "stage": stage,
            "outcome": outcome,
            "code": getattr(end, "code", None),
            "message": getattr(end, "message", None),
        }
        for end in ends
        if end.id in moved
    ]
    if rows:
        began_at = select(jobs.c.stage_at).where(jobs.c.id == bindparam("of_job", type_=jobs.c.id.type))
        connection.execute(insert(attempts).values(ended_at=now(), began_at=began_at.scalar_subquery()), rows)
    return moved
