"""Batches, statement by statement: what was asked, how it stands, what its manifest says."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    RowMapping,
    Text,
    case,
    cast,
    func,
    literal_column,
    null,
    or_,
    select,
    tuple_,
    union_all,
    update,
)

from orchestrator.state.database import insert_new, now, reading, storable
from orchestrator.state.queries.outbox import tell_of_batch
from orchestrator.state.tables import batches, jobs
from orchestrator.state.transitions import BATCH_MOVES, ENDED, OPEN_BATCH, BatchStatus, Event, JobState

PAGE_ROWS = 1000
# What a calendar shows.
FIRST_MOMENT_S, LAST_MOMENT_S = (datetime(year, 1, 1, tzinfo=UTC).timestamp() for year in (1, 9999))
_KEPT_COUNT = {
    "sqlite": "json_extract(ended_counts, '$.{}')",
    "postgresql": "CAST(CAST(ended_counts AS json) ->> '{}' AS bigint)",
}
_TOLD: Mapping[BatchStatus, Event] = {
    BatchStatus.PAUSED: Event.BATCH_PAUSED,
    BatchStatus.FAILED: Event.BATCH_FAILED,
    BatchStatus.COMPLETED: Event.BATCH_COMPLETED,
}


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
    metadata: Mapping[str, str] = field(default_factory=dict)
    ended_counts: BatchCounts | None = None

    @property
    def manifest_uri(self) -> str | None:
        """Where its manifest lies; None until it has ended."""
        ended = self.status in (BatchStatus.COMPLETED, BatchStatus.CANCELLED)
        return f"{self.results_uri}/manifest.jsonl" if ended else None


def create_batch(connection: Connection, batch: Mapping[str, Any]) -> bool:
    """Store a new batch as `ingesting`; `columns` and `options` are given as JSON. False when its id is taken."""
    times = {"created_at": now(), "ingested_at": now()}
    statement = insert_new(connection, batches).values(status=BatchStatus.INGESTING, **times, **batch)
    return connection.execute(statement.returning(batches.c.id)).first() is not None


def read_batch(connection: Connection, batch_id: str) -> Batch | None:
    """One batch, or None; also for what cannot be an id, which PostgreSQL would refuse to look for."""
    if storable(batch_id) != batch_id:
        return None
    row = connection.execute(select(batches).where(batches.c.id == batch_id)).mappings().one_or_none()
    return None if row is None else as_batch(row)


def read_batches(connection: Connection, batch_ids: Sequence[str]) -> list[Batch]:
    """Those of these batches that there are."""
    statement = select(batches).where(batches.c.id.in_(batch_ids))
    return [as_batch(row) for row in connection.execute(statement).mappings()]


def list_batches(
    connection: Connection,
    *,
    limit: int,
    statuses: Sequence[BatchStatus] = (),
    before: tuple[float, str] | None = None,
    text: str = "",
) -> list[Batch]:
    """The newest batches, of these statuses; `before` is (created_at, id) of the last one of the page before.

    `text` is a part of the catalogue's location or the id.
    """
    statement = select(batches).order_by(batches.c.created_at.desc(), batches.c.id.desc()).limit(limit)
    if statuses:
        statement = statement.where(batches.c.status.in_(statuses))
    if before is not None:
        statement = statement.where(tuple_(batches.c.created_at, batches.c.id) < before)
    if text:
        named = (column.icontains(text, autoescape=True) for column in (batches.c.catalogue, batches.c.id))
        statement = statement.where(or_(*named))
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


def resume_ingest(connection: Connection, batch_id: str) -> bool:
    """Note that somebody goes on storing the rows of a batch, so that it is not abandoned. False when it is not open
    for that any more."""
    statement = (
        update(batches)
        .where(batches.c.id == batch_id, batches.c.status == BatchStatus.INGESTING)
        .values(ingested_at=now())
    )
    return connection.execute(statement).rowcount == 1


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
            ingested_at=now(),
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
    return count_many_by_state(connection, [batch_id])[batch_id]


def count_many_by_state(connection: Connection, batch_ids: Sequence[str]) -> dict[str, BatchCounts]:
    """The jobs of several batches by state; a batch without jobs counts none."""
    # Asked first, since it only grows: it is never more than `succeeded`.
    reused = (
        select(jobs.c.batch_id, func.count())
        .where(jobs.c.batch_id.in_(batch_ids), jobs.c.reused == literal_column("1"))
        .group_by(jobs.c.batch_id)
    )
    reused_of: dict[str, int] = dict(connection.execute(reused).all())
    statement = (
        select(jobs.c.batch_id, jobs.c.state, func.count())
        .where(jobs.c.batch_id.in_(batch_ids))
        .group_by(jobs.c.batch_id, jobs.c.state)
    )
    found: dict[str, dict[str, int]] = {batch_id: {} for batch_id in batch_ids}
    for batch_id, state, count in connection.execute(statement):
        found[batch_id][state] = count
    return {
        batch_id: BatchCounts(total=sum(states.values()), reused=reused_of.get(batch_id, 0), **states)
        for batch_id, states in found.items()
    }


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


def ended_totals(connection: Connection) -> tuple[dict[JobState, int], list[str]]:
    """The jobs of all ended batches by state, as these batches keep them; and the ids of the batches that keep none.

    The latter are open, or could not be read as a whole. Each batch is in one of the two, whatever ends meanwhile: it
    is one statement, which reads a row a batch.
    """
    kept = batches.c.ended_counts.is_not(None)
    number = _KEPT_COUNT[connection.dialect.name]
    sums: list[ColumnElement[Any]] = [
        func.coalesce(func.sum(literal_column(number.format(state))), 0) for state in ENDED
    ]
    whole = select(cast(null(), Text), *sums).where(kept)
    others = select(batches.c.id, *(literal_column("0") for _ in ENDED)).where(~kept)
    totals, ids = dict.fromkeys(ENDED, 0), []
    for batch_id, *row in connection.execute(union_all(whole, others)):
        if batch_id is None:
            totals = {state: int(count) for state, count in zip(ENDED, row, strict=True)}
        else:
            ids.append(batch_id)
    return totals, ids


def stream_jobs(engine: Engine, batch_id: str, *, states: Sequence[JobState] = ()) -> Iterator[RowMapping]:
    """All jobs of a batch in the catalogue's order, in pages by key: constant memory, no long transaction.

    A connection is held for the reading of a page alone: whoever takes the rows may be slow.
    """
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
        with reading(engine).connect() as connection:
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
        "options": _read_json(row["options"]),
        "status": BatchStatus(row["status"]),
        "metadata": _read_json(row["metadata"] or "{}"),
        "ended_counts": BatchCounts(**json.loads(row["ended_counts"])) if row["ended_counts"] else None,
        "deadline_at": _showable(row["deadline_at"]),
    }
    return Batch(**values)


def _read_json(text: str) -> dict[str, Any]:
    """What was stored as JSON, as an answer can tell it: older versions took halves of surrogate pairs too."""
    found: dict[str, Any] = json.loads(text)
    if "\\ud" in text:
        found = json.loads(json.dumps(found, ensure_ascii=False).encode("utf-8", "replace"))
    return found


def _showable(deadline_at: float | None) -> float | None:
    """A deadline as a calendar shows it: older versions stored any number, infinity too, and one so late is none."""
    if deadline_at is None or deadline_at >= LAST_MOMENT_S:
        return None
    return max(deadline_at, FIRST_MOMENT_S)


def recent_seconds(connection: Connection, *, revision: str, latest: int) -> float | None:
    """Seconds of work a picture, over the `latest` ones that were drawn by this revision; None where there are none."""
    took = func.coalesce(jobs.c.encode_s, 0.0) + jobs.c.sample_s + func.coalesce(jobs.c.decode_s, 0.0)
    some = (
        select(took.label("took"), batches.c.revision, jobs.c.reused)
        .join(batches, batches.c.id == jobs.c.batch_id)
        .where(jobs.c.state == literal_column("'succeeded'"))
        .order_by(jobs.c.ended_at.desc())
        .limit(latest)
        .subquery()
    )
    mean: float | None = connection.execute(
        select(func.avg(some.c.took)).where(some.c.revision == revision, some.c.reused == 0)
    ).scalar_one()
    return mean
