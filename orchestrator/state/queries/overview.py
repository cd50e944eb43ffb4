"""What pages tell at a glance, statement by statement: failures grouped, images by minute, queues, a job's history.

Each reads along an index no more rows than it tells of, or than ended in the time that is asked for.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Double, Float, RowMapping, cast, func, literal, select, union_all

from orchestrator.state.database import now
from orchestrator.state.queries.workers import Worker, live_workers
from orchestrator.state.tables import attempts, batches, in_state, jobs
from orchestrator.state.transitions import JobState, Stage

MINUTE_S = 60.0
EXAMPLES_OF = 20
"""Codes for which an example is looked up; those with the fewest failures go without."""


@dataclass(frozen=True)
class FailureGroup:
    """Failed jobs of one code; the example is one of them."""

    code: str
    count: int
    message: str | None = None
    job_id: int | None = None
    batch_id: str | None = None


@dataclass(frozen=True)
class JobHistory:
    """A job's row, the attempts that ended otherwise than in success, oldest first, and the takes of its row."""

    job: RowMapping
    attempts: list[RowMapping]
    takes: list[RowMapping]


@dataclass(frozen=True)
class Overview:
    """The whole at a glance. `depths` counts jobs by (state, stage); times are the database's clock, `at` is now."""

    at: float
    batches: Mapping[str, int]
    depths: Mapping[tuple[JobState, Stage], int]
    workers: list[Worker]
    images_by_minute: list[tuple[float, int]]
    failures: list[FailureGroup]


def job_history(connection: Connection, job_id: int) -> JobHistory | None:
    """One job with all that is known of its way, or None."""
    job = connection.execute(select(jobs).where(jobs.c.id == job_id)).mappings().one_or_none()
    if job is None:
        return None
    ended = select(attempts).where(attempts.c.job_id == job_id).order_by(attempts.c.id)
    of_row = select(jobs).where(jobs.c.batch_id == job["batch_id"], jobs.c.line == job["line"]).order_by(jobs.c.take)
    return JobHistory(
        job, list(connection.execute(ended).mappings()), list(connection.execute(of_row).mappings())
    )  # fmt: skip


def failures_grouped(
    connection: Connection, *, batch_id: str | None = None, since: float | None = None
) -> list[FailureGroup]:
    """Failed jobs by code, the most frequent first: of a batch, or of all that failed since then."""
    failed = [in_state(JobState.FAILED)]
    failed += [jobs.c.batch_id == batch_id] if batch_id is not None else []
    failed += [jobs.c.ended_at >= since] if since is not None else []
    counted = (
        select(jobs.c.code, func.count().label("count"))
        .where(*failed)
        .group_by(jobs.c.code)
        .order_by(func.count().desc(), jobs.c.code)
    )
    found = connection.execute(counted).all()
    # In the order of whichever index answers, or the database would walk through another one for the first.
    order = (jobs.c.line, jobs.c.take) if batch_id is not None else (jobs.c.ended_at,)
    one = select(jobs.c.code, jobs.c.message, jobs.c.id, jobs.c.batch_id).where(*failed).order_by(*order).limit(1)
    firsts = [select(one.where(jobs.c.code == code).subquery()) for code, _ in found[:EXAMPLES_OF]]
    examples = {row[0]: row[1:] for row in connection.execute(union_all(*firsts))} if firsts else {}
    return [FailureGroup(code or "unknown", count, *examples.get(code, ())) for code, count in found]


def throughput(
    connection: Connection,
    *,
    since: float,
    until: float | None = None,
    batch_id: str | None = None,
    bucket_s: float = MINUTE_S,
    state: JobState = JobState.SUCCEEDED,
) -> list[tuple[float, int]]:
    """Pictures by time: (start of the bucket, jobs that succeeded in it), oldest first, empty buckets left out.

    `state` may be failed: then it tells of failures.
    """
    start = func.floor(jobs.c.ended_at / literal(bucket_s, Double)) * literal(bucket_s, Double)
    start = cast(start, Float(53)).label("start")
    ended = [in_state(state), jobs.c.ended_at >= since]
    ended += [jobs.c.ended_at < until] if until is not None else []
    ended += [jobs.c.batch_id == batch_id] if batch_id is not None else []
    statement = select(start, func.count()).where(*ended).group_by(start).order_by(start)
    return [(float(at), count) for at, count in connection.execute(statement)]


def stage_depths(connection: Connection) -> dict[tuple[JobState, Stage], int]:
    """Jobs that are queued or running, by state and stage: the window, never the backlog."""
    states = (JobState.QUEUED, JobState.RUNNING)
    held = union_all(
        *(
            select(literal(state.value).label("state"), jobs.c.stage, func.count().label("count"))
            .where(in_state(state))
            .group_by(jobs.c.stage)
            for state in states
        )
    )
    counted = {(JobState(state), Stage(stage)): count for state, stage, count in connection.execute(held)}
    return {(state, stage): counted.get((state, stage), 0) for state in states for stage in Stage}


def overview(
    connection: Connection, *, lease_s: float, last_s: float = 3600.0, failures_s: float = 86_400.0
) -> Overview:
    """How all of it stands: images by minute of the last `last_s`, failures of the last `failures_s`."""
    at: float = connection.execute(select(now())).scalar_one()
    counted: list[Any] = list(connection.execute(select(batches.c.status, func.count()).group_by(batches.c.status)))
    return Overview(
        at,
        {status: count for status, count in counted},
        stage_depths(connection),
        live_workers(connection, lease_s=lease_s),
        throughput(connection, since=at - last_s),
        failures_grouped(connection, since=at - failures_s),
    )
