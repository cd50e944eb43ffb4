"""Workers, statement by statement: who registered, who was seen when, who ended."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from sqlalchemy import Connection, Double, delete, func, literal, or_, select, update

from orchestrator.state.database import now
from orchestrator.state.tables import batches, in_state, jobs, workers
from orchestrator.state.transitions import BatchStatus, JobState, Stage


@dataclass(frozen=True)
class Worker:
    """A worker process as it registered itself."""

    id: str
    host: str
    pid: int
    stages: str
    device: str
    revision: str
    numerics: str
    started_at: float
    seen_at: float
    ended_at: float | None
    rss_bytes: int


def register_worker(connection: Connection, worker: Mapping[str, Any]) -> None:
    """Store a worker that is about to claim."""
    connection.execute(workers.insert().values(started_at=now(), seen_at=now(), **worker))


def beat(connection: Connection, worker_id: str, *, rss_bytes: int) -> bool:
    """Renew a worker's lease. False when it was declared dead meanwhile: its jobs are others' now."""
    statement = (
        update(workers)
        .where(workers.c.id == worker_id, workers.c.ended_at.is_(None))
        .values(seen_at=now(), rss_bytes=rss_bytes)
    )
    return connection.execute(statement).rowcount == 1


def end_worker(connection: Connection, worker_id: str) -> bool:
    """Close a worker's row: it stopped, or its death was reported. False when it was closed before."""
    statement = update(workers).where(workers.c.id == worker_id, workers.c.ended_at.is_(None)).values(ended_at=now())
    return connection.execute(statement).rowcount == 1


def prune_workers(connection: Connection, older_than_s: float, limit: int) -> int:
    """Forget workers that ended so long ago and hold no jobs; gives how many."""
    holds = select(jobs.c.id).where(in_state(JobState.RUNNING), jobs.c.worker_id == workers.c.id).exists()
    old = (
        select(workers.c.id)
        .where(workers.c.ended_at < now() - literal(older_than_s, Double), ~holds)
        .order_by(workers.c.id)
        .limit(limit)
    )
    return connection.execute(delete(workers).where(workers.c.id.in_(old))).rowcount


@dataclass(frozen=True)
class Life:
    """What shows that a worker lives, in seconds of the database's clock: `at` is now.

    `stage_at` is when the oldest stage that it works on began; None where it holds nothing.
    """

    id: str
    seen_at: float
    stage_at: float | None
    at: float


def signs_of_life(connection: Connection) -> list[Life]:
    """Of every worker that has not ended. Whether it lives is for those to judge who have looked for a while."""
    held = (
        select(jobs.c.worker_id, func.min(jobs.c.stage_at).label("stage_at"))
        .where(in_state(JobState.RUNNING), jobs.c.worker_id.is_not(None))
        .group_by(jobs.c.worker_id)
        .subquery()
    )
    statement = (
        select(workers.c.id, workers.c.seen_at, held.c.stage_at, now())
        .outerjoin(held, held.c.worker_id == workers.c.id)
        .where(workers.c.ended_at.is_(None))
        .order_by(workers.c.id)
    )
    return [Life(*row) for row in connection.execute(statement)]


def ended_holders(connection: Connection) -> list[str]:
    """Workers that ended and still hold jobs."""
    held = select(jobs.c.worker_id).where(in_state(JobState.RUNNING), jobs.c.worker_id.is_not(None))
    statement = select(workers.c.id).where(workers.c.id.in_(held), workers.c.ended_at.is_not(None))
    return list(connection.execute(statement.order_by(workers.c.id)).scalars())


def live_workers(connection: Connection, *, lease_s: float) -> list[Worker]:
    """Workers whose lease holds."""
    statement = (
        select(*(workers.c[field.name] for field in fields(Worker)))
        .where(workers.c.ended_at.is_(None), workers.c.seen_at >= now() - literal(lease_s, Double))
        .order_by(workers.c.started_at)
    )
    return [Worker(*row) for row in connection.execute(statement)]


def has_backlog(
    connection: Connection, stages: Sequence[Stage], revision: str, numerics: str, *, older_than_s: float
) -> bool:
    """Whether jobs that such a worker could claim have waited longer than `older_than_s`."""
    late = now() - literal(older_than_s, Double)
    statement = (
        select(jobs.c.id)
        .join(batches, batches.c.id == jobs.c.batch_id)
        .where(
            in_state(JobState.QUEUED),
            jobs.c.stage.in_(stages),
            jobs.c.queued_at <= late,
            or_(jobs.c.run_at.is_(None), jobs.c.run_at <= late),
            batches.c.status == BatchStatus.RUNNING,
            batches.c.revision == revision,
            batches.c.numerics == numerics,
        )
        .limit(1)
    )
    return connection.execute(statement).first() is not None


def held_jobs(connection: Connection, worker_ids: Sequence[str]) -> dict[str, list[int]]:
    """The jobs that these workers hold, by worker."""
    held: dict[str, list[int]] = {}
    statement = select(jobs.c.worker_id, jobs.c.id).where(in_state(JobState.RUNNING), jobs.c.worker_id.in_(worker_ids))
    for worker_id, job_id in connection.execute(statement.order_by(jobs.c.id)):
        held.setdefault(worker_id, []).append(job_id)
    return held
