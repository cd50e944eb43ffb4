"""What is asked of a batch while it runs, statement by statement: resume, cancel, deadline, retry, priority, end.

Jobs move in chunks that the caller repeats, so that no transaction holds SQLite's only write lock for long. Rows that
others hold locked at the moment are left to the next chunk: nobody waits for anybody.
"""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Double,
    Engine,
    and_,
    case,
    delete,
    func,
    insert,
    literal,
    or_,
    select,
    tuple_,
    update,
)

from orchestrator.state.database import now, reading
from orchestrator.state.queries.batches import PAGE_ROWS, BatchCounts, move_batch
from orchestrator.state.queries.jobs import AGING_S, unfinished
from orchestrator.state.queries.outbox import tell_of_batch, tell_of_failed_jobs
from orchestrator.state.queries.requests import forget_keys
from orchestrator.state.queries.runs import reopen_runs
from orchestrator.state.tables import OPEN_RUN, attempts, batches, in_state, jobs, schedule_runs
from orchestrator.state.transitions import BATCH_MOVES, BatchStatus, Event, JobState, Stage

EXPIRED = "expired"
ENDS: Mapping[BatchStatus, BatchStatus] = {
    BatchStatus.RUNNING: BatchStatus.COMPLETED,
    BatchStatus.CANCELLING: BatchStatus.CANCELLED,
}
"""How a batch ends whose jobs have all ended."""


def resume_batch(connection: Connection, batch_id: str) -> bool:
    """Set a paused batch running; its error rate counts from now on. False when it is not paused."""
    statement = (
        update(batches)
        .where(batches.c.id == batch_id, batches.c.status == BatchStatus.PAUSED)
        .values(status=BatchStatus.RUNNING, reason=None, resumed_at=now())
    )
    return connection.execute(statement).rowcount == 1


def set_priority(connection: Connection, batch_id: str, priority: int) -> None:
    """Change a batch's priority, also for its jobs that are queued or running already."""
    before = connection.execute(select(batches.c.priority).where(batches.c.id == batch_id).with_for_update()).scalar()
    if before is None or before == priority:
        return
    connection.execute(update(batches).where(batches.c.id == batch_id).values(priority=priority))
    held = and_(jobs.c.batch_id == batch_id, or_(in_state(JobState.QUEUED), in_state(JobState.RUNNING)))
    # Locked in the order in which workers write the ends of a unit.
    ids = select(jobs.c.id).where(held).order_by(jobs.c.id).with_for_update().cte("held")
    connection.execute(
        update(jobs)
        .where(jobs.c.id.in_(select(ids.c.id)))
        .values(urgency=jobs.c.urgency + (priority - before) * AGING_S)
    )


def cancel_jobs(connection: Connection, batch_id: str, limit: int) -> int:
    """Cancel up to `limit` jobs that have not ended, running ones first, whose attempt is raised; gives how many."""
    cancelled = 0
    for state in (JobState.RUNNING, JobState.QUEUED, JobState.PENDING):
        raised = 1 if state is JobState.RUNNING else 0
        rows = connection.execute(
            update(jobs)
            .where(jobs.c.id.in_(_chosen(batch_id, state, limit - cancelled)))
            .values(state=JobState.CANCELLED, attempt=jobs.c.attempt + raised, ended_at=now(), run_at=None)
            .returning(jobs.c.id, jobs.c.attempt, jobs.c.stage, jobs.c.worker_id, jobs.c.stage_at)
        ).all()
        if rows and raised:
            connection.execute(
                insert(attempts).values(outcome="cancel", ended_at=now()),
                [
                    {
                        "job_id": row.id,
                        "attempt": row.attempt - 1,
                        "stage": row.stage,
                        "worker_id": row.worker_id,
                        "began_at": row.stage_at,
                    }
                    for row in rows
                ],
            )
        cancelled += len(rows)
        if cancelled >= limit:
            break
    return cancelled


