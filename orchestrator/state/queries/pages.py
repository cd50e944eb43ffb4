"""What only pages show, statement by statement: a sheet of pictures, workers and what they hold.

Each reads a page by key, or a set that an index bounds; lists that the API gives too are `lists`' and `overview`'s.
"""

from collections.abc import Sequence

from sqlalchemy import Connection, Double, RowMapping, and_, literal, or_, select, tuple_

from orchestrator.state.database import now
from orchestrator.state.queries.lists import LOOKED_AT, UNDECIDED, JobPage
from orchestrator.state.tables import batches, in_state, jobs, workers
from orchestrator.state.transitions import JobState

PICTURES = (JobState.PENDING, JobState.QUEUED, JobState.RUNNING, JobState.SUCCEEDED)
"""The states of jobs that a sheet shows: what has a picture, or will."""


def list_pictures(
    connection: Connection, batch_id: str, decision: str, *, limit: int, after: tuple[int, int] | None = None
) -> JobPage:
    """A page of a batch's pictures in the catalogue's order, takes of a row side by side, by `decision`, none or any.

    A page looks through a bounded number of rows: it may hold few, and still lead on to the next.
    """
    of_batch = [jobs.c.batch_id == batch_id]
    if after is not None:
        of_batch.append(tuple_(jobs.c.line, jobs.c.take) > after)
    if decision and decision != UNDECIDED:
        # Written out, or the partial index would not be used.
        of_batch += [jobs.c.decision == decision, jobs.c.decision.is_not(None)]
    shown = [jobs.c.state.in_(PICTURES)] + ([jobs.c.decision.is_(None)] if decision == UNDECIDED else [])
    key = (jobs.c.line, jobs.c.take)
    ahead = select(*key).where(*of_batch).order_by(*key).offset(LOOKED_AT - 1).limit(1)
    bound = connection.execute(ahead).one_or_none()
    if bound is not None:
        of_batch.append(tuple_(jobs.c.line, jobs.c.take) <= tuple(bound))
    statement = select(jobs).where(*of_batch, *shown).order_by(*key).limit(limit + 1)
    rows = list(connection.execute(statement).mappings().all())
    if len(rows) > limit:
        return JobPage(rows[:limit], (rows[limit - 1]["line"], rows[limit - 1]["take"]))
    return JobPage(rows, None if bound is None else (bound.line, bound.take))


def read_jobs(connection: Connection, batch_id: str, ids: Sequence[int]) -> list[RowMapping]:
    """Those of these jobs that are the batch's, in the catalogue's order."""
    statement = select(jobs).where(jobs.c.batch_id == batch_id, jobs.c.id.in_(ids)).order_by(jobs.c.line, jobs.c.take)
    return list(connection.execute(statement).mappings().all())


def ids_of_batch(connection: Connection, batch_id: str, ids: Sequence[int]) -> list[int]:
    """Those of these jobs that are the batch's."""
    statement = select(jobs.c.id).where(jobs.c.batch_id == batch_id, jobs.c.id.in_(ids)).order_by(jobs.c.id)
    return list(connection.execute(statement).scalars())


def good_rows(connection: Connection, ids: Sequence[int]) -> set[int]:
    """Those of these jobs whose row was good: they can be tried again."""
    statement = select(jobs.c.id).where(jobs.c.id.in_(ids), jobs.c.recipe_id.is_not(None))
    return set(connection.execute(statement).scalars())


def read_job(connection: Connection, job_id: int) -> RowMapping | None:
    """One job, or None."""
    return connection.execute(select(jobs).where(jobs.c.id == job_id)).mappings().one_or_none()


def maker_of(connection: Connection, fingerprint: str) -> str | None:
    """Where the results lie of the batch that made the picture of a fingerprint lately; None where none did."""
    statement = (
        select(batches.c.results_uri)
        .join(jobs, jobs.c.batch_id == batches.c.id)
        .where(jobs.c.fingerprint == fingerprint, in_state(JobState.SUCCEEDED), jobs.c.reused == 0)
        .order_by(jobs.c.id.desc())
        .limit(1)
    )
    return connection.execute(statement).scalar_one_or_none()


def list_workers(connection: Connection, *, ended_within_s: float) -> list[RowMapping]:
    """Workers that have not ended, or ended so lately, the newest first."""
    late = now() - literal(ended_within_s, Double)
    shown = or_(and_(workers.c.ended_at.is_(None), workers.c.seen_at >= late), workers.c.ended_at >= late)
    statement = select(workers).where(shown).order_by(workers.c.started_at.desc(), workers.c.id)
    return list(connection.execute(statement).mappings().all())


def running_jobs(connection: Connection) -> list[RowMapping]:
    """What workers hold: (worker_id, id, custom_id, line, stage), by worker."""
    shown = (jobs.c.worker_id, jobs.c.id, jobs.c.custom_id, jobs.c.line, jobs.c.stage)
    statement = select(*shown).where(in_state(JobState.RUNNING)).order_by(jobs.c.worker_id, jobs.c.id)
    return list(connection.execute(statement).mappings().all())
