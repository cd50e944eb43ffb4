"""Batches: a catalogue's rows become recipes and jobs.

Owns the identity of a request, ingestion in short transactions that resume where they stopped, and the dry run. Refuses
to let one bad row stop the others: it becomes a failed job that says what is wrong with it.
"""

import hashlib
import json
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import Any

from sqlalchemy import Double, Engine, literal, select

from kontext_model.revision import CheckpointRef, Defaults
from orchestrator.access.audit import Note, unnoted
from orchestrator.catalogs import Catalogue, CatalogueError, Row
from orchestrator.catalogs.sent import Sent
from orchestrator.prompt_limits import find_cuts
from orchestrator.recipes import cannot_pin, read_deadline
from orchestrator.row_reader import CUSTOM_ID, LINE, PinLora, RowReader, handoff_bytes
from orchestrator.settings import Settings
from orchestrator.state import queries
from orchestrator.state.bulk import COLUMNS, JobRow, insert_jobs
from orchestrator.state.database import now, reading, storable, tellable
from orchestrator.state.queries import Batch
from orchestrator.state.transitions import BatchStatus, JobState
from orchestrator.storage.loras import pin_lora

# Rows of one transaction: about 30 ms on SQLite, which has one writer, so that heartbeats get through.
CHUNK_ROWS = {"sqlite": 2_000, "postgresql": 10_000}
_STATE, _ENDED_AT = map(COLUMNS.index, ("state", "ended_at"))


class BatchError(RuntimeError):
    """A batch cannot be made or filled; the message says what to do."""


@dataclass(frozen=True)
class Request:
    """What was asked for a batch as a whole. `asked` holds option values already read.

    `pin_lora` pins the LoRA that a row names, as `orchestrator.storage.loras.pin_lora` without its settings.
    """

    asked: Mapping[str, Any]
    results_uri: str
    checkpoint: CheckpointRef
    numerics: str
    priority: int = 0
    pin_lora: PinLora = field(default=cannot_pin, compare=False)


@dataclass(frozen=True)
class DryRun:
    """What a catalogue would become: no batch was made."""

    rows: int
    bad: int
    recipes: int
    errors: list[dict[str, Any]] = field(default_factory=list)
    warnings: tuple[str, ...] = ()


def request_of(settings: Settings, checkpoint: CheckpointRef, asked: Mapping[str, Any], results_uri: str) -> Request:
    """Pin a request to the checkpoint and numerics of these settings."""
    pin = partial(pin_lora, settings=settings)
    return Request(asked, results_uri.rstrip("/"), checkpoint, settings.numerics, pin_lora=pin)


def new_batch_id() -> str:
    """An id that no batch has: the day, and chance."""
    return f"{time.strftime('%Y%m%d')}-{secrets.token_hex(4)}"


def create_batch(
    engine: Engine,
    catalogue: Catalogue,
    request: Request,
    batch_id: str | None = None,
    metadata: Mapping[str, str] | None = None,
    *,
    note: Note = unnoted,
) -> Batch:
    """Store a new, still empty batch for a catalogue that has at least one row.

    With a `batch_id` it is made, and noted, once, however often and by how many this is called; `metadata` is the
    caller's own.
    Raises CatalogueError when the catalogue has no rows, or lies where no database can note it.
    """
    for name in (catalogue.uri, catalogue.image_root):
        if storable(name) != name:
            raise CatalogueError(f"{name!r}: this name cannot be stored; use one in UTF-8 of at most 2,000 characters")
    if next(iter(catalogue.rows()), None) is None:
        raise CatalogueError(f"{catalogue.uri} holds no rows: there is nothing to do")
    batch_id = batch_id or new_batch_id()
    with engine.begin() as connection:
        made = queries.create_batch(
            connection,
            {
                "id": batch_id,
                "request": request_digest(catalogue, request),
                "catalogue": catalogue.uri,
                "image_root": catalogue.image_root,
                "columns": json.dumps(catalogue.columns),
                "options": json.dumps(dict(request.asked), sort_keys=True),
                "priority": request.priority,
                "checkpoint": request.checkpoint.ref,
                "revision": request.checkpoint.revision,
                "numerics": request.numerics,
                "handoff_bytes": handoff_bytes(
                    request.checkpoint.defaults, request.asked.get("width"), request.asked.get("height")
                ),
                "results_uri": f"{request.results_uri}/{batch_id}",
                "deadline_at": _deadline_at(request.asked.get("deadline")),
                "metadata": json.dumps(dict(metadata)) if metadata else None,
            },
        )
        if made:
            note(connection, batch_id)
    return read_batch(engine, batch_id)