def ended_midway(connection: Connection, batch_id: str) -> Iterator[Sequence[int]]:
    """Ids of a batch's jobs that ended where an earlier stage may have left a handoff of them, in pages.

    They were cancelled, expired or set aside; whoever fails at work drops what was left to it.
    """
    statement = select(jobs.c.id).where(
        jobs.c.batch_id == batch_id,
        jobs.c.state.in_((JobState.CANCELLED, JobState.FAILED)),
        jobs.c.stage.in_((Stage.SAMPLE, Stage.DECODE)),
    )
    yield from connection.execute(statement).scalars().partitions(PAGE_ROWS)


def find_cancelled(connection: Connection, job_ids: Collection[int]) -> set[int]:
    """Those of the jobs that are cancelled."""
    statement = select(jobs.c.id).where(jobs.c.id.in_(job_ids), jobs.c.state == JobState.CANCELLED)
    return set(connection.execute(statement).scalars())


def failed_unfinished(connection: Connection) -> list[str]:
    """Ids of batches whose catalogue could not be read as a whole, and that have jobs of what was read before."""
    left = select(jobs.c.id).where(jobs.c.batch_id == batches.c.id, in_state(JobState.PENDING)).exists()
    statement = select(batches.c.id).where(batches.c.status == BatchStatus.FAILED, left)
    return list(connection.execute(statement.order_by(batches.c.id)).scalars())


def find_abandoned(connection: Connection, older_than_s: float) -> list[str]:
    """Ids of batches that lack rows and got none for so long, and that no run will go on with."""
    return list(connection.execute(select(batches.c.id).where(*_abandoned(older_than_s))).scalars())


def fail_abandoned(connection: Connection, batch_id: str, older_than_s: float, reason: str) -> bool:
    """Fail a batch that is abandoned, and forget the keys of its request. False when somebody went on with it."""
    statement = select(batches.c.id).where(batches.c.id == batch_id, *_abandoned(older_than_s))
    if connection.execute(statement.with_for_update(of=batches)).first() is None:
        return False
    forget_keys(connection, batch_id)
    return move_batch(connection, batch_id, BatchStatus.FAILED, reason=reason)


def _abandoned(older_than_s: float) -> tuple[ColumnElement[bool], ...]:
    run = select(schedule_runs.c.id).where(schedule_runs.c.batch_id == batches.c.id, OPEN_RUN)
    moved_at = func.coalesce(batches.c.ingested_at, batches.c.created_at)
    return (
        batches.c.ended_at.is_(None),
        batches.c.status == BatchStatus.INGESTING,
        moved_at < now() - literal(older_than_s, Double),
        ~run.exists(),
    )


def expire_jobs(connection: Connection, batch_id: str, limit: int) -> int:
    """Fail up to `limit` jobs that nobody has claimed by their batch's deadline; gives how many.

    It looks itself whether the deadline has passed, by the database's clock.
    """
    overdue = select(batches.c.id).where(batches.c.id == batch_id, batches.c.deadline_at <= now()).exists()
    expired = 0
    for state in (JobState.QUEUED, JobState.PENDING):
        statement = (
            update(jobs)
            .where(jobs.c.id.in_(_chosen(batch_id, state, limit - expired)), overdue)
            .values(
                state=JobState.FAILED,
                ended_at=now(),
                run_at=None,
                code=EXPIRED,
                message="the batch's deadline passed before this job was claimed",
            )
            .returning(jobs.c.id)  # sqlite3 counts no rows of a statement that begins with WITH
        )
        ids = connection.execute(statement).scalars().all()
        tell_of_failed_jobs(connection, jobs.c.id.in_(ids))
        expired += len(ids)
        if expired >= limit:
            break
    return expired


def _chosen(batch_id: str, state: JobState, limit: int) -> Any:
    chosen = (
        select(jobs.c.id)
        .where(jobs.c.batch_id == batch_id, in_state(state))
        .limit(limit)
        .with_for_update(skip_locked=True)
        .cte("chosen")
        .prefix_with("MATERIALIZED")
    )
    return select(chosen.c.id)


