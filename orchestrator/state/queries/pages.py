"""What pages and lists show, statement by statement. Each reads a page by key, or a set that an index bounds.

The cost of a page follows what it shows, not how many jobs there are: at 10⁶ jobs as at ten.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Double,
    Integer,
    RowMapping,
    and_,
    case,
    cast,
    func,
    literal,
    or_,
    select,
    tuple_,
)

from orchestrator.state.database import now
from orchestrator.state.queries.batches import Batch, BatchCounts, as_batch
from orchestrator.state.tables import attempts, batches, in_state, jobs, recipes, workers
from orchestrator.state.transitions import BatchStatus, JobState

UNDECIDED = "none"


@dataclass(frozen=True)
class JobFilter:
    """Which jobs of a batch are meant. Empty means all; `decision` may be `none`; `text` is a part of the custom_id."""

    states: tuple[JobState, ...] = ()
    code: str = ""
    decision: str = ""
    text: str = ""

    @property
    def any(self) -> bool:
        """Whether it leaves anything out."""
        return bool(self.states or self.code or self.decision or self.text)


@dataclass(frozen=True)
class FailureGroup:
    """Failed jobs of one batch with one code. `good` of them have a good row, and can be tried again."""

    batch_id: str
    code: str
    count: int
    good: int
    message: str


def page_batches(
    connection: Connection,
    *,
    limit: int,
    statuses: Sequence[BatchStatus] = (),
    text: str = "",
    before: tuple[float, str] | None = None,
) -> list[Batch]:
    """A page of batches, the newest first; `before` is the (created_at, id) of the last one of the page before."""
    statement = select(batches).order_by(batches.c.created_at.desc(), batches.c.id.desc()).limit(limit)
    if statuses:
        statement = statement.where(batches.c.status.in_(statuses))
    if text:
        statement = statement.where(or_(_contains(batches.c.catalogue, text), _contains(batches.c.id, text)))
    if before is not None:
        statement = statement.where(tuple_(batches.c.created_at, batches.c.id) < before)
    return [as_batch(row) for row in connection.execute(statement).mappings()]


def count_states(connection: Connection, batch_ids: Sequence[str]) -> dict[str, BatchCounts]:
    """Jobs by state of several batches, those without a job included."""
    if not batch_ids:
        return {}
    counted: dict[str, dict[str, int]] = defaultdict(dict)
    statement = (
        select(jobs.c.batch_id, jobs.c.state, func.count(), func.sum(jobs.c.reused))
        .where(jobs.c.batch_id.in_(batch_ids))
        .group_by(jobs.c.batch_id, jobs.c.state)
    )
    for batch_id, state, count, reused in connection.execute(statement):
        counted[batch_id][state] = count
        if state == JobState.SUCCEEDED:
            counted[batch_id]["reused"] = int(reused or 0)
    return {
        batch_id: BatchCounts(
            total=sum(count for name, count in found.items() if name != "reused"),
            **found,
        )
        for batch_id, found in ((batch_id, counted[batch_id]) for batch_id in batch_ids)
    }


def page_jobs(
    connection: Connection, batch_id: str, wanted: JobFilter, *, limit: int, after: tuple[int, int] | None = None
) -> list[RowMapping]:
    """A page of a batch's jobs in the catalogue's order, from after (line, take) on."""
    statement = select(jobs).where(*_conditions(batch_id, wanted)).order_by(jobs.c.line, jobs.c.take).limit(limit)
    if after is not None:
        statement = statement.where(tuple_(jobs.c.line, jobs.c.take) > after)
    return list(connection.execute(statement).mappings().all())


def matching_ids(connection: Connection, batch_id: str, wanted: JobFilter, *, limit: int, above: int = 0) -> list[int]:
    """The ids of a batch's jobs that match, in their order, from above one on: all of them page by page."""
    statement = select(jobs.c.id).where(*_conditions(batch_id, wanted), jobs.c.id > above)
    return list(connection.execute(statement.order_by(jobs.c.id).limit(limit)).scalars())


def ids_of_batch(connection: Connection, batch_id: str, ids: Sequence[int]) -> list[int]:
    """Those of these jobs that are the batch's."""
    statement = select(jobs.c.id).where(jobs.c.batch_id == batch_id, jobs.c.id.in_(ids)).order_by(jobs.c.id)
    return list(connection.execute(statement).scalars())


def _conditions(batch_id: str, wanted: JobFilter) -> list[ColumnElement[bool]]:
    found: list[ColumnElement[bool]] = [jobs.c.batch_id == batch_id]
    if wanted.states:
        found.append(jobs.c.state.in_(wanted.states))
    if wanted.code:
        found.append(jobs.c.code == wanted.code)
    if wanted.decision == UNDECIDED:
        found.append(jobs.c.decision.is_(None))
    elif wanted.decision:
        # The partial index is used only where its own condition is written out.
        found.append(and_(jobs.c.decision.is_not(None), jobs.c.decision == wanted.decision))
    if wanted.text:
        found.append(_contains(jobs.c.custom_id, wanted.text))
    return found


def _contains(column: ColumnElement[Any], text: str) -> ColumnElement[bool]:
    return column.icontains(text, autoescape=True)


def read_job(connection: Connection, job_id: int) -> RowMapping | None:
    """One job with its recipe's body as `recipe`, or None."""
    statement = (
        select(jobs, recipes.c.body.label("recipe"))
        .outerjoin(recipes, recipes.c.id == jobs.c.recipe_id)
        .where(jobs.c.id == job_id)
    )
    return connection.execute(statement).mappings().one_or_none()