def _deadline_at(asked: str | None) -> Any:
    """The deadline for SQL, whose clock a duration counts by."""
    if asked is None:
        return None
    deadline = read_deadline(asked)
    return now() + literal(deadline.seconds, Double) if deadline.relative else deadline.seconds


def read_batch(engine: Engine, batch_id: str) -> Batch:
    """One batch. Raises BatchError when there is none of that id."""
    with reading(engine).connect() as connection:
        batch = queries.read_batch(connection, batch_id)
    if batch is None:
        raise BatchError(f"there is no batch {batch_id!r}; see: kontext batches")
    return batch


def find_unfinished(engine: Engine, catalogue: Catalogue, request: Request) -> Batch | None:
    """The unfinished batch of the very same request, which an interrupted call left; it counts as gone on with."""
    digest = request_digest(catalogue, request)
    with engine.begin() as connection:
        while (found := queries.find_open_request(connection, digest)) is not None:
            if found.status != BatchStatus.INGESTING or queries.resume_ingest(connection, found.id):
                break
    return found


def request_digest(catalogue: Catalogue, request: Request) -> str:
    """What makes two calls the same request: catalogue and its version, options, checkpoint, numerics, results."""
    told = (
        catalogue.uri,
        catalogue_version(catalogue),
        sorted(request.asked.items()),
        request.checkpoint.revision,
        request.numerics,
        request.results_uri,
        request.priority,
    )
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def ingest(
    engine: Engine,
    batch: Batch,
    catalogue: Catalogue,
    request: Request,
    on_progress: Callable[[int], None] = lambda rows: None,
    *,
    note: Note = unnoted,
) -> Batch:
    """Store the catalogue's rows as jobs, from where an earlier try stopped, and set the batch running.

    `on_progress` is told the number of rows stored so far. Each transaction stores one chunk with its place in the
    catalogue, so that a kill between two of them loses and doubles nothing. Raises BatchError when another process
    ingests the same batch, and CatalogueError, with the batch failed, when the catalogue can be read no further.
    """
    reader = RowReader(batch.id, catalogue, request.checkpoint.defaults, request.asked, request.pin_lora)
    try:
        _store_rows(engine, batch, catalogue, reader, on_progress)
    except CatalogueError as error:
        with engine.begin() as connection:
            queries.move_batch(connection, batch.id, BatchStatus.FAILED, reason=tellable(str(error)))
        raise
    with engine.begin() as connection:
        if queries.start_batch(connection, batch.id):
            started = queries.read_batch(connection, batch.id)
            note(connection, batch.id, rows=started and started.total)
    return read_batch(engine, batch.id)