def match_jobs(
    engine: Engine,
    batch_id: str,
    *,
    states: Sequence[JobState],
    codes: Sequence[str] = (),
    lines: Sequence[int] = (),
) -> Iterator[list[tuple[int, bool]]]:
    """The jobs of a batch in these states, in pages by key: (id, whether its row was good).

    A connection is held for the reading of a page alone: who takes it writes by another.
    """
    wanted: list[ColumnElement[bool]] = [jobs.c.batch_id == batch_id, jobs.c.state.in_(states)]
    wanted += [jobs.c.code.in_(codes)] if codes else []
    wanted += [jobs.c.line.in_(lines)] if lines else []
    after = (-1, -1)
    while True:
        statement = (
            select(jobs.c.id, jobs.c.recipe_id, jobs.c.line, jobs.c.take)
            .where(*wanted, tuple_(jobs.c.line, jobs.c.take) > after)
            .order_by(jobs.c.line, jobs.c.take)
            .limit(PAGE_ROWS)
        )
        with reading(engine).connect() as connection:
            rows = connection.execute(statement).all()
        if rows:
            yield [(row.id, row.recipe_id is not None) for row in rows]
        if len(rows) < PAGE_ROWS:
            return
        after = (rows[-1].line, rows[-1].take)


def restartable(connection: Connection, batch_id: str, ids: Sequence[int]) -> list[tuple[int, bool]]:
    """Those of these jobs that are the batch's, and failed or cancelled: (id, whether its row was good)."""
    statement = select(jobs.c.id, jobs.c.recipe_id.is_not(None)).where(
        jobs.c.batch_id == batch_id,
        jobs.c.id.in_(ids),
        jobs.c.state.in_((JobState.FAILED, JobState.CANCELLED)),
    )
    return [(job_id, bool(good)) for job_id, good in connection.execute(statement.order_by(jobs.c.id))]


def reopen_batch(connection: Connection, batch_id: str) -> bool:
    """Let a batch take up ended jobs again: set it running if it had ended, drop a deadline that has passed.

    False when it is being read or cancelled, or could not be read. Called before `restart_jobs` in one transaction: the
    row it locks keeps the batch from ending in between.
    """
    paused = batches.c.status == BatchStatus.PAUSED
    statement = (
        update(batches)
        .where(
            batches.c.id == batch_id,
            batches.c.status.in_(
                (BatchStatus.RUNNING, BatchStatus.PAUSED, BatchStatus.COMPLETED, BatchStatus.CANCELLED)
            ),
        )
        .values(
            status=case((paused, BatchStatus.PAUSED), else_=BatchStatus.RUNNING),
            reason=case((paused, batches.c.reason), else_=None),
            ended_at=None,
            ended_counts=None,
            started_at=func.coalesce(batches.c.started_at, now()),
            resumed_at=now(),
            reopened=batches.c.reopened + 1,
            deadline_at=case((batches.c.deadline_at <= now(), None), else_=batches.c.deadline_at),
        )
    )
    if connection.execute(statement).rowcount == 0:
        return False
    reopen_runs(connection, batch_id)
    return True


def restart_jobs(connection: Connection, ids: Sequence[int]) -> int:
    """Set failed and cancelled jobs pending again, their failures forgotten; gives how many.

    The attempt is raised, so that whoever ended them cannot write to them again. A job that workers died with stays
    suspect, and is claimed alone.
    """
    suspect = jobs.c.crashes > 0
    statement = (
        update(jobs)
        .where(
            jobs.c.id.in_(ids),
            or_(in_state(JobState.FAILED), in_state(JobState.CANCELLED)),
            jobs.c.recipe_id.is_not(None),
        )
        .values(
            state=JobState.PENDING, stage=None, canvas=None, attempt=jobs.c.attempt + 1, failures=0,
            crashes=case((suspect, 1), else_=0), unit_limit=case((suspect, 1), else_=None), worker_id=None,
            queued_at=None, run_at=None, stage_at=None, ended_at=None, code=None, message=None,
        )
    )  # fmt: skip
    return connection.execute(statement).rowcount