def read_takes(connection: Connection, batch_id: str, line: int) -> list[RowMapping]:
    """All takes of a row, the first one first."""
    statement = select(jobs).where(jobs.c.batch_id == batch_id, jobs.c.line == line).order_by(jobs.c.take)
    return list(connection.execute(statement).mappings().all())


def read_attempts(connection: Connection, job_id: int) -> list[RowMapping]:
    """What ended the attempts of a job before their time, the oldest first."""
    statement = select(attempts).where(attempts.c.job_id == job_id).order_by(attempts.c.id)
    return list(connection.execute(statement).mappings().all())


def group_failures(
    connection: Connection, batch_ids: Sequence[str], *, limit: int = 50, since: float = 0.0
) -> list[FailureGroup]:
    """Failed jobs of batches by code, the most frequent first, with one message as an example."""
    if not batch_ids:
        return []
    statement = (
        select(
            jobs.c.batch_id, func.coalesce(jobs.c.code, ""), func.count(), func.count(jobs.c.recipe_id),
            func.coalesce(func.min(jobs.c.message), ""),
        )
        .where(jobs.c.batch_id.in_(batch_ids), in_state(JobState.FAILED), jobs.c.ended_at >= since)
        .group_by(jobs.c.batch_id, jobs.c.code)
        .order_by(func.count().desc(), jobs.c.batch_id, jobs.c.code)
        .limit(limit)
    )  # fmt: skip
    return [FailureGroup(*row) for row in connection.execute(statement)]


def recent_batches(connection: Connection, *, since_s: float, limit: int = 200) -> list[Batch]:
    """Batches that were open at some time in the last `since_s` seconds, the newest first."""
    recent = batches.c.ended_at >= now() - literal(since_s, Double)
    statement = select(batches).where(or_(batches.c.ended_at.is_(None), recent))
    statement = statement.order_by(batches.c.created_at.desc()).limit(limit)
    return [as_batch(row) for row in connection.execute(statement).mappings()]


def ended_batches(connection: Connection, *, limit: int) -> list[Batch]:
    """The batches that ended last."""
    statement = select(batches).where(batches.c.ended_at.is_not(None)).order_by(batches.c.ended_at.desc()).limit(limit)
    return [as_batch(row) for row in connection.execute(statement).mappings()]


def count_ends(
    connection: Connection, batch_ids: Sequence[str], *, from_s: float, step_s: float
) -> list[tuple[float, int, int]]:
    """Jobs that ended since `from_s`, by intervals of `step_s`: (its beginning, succeeded, failed), in time's order.

    Intervals count from `from_s`; those without an end are left out.
    """
    if not batch_ids:
        return []
    number = cast(func.floor((jobs.c.ended_at - literal(from_s, Double)) / literal(step_s, Double)), Integer)
    counted = [func.sum(case((in_state(state), 1), else_=0)) for state in (JobState.SUCCEEDED, JobState.FAILED)]
    statement = (
        select(number.label("number"), *counted)
        .where(jobs.c.batch_id.in_(batch_ids), jobs.c.ended_at >= from_s, jobs.c.ended_at.is_not(None))
        .group_by("number")
        .order_by("number")
    )
    return [(from_s + index * step_s, int(ok), int(bad)) for index, ok, bad in connection.execute(statement)]


def first_end(connection: Connection, batch_id: str) -> float | None:
    """When the first job of a batch that ran ended; bad rows ended before."""
    statement = select(func.min(jobs.c.ended_at)).where(jobs.c.batch_id == batch_id, jobs.c.ended_at.is_not(None))
    first: float | None = connection.execute(statement).scalar_one()
    return first


def queue_depths(connection: Connection) -> Mapping[tuple[str, str], int]:
    """Jobs queued and running by (state, stage): the window, whatever the backlog."""
    found: dict[tuple[str, str], int] = {}
    for state in (JobState.QUEUED, JobState.RUNNING):
        statement = select(jobs.c.stage, func.count()).where(in_state(state)).group_by(jobs.c.stage)
        found |= {(state.value, stage): count for stage, count in connection.execute(statement)}
    return found


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


def pulse(connection: Connection, batch_id: str | None) -> tuple[Any, ...]:
    """What changes whenever a page of this batch, or of all, would show something else. Its cost has a bound."""
    open_or_this = batches.c.id == batch_id if batch_id is not None else batches.c.ended_at.is_(None)
    shown = (batches.c.id, batches.c.status, batches.c.total, batches.c.decisions, batches.c.reopened)
    rows = connection.execute(select(*shown).where(open_or_this).order_by(batches.c.id)).all()
    ids = [row.id for row in rows]
    # One look into the index for each batch, whose last entry it is.
    last = [
        connection.execute(
            select(func.max(jobs.c.ended_at)).where(jobs.c.batch_id == each, jobs.c.ended_at.is_not(None))
        ).scalar_one()
        for each in ids
    ]
    held = select(func.count(), func.sum(jobs.c.id), func.max(jobs.c.stage_at))
    flight = [
        connection.execute(held.where(in_state(state), *([jobs.c.batch_id == batch_id] if batch_id else []))).one()
        for state in (JobState.QUEUED, JobState.RUNNING)
    ]
    return (*map(tuple, rows), *last, *map(tuple, flight))