def _store_rows(
    engine: Engine, batch: Batch, catalogue: Catalogue, reader: RowReader, on_progress: Callable[[int], None]
) -> None:
    line, total = batch.ingested_line, batch.total
    for rows in _chunks(catalogue.rows(after_line=line), CHUNK_ROWS[engine.dialect.name]):
        prepared = [reader.read(row) for row in rows]
        with engine.begin() as connection:
            stamp = connection.execute(select(now())).scalar_one()
            queries.add_recipes(connection, reader.take_new_recipes())
            reader.place(
                rows,
                prepared,
                lambda jobs: insert_jobs(connection, [_stamp(job, stamp) for job in jobs]),  # noqa: B023
            )
            noted = queries.note_ingested(
                connection,
                batch.id,
                after=line,
                line=rows[-1].line,
                rows=len(rows),
                handoff_bytes=reader.largest_handoff_bytes,
            )
            queries.tell_of_bad_rows(connection, batch.id, rows[0].line, rows[-1].line)
            if not noted:
                raise BatchError(
                    f"batch {batch.id} is being filled by another process or was ended; see: kontext show {batch.id}"
                )
        line, total = rows[-1].line, total + len(rows)
        on_progress(total)


def dry_run(
    catalogue: Catalogue,
    asked: Mapping[str, Any],
    defaults: Defaults,
    pin_lora: PinLora = cannot_pin,
    *,
    most_errors: int = 100,
) -> DryRun:
    """Read every row and say what is wrong, line by line, before any job is made.

    Prompts that the checkpoint's text encoders surely cut are warned of, once for each recipe. Doubled custom_ids are
    found by their digests: 16 bytes a row.
    """
    reader = RowReader("", catalogue, defaults, asked, pin_lora)
    rows, bad = 0, 0
    errors: list[dict[str, Any]] = []
    recipes: set[str] = set()
    cuts, cut_recipes = [], 0
    seen: set[bytes] = set()

    def insert(jobs: Sequence[JobRow]) -> list[JobRow]:
        doubled = []
        for job in jobs:
            digest = hashlib.blake2b((job[CUSTOM_ID] or "").encode(), digest_size=16).digest()
            if job[_STATE] == JobState.FAILED:
                failed.append(job)
            elif digest in seen:
                doubled.append(job)
            else:
                seen.add(digest)
        return doubled

    for chunk in _chunks(catalogue.rows(), max(CHUNK_ROWS.values())):
        failed: list[JobRow] = []
        reader.place(chunk, [reader.read(row) for row in chunk], insert)
        for recipe_id, body in reader.take_new_recipes().items():
            if recipe_id not in recipes and (found := find_cuts(json.loads(body), defaults.text_length)):
                cut_recipes += 1
                if cut_recipes <= most_errors:
                    cuts += [f"recipe {recipe_id[:8]}: {sentence}" for sentence in found]
            recipes.add(recipe_id)
        rows, bad = rows + len(chunk), bad + len(failed)
        for job in sorted(failed, key=itemgetter(LINE))[: most_errors - len(errors)]:
            told = dict(zip(COLUMNS, job, strict=True))
            errors.append({name: told[name] for name in ("custom_id", "line", "code", "message")})
    if cut_recipes > most_errors:
        cuts.append(f"… and {cut_recipes - most_errors:,} more recipes whose prompts are cut")
    return DryRun(rows, bad, len(recipes), errors, (*catalogue.warnings, *cuts))


def catalogue_version(catalogue: Catalogue) -> str:
    """Tells a changed catalogue from the same one: what it says itself, a local file's size and time, else its rows."""
    if isinstance(catalogue, Sent):
        return catalogue.version
    path = Path(catalogue.uri)
    if path.is_file():
        status = path.stat()
        return f"{status.st_size}:{status.st_mtime_ns}"
    digest = hashlib.blake2b(digest_size=16)
    for row in catalogue.rows():
        digest.update(repr(row).encode("utf-8", "replace"))
    return digest.hexdigest()


def _stamp(job: JobRow, ended_at: float) -> JobRow:
    """Give a job that failed as it was read the time of its end."""
    return (*job[:_ENDED_AT], ended_at, *job[_ENDED_AT + 1 :]) if job[_STATE] == JobState.FAILED else job


def _chunks(rows: Iterator[Row], size: int) -> Iterator[list[Row]]:
    while chunk := list(islice(rows, size)):
        yield chunk