def close_batch(connection: Connection, batch_id: str, *, reopened: int, counts: BatchCounts | None = None) -> bool:
    """End a batch whose jobs have all ended, if it was not reopened since `reopened` was read.

    `counts` were read since then; where they say that all jobs had ended, they are kept: nobody needs to count again.

    Locks the row first and looks at the jobs afterwards, so that a retry comes wholly before or wholly after.
    """
    found = connection.execute(
        select(batches.c.status, batches.c.reopened).where(batches.c.id == batch_id).with_for_update()
    ).one_or_none()
    if found is None or found.status not in ENDS or found.reopened != reopened or unfinished(connection, batch_id):
        return False
    to = ENDS[BatchStatus(found.status)]
    final = counts is not None and counts.ended == counts.total
    connection.execute(
        update(batches)
        .where(batches.c.id == batch_id)
        .values(status=to, ended_at=now(), ended_counts=json.dumps(asdict(counts)) if counts and final else None)
    )
    if to == BatchStatus.COMPLETED:
        tell_of_batch(connection, Event.BATCH_COMPLETED, batch_id)
    return True


def count_failures(
    connection: Connection, batch_id: str, *, since: float | None, enough: float | None
) -> tuple[int, int]:
    """(failed, succeeded) of the jobs that ran and ended since then.

    Of those that succeeded no more are counted than `enough` for each that failed, where it is given, and twenty at
    least: at ten million rows the cost is bounded by what failed.
    """
    ran: list[ColumnElement[bool]] = [jobs.c.batch_id == batch_id]
    if since is not None:
        ran.append(jobs.c.ended_at >= since)
    good = [jobs.c.recipe_id.is_not(None), func.coalesce(jobs.c.code, "") != EXPIRED]
    failed = connection.execute(
        select(func.count()).select_from(jobs).where(*ran, in_state(JobState.FAILED), *good)
    ).scalar_one()
    most = None if enough is None else max(20, int(failed * enough) + 1)
    some = select(jobs.c.id).where(*ran, in_state(JobState.SUCCEEDED)).limit(most).subquery()
    return failed, connection.execute(select(func.count()).select_from(some)).scalar_one()


def begin_deletion(connection: Connection, batch_id: str) -> bool:
    """Mark an ended batch, so that nothing reopens it or writes of it while its rows go.

    False when it has not ended, or is marked.
    """
    sources = [source for source, target in BATCH_MOVES if target == BatchStatus.DELETING]
    statement = update(batches).where(batches.c.id == batch_id, batches.c.status.in_(sources))
    return connection.execute(statement.values(status=BatchStatus.DELETING, reason=None)).rowcount == 1


def delete_jobs(connection: Connection, batch_id: str, limit: int) -> int:
    """Forget up to `limit` jobs of a batch that is being deleted, with their attempts; gives how many."""
    marked = select(batches.c.id).where(batches.c.id == batch_id, batches.c.status == BatchStatus.DELETING).exists()
    chosen = select(jobs.c.id).where(jobs.c.batch_id == batch_id, marked).limit(limit)
    return connection.execute(delete(jobs).where(jobs.c.id.in_(chosen))).rowcount


def delete_batch(connection: Connection, batch_id: str) -> bool:
    """Forget a batch that is being deleted and has no jobs left, and the keys of its request. False: there is none.

    A batch that is made of the same request later gets an id of its own: under the old one lie this one's pictures.
    """
    statement = delete(batches).where(
        batches.c.id == batch_id,
        batches.c.status == BatchStatus.DELETING,
        ~select(jobs.c.id).where(jobs.c.batch_id == batch_id).exists(),
    )
    deleted = connection.execute(statement).rowcount == 1
    if deleted:
        forget_keys(connection, batch_id)
    return deleted
