"""Batches and recipes, statement by statement: what was asked, how it stands, what its manifest says."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from sqlalchemy import Connection, RowMapping, case, func, select, tuple_, update
from sqlalchemy.dialects import postgresql, sqlite

from orchestrator.state.database import now
from orchestrator.state.queries.outbox import tell_of_batch
from orchestrator.state.tables import batches, jobs, recipes
from orchestrator.state.transitions import BATCH_MOVES, OPEN_BATCH, BatchStatus, Event, JobState

PAGE_ROWS = 1000
_TOLD: Mapping[BatchStatus, Event] = {
    BatchStatus.PAUSED: Event.BATCH_PAUSED,
    BatchStatus.FAILED: Event.BATCH_FAILED,
    BatchStatus.COMPLETED: Event.BATCH_COMPLETED,
}


@dataclass(frozen=True)
class Batch:
    """One catalogue with what was asked of it."""

    id: str
    request: str
    catalogue: str
    image_root: str
    columns: tuple[str, ...]
    options: Mapping[str, Any]
    status: BatchStatus
    reason: str | None
    priority: int
    checkpoint: str
    revision: str
    numerics: str
    handoff_bytes: int
    results_uri: str
    total: int
    ingested_line: int
    created_at: float
    started_at: float | None
    ended_at: float | None
    deadline_at: float | None = None
    dispatched_at: float | None = None
    resumed_at: float | None = None
    reopened: int = 0
    decisions: int = 0
    decisions_told: int = 0

    @property
    def manifest_uri(self) -> str | None:
        """Where its manifest lies; None until it has ended."""
        ended = self.status in (BatchStatus.COMPLETED, BatchStatus.CANCELLED)
        return f"{self.results_uri}/manifest.jsonl" if ended else None


@dataclass(frozen=True)
class BatchCounts:
    """Jobs by state; the six always sum to `total`. `reused` is a part of `succeeded`."""

    total: int
    pending: int = 0
    queued: int = 0
    running: int = 0
    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0
    reused: int = 0

    @property
    def ended(self) -> int:
        """Jobs that will not move again by themselves."""
        return self.succeeded + self.failed + self.cancelled


def create_batch(connection: Connection, batch: Mapping[str, Any]) -> bool:
    """Store a new batch as `ingesting`; `columns` and `options` are given as JSON. False when its id is taken."""
    dialect = {"postgresql": postgresql, "sqlite": sqlite}[connection.dialect.name]
    statement = dialect.insert(batches).values(status=BatchStatus.INGESTING, created_at=now(), **batch)
    return connection.execute(statement.on_conflict_do_nothing().returning(batches.c.id)).first() is not None


def read_batch(connection: Connection, batch_id: str) -> Batch | None:
    """One batch, or None."""
    row = connection.execute(select(batches).where(batches.c.id == batch_id)).mappings().one_or_none()
    return None if row is None else as_batch(row)


def list_batches(connection: Connection, *, limit: int) -> list[Batch]:
    """The newest batches."""
    statement = select(batches).order_by(batches.c.created_at.desc(), batches.c.id.desc()).limit(limit)
    return [as_batch(row) for row in connection.execute(statement).mappings()]


def open_batches(connection: Connection) -> list[Batch]:
    """Batches that have not ended, the most urgent first."""
    statement = (
        select(batches)
        .where(batches.c.ended_at.is_(None), batches.c.status.in_(OPEN_BATCH))
        .order_by(batches.c.priority.desc(), batches.c.created_at, batches.c.id)
    )
    return [as_batch(row) for row in connection.execute(statement).mappings()]


def read_clock(connection: Connection) -> float:
    """The database's clock, in seconds since the epoch."""
    seconds: float = connection.execute(select(now())).scalar_one()
    return seconds


def find_open_request(connection: Connection, request: str) -> Batch | None:
    """The newest unfinished batch of the very same request, which an interrupted call resumes; none being cancelled."""
    statement = (
        select(batches)
        .where(
            batches.c.request == request,
            batches.c.ended_at.is_(None),
            batches.c.status != BatchStatus.CANCELLING,
        )
        .order_by(batches.c.created_at.desc())
        .limit(1)
    )
    row = connection.execute(statement).mappings().one_or_none()
    return None if row is None else as_batch(row)


def note_ingested(
    connection: Connection, batch_id: str, *, after: int, line: int, rows: int, handoff_bytes: int = 0
) -> bool:
    """Note that the catalogue's lines from `after` to `line` are stored as `rows` jobs of at most `handoff_bytes` each.

    False when the batch stands elsewhere: another process fills it, or it was ended. The caller rolls back.
    """
    statement = (
        update(batches)
        .where(
            batches.c.id == batch_id,
            batches.c.status == BatchStatus.INGESTING,
            batches.c.ingested_line == after,
        )
        .values(
            ingested_line=line,
            total=batches.c.total + rows,
            handoff_bytes=case((batches.c.handoff_bytes < handoff_bytes, handoff_bytes), else_=batches.c.handoff_bytes),
        )
    )
    return connection.execute(statement).rowcount == 1


def start_batch(connection: Connection, batch_id: str) -> bool:
    """Set a wholly ingested batch running."""
    statement = (
        update(batches)
        .where(batches.c.id == batch_id, batches.c.status == BatchStatus.INGESTING)
        .values(status=BatchStatus.RUNNING, started_at=now())
    )
    return connection.execute(statement).rowcount == 1


def move_batch(connection: Connection, batch_id: str, to: BatchStatus, *, reason: str | None = None) -> bool:
    """Make a legal move of a batch, and tell webhooks; False when it stands where that move is not allowed."""
    sources = [source for source, target in BATCH_MOVES if target == to]
    ended = to in (BatchStatus.COMPLETED, BatchStatus.CANCELLED, BatchStatus.FAILED)
    statement = (
        update(batches)
        .where(batches.c.id == batch_id, batches.c.status.in_(sources))
        .values(status=to, reason=reason, ended_at=now() if ended else None)
    )
    moved = connection.execute(statement).rowcount == 1
    if moved and to in _TOLD:
        tell_of_batch(connection, _TOLD[to], batch_id)
    return moved


def count_by_state(connection: Connection, batch_id: str) -> BatchCounts:
    """The batch's jobs by state, from one statement, so that they sum whatever happens meanwhile."""
    # Asked first, since it only grows: it is never more than `succeeded`.
    reused = connection.execute(
        select(func.count()).where(jobs.c.batch_id == batch_id, jobs.c.state == JobState.SUCCEEDED, jobs.c.reused == 1)
    ).scalar_one()
    statement = select(jobs.c.state, func.count()).where(jobs.c.batch_id == batch_id).group_by(jobs.c.state)
    counts: dict[str, int] = dict(connection.execute(statement).all())
    return BatchCounts(total=sum(counts.values()), reused=reused, **counts)


def count_by_error(connection: Connection, batch_id: str) -> Mapping[str, int]:
    """Failed jobs by error code, the most frequent first."""
    statement = (
        select(jobs.c.code, func.count().label("n"))
        .where(jobs.c.batch_id == batch_id, jobs.c.state == JobState.FAILED)
        .group_by(jobs.c.code)
        .order_by(func.count().desc())
    )
    return dict(connection.execute(statement).all())


def stage_seconds(connection: Connection, batch_id: str) -> Mapping[str, float]:
    """Seconds of work by stage, over the jobs that were not reused."""
    names = ("encode", "sample", "decode")
    statement = select(*(func.coalesce(func.sum(jobs.c[f"{name}_s"]), 0.0) for name in names)).where(
        jobs.c.batch_id == batch_id
    )
    return dict(zip(names, connection.execute(statement).one(), strict=True))


def last_end(connection: Connection, batch_id: str) -> float | None:
    """When the last job of the batch ended, so far."""
    statement = select(func.max(jobs.c.ended_at)).where(jobs.c.batch_id == batch_id)
    last: float | None = connection.execute(statement).scalar_one()
    return last


def count_batches(connection: Connection) -> Mapping[str, int]:
    """Batches by status."""
    return dict(connection.execute(select(batches.c.status, func.count()).group_by(batches.c.status)).all())


def add_recipes(connection: Connection, bodies: Mapping[str, str]) -> None:
    """Store recipes by digest; those that stand already stay as they are."""
    if not bodies:
        return
    dialect = {"postgresql": postgresql, "sqlite": sqlite}[connection.dialect.name]
    statement = dialect.insert(recipes).on_conflict_do_nothing()
    # In one order for all, or two ingests at once would wait for each other for ever.
    connection.execute(statement, [{"id": digest, "body": body} for digest, body in sorted(bodies.items())])


def read_recipe(connection: Connection, recipe_id: str) -> Mapping[str, Any] | None:
    """A recipe's body, or None."""
    body = connection.execute(select(recipes.c.body).where(recipes.c.id == recipe_id)).scalar_one_or_none()
    return None if body is None else json.loads(body)


def stream_jobs(connection: Connection, batch_id: str, *, states: Sequence[JobState] = ()) -> Iterator[RowMapping]:
    """All jobs of a batch in the catalogue's order, in pages by key: constant memory, no long transaction."""
    after = (-1, -1)
    while True:
        statement = (
            select(jobs)
            .where(jobs.c.batch_id == batch_id, tuple_(jobs.c.line, jobs.c.take) > after)
            .order_by(jobs.c.line, jobs.c.take)
            .limit(PAGE_ROWS)
        )
        if states:
            statement = statement.where(jobs.c.state.in_(states))
        rows = connection.execute(statement).mappings().all()
        yield from rows
        if len(rows) < PAGE_ROWS:
            return
        after = (rows[-1]["line"], rows[-1]["take"])


def as_batch(row: RowMapping) -> Batch:
    """A batch from a row of all its columns."""
    values = {field.name: row[field.name] for field in fields(Batch)}
    values |= {
        "columns": tuple(json.loads(row["columns"])),
        "options": json.loads(row["options"]),
        "status": BatchStatus(row["status"]),
    }
    return Batch(**values)
