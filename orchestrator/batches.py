"""Batches: a catalogue's rows become recipes and jobs.

Owns the reading of rows, the identity of a request, ingestion in short transactions that resume where they stopped, and
the dry run. Refuses to let one bad row stop the others: it becomes a failed job that says what is wrong with it.
"""

import hashlib
import json
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache, partial
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, select

from kontext_model.canvas import MAX_SIDE_PX, MULTIPLE_PX, list_canvases
from kontext_model.lora_file import LoraError, LoraPin
from kontext_model.revision import CheckpointRef, Defaults
from orchestrator.catalogs import Catalogue, CatalogueError, Row
from orchestrator.prompt_limits import find_cuts
from orchestrator.recipes import OPTIONS, OptionError, Recipe, cannot_pin, read_option, resolve_recipe
from orchestrator.settings import Settings
from orchestrator.state import queries
from orchestrator.state.bulk import COLUMNS, JobRow, insert_jobs
from orchestrator.state.database import now, reading, storable
from orchestrator.state.queries import Batch
from orchestrator.state.transitions import BatchStatus, JobState
from orchestrator.storage.loras import pin_lora

CUSTOM_ID_MAX_CHARACTERS = 256
# Rows of one transaction: about 30 ms on SQLite, which has one writer, so that heartbeats get through.
CHUNK_ROWS = {"sqlite": 2_000, "postgresql": 10_000}
RECIPE_CACHE = 10_000
LORA_CACHE = 1_000
PinLora = Callable[[str, str], LoraPin]
"""Pins a LoRA by its name and what a relative path is relative to. Raises LoraError."""
_OPTION_NAMES = tuple(OPTIONS)
# Told by columns of their own or by the recipe; the rest of a row is kept as given.
_TOLD = frozenset({"image", "custom_id", "prompt", "negative_prompt", "seed"})
_TOLD_OF_BAD = frozenset({"image", "custom_id"})


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


def create_batch(engine: Engine, catalogue: Catalogue, request: Request) -> Batch:
    """Store a new, still empty batch for a catalogue that has at least one row.

    Raises CatalogueError when it has none, or lies where no database can note it.
    """
    for name in (catalogue.uri, catalogue.image_root):
        if storable(name) != name:
            raise CatalogueError(f"{name!r}: this name cannot be stored; use one in UTF-8 of at most 2,000 characters")
    if next(iter(catalogue.rows()), None) is None:
        raise CatalogueError(f"{catalogue.uri} holds no rows: there is nothing to do")
    batch_id = f"{time.strftime('%Y%m%d')}-{secrets.token_hex(4)}"
    with engine.begin() as connection:
        queries.create_batch(
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
            },
        )
    return read_batch(engine, batch_id)


def read_batch(engine: Engine, batch_id: str) -> Batch:
    """One batch. Raises BatchError when there is none of that id."""
    with reading(engine).connect() as connection:
        batch = queries.read_batch(connection, batch_id)
    if batch is None:
        raise BatchError(f"there is no batch {batch_id!r}; see: kontext batches")
    return batch


def find_unfinished(engine: Engine, catalogue: Catalogue, request: Request) -> Batch | None:
    """The unfinished batch of the very same request, which an interrupted call left."""
    with reading(engine).connect() as connection:
        return queries.find_open_request(connection, request_digest(catalogue, request))


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


def handoff_bytes(defaults: Defaults, width: int | None, height: int | None) -> int:
    """An upper bound for what one job keeps in the handoffs' Redis: two float32 latents of 64 channels a token.

    `width` and `height` in pixels, as asked; where only one is, the other follows the photo.
    """
    if width or height:
        tokens = ((width or MAX_SIDE_PX) // MULTIPLE_PX + 1) * ((height or MAX_SIDE_PX) // MULTIPLE_PX + 1)
    else:
        tokens = max(canvas.tokens for canvas in list_canvases(defaults.area_px))
    return 2 * tokens * 64 * 4


def ingest(
    engine: Engine,
    batch: Batch,
    catalogue: Catalogue,
    request: Request,
    on_progress: Callable[[int], None] = lambda rows: None,
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
            queries.move_batch(connection, batch.id, BatchStatus.FAILED, reason=storable(str(error)))
        raise
    with engine.begin() as connection:
        queries.start_batch(connection, batch.id)
    return read_batch(engine, batch.id)


def _store_rows(
    engine: Engine, batch: Batch, catalogue: Catalogue, reader: "RowReader", on_progress: Callable[[int], None]
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
            digest = hashlib.blake2b((job[_CUSTOM_ID] or "").encode(), digest_size=16).digest()
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
        for job in sorted(failed, key=itemgetter(_LINE))[: most_errors - len(errors)]:
            told = dict(zip(COLUMNS, job, strict=True))
            errors.append({name: told[name] for name in ("custom_id", "line", "code", "message")})
    if cut_recipes > most_errors:
        cuts.append(f"… and {cut_recipes - most_errors:,} more recipes whose prompts are cut")
    return DryRun(rows, bad, len(recipes), errors, (*catalogue.warnings, *cuts))


class RowReader:
    """Turns catalogue rows into job rows, remembering the recipes it resolved.

    A recipe costs microseconds to resolve and most rows share a few, so that they are kept by the texts they came from.
    """

    def __init__(
        self,
        batch_id: str,
        catalogue: Catalogue,
        defaults: Defaults,
        asked: Mapping[str, Any],
        pin_lora: PinLora = cannot_pin,
    ) -> None:
        self._batch_id, self._name = batch_id, catalogue.uri.rstrip("/").rpartition("/")[2]
        self._checkpoint_defaults, self._defaults, self._asked = defaults, asdict(defaults), asked
        self._seed = asked.get("seed", 0)
        self._pin = lru_cache(LORA_CACHE)(partial(_pin_or_explain, pin_lora, catalogue.image_root))
        self.largest_handoff_bytes = 0
        self._known: dict[tuple[str | None, ...], Recipe | OptionError] = {}
        self._new: dict[str, str] = {}

    def take_new_recipes(self) -> dict[str, str]:
        """Recipes met since the last call, id → body."""
        new, self._new = self._new, {}
        return new

    def read(self, row: Row) -> JobRow:
        """One row → one job row, pending, or failed with a code and a message that names file, line and column."""
        line, values, problem = row
        if problem is not None:
            return self._fail(line, values, problem.code, problem.message)
        custom_id, image = values.get("custom_id"), values.get("image")
        try:
            if image is None:
                raise OptionError("image", "missing_image", "the cell is empty; give a path or a URI")
            recipe = self._recipe(values)
            seed = self._seed if (text := values.get("seed")) is None else read_option("seed", text)
            priority = 0 if (text := values.get("priority")) is None else read_option("priority", text)
            custom_id = derive_custom_id(image) if custom_id is None else custom_id
            _check_texts(image, custom_id)
        except OptionError as error:
            where = f"{self._name}, line {line}, column {error.column}"
            return self._fail(line, values, error.code, f"{where}: {error}")
        return (
            self._batch_id, line, custom_id, image, recipe.id, seed, priority, _given(values), "pending", None, None,
            None,
        )  # fmt: skip

    def place(
        self, rows: Sequence[Row], jobs: Sequence[JobRow], insert: Callable[[Sequence[JobRow]], list[JobRow]]
    ) -> None:
        """Insert the jobs of these rows, settling doubled custom_ids.

        `insert` gives back what it did not take because the custom_id stands already.
        """
        doubled = insert(jobs)
        if not doubled:
            return
        by_line = {row.line: row for row in rows}
        for settle in (self._rename_double, self._refuse_double):
            doubled = insert([settle(job, by_line[job[_LINE]]) for job in doubled])

    def _rename_double(self, job: JobRow, row: Row) -> JobRow:
        """A derived custom_id that stands already gets its line number."""
        if row.values.get("custom_id") is not None:
            return self._refuse_double(job, row)
        suffix = f"-{row.line}"
        renamed = job[_CUSTOM_ID][-(CUSTOM_ID_MAX_CHARACTERS - len(suffix)) :] + suffix
        return (*job[:_CUSTOM_ID], renamed, *job[_CUSTOM_ID + 1 :])

    def _refuse_double(self, job: JobRow, row: Row) -> JobRow:
        message = (
            f"{self._name}, line {row.line}, column custom_id: {job[_CUSTOM_ID]!r} stands on another line too; "
            "give each row its own"
        )
        return self._fail(row.line, row.values, "duplicate_custom_id", message)

    def _recipe(self, values: Mapping[str, str | None]) -> Recipe:
        key = tuple(map(values.get, _OPTION_NAMES))
        found = self._known.get(key)
        if found is None:
            if len(self._known) >= RECIPE_CACHE:
                self._known.clear()
            given = {name: text for name, text in zip(_OPTION_NAMES, key, strict=True) if text is not None}
            try:
                found = resolve_recipe(given, self._asked, self._defaults, self._pin_lora)
                found.body.encode()
                self._new[found.id] = found.body
                if found.width or found.height:
                    needed = handoff_bytes(self._checkpoint_defaults, found.width, found.height)
                    self.largest_handoff_bytes = max(self.largest_handoff_bytes, needed)
            except OptionError as error:
                found = error
            except UnicodeEncodeError:
                found = OptionError("prompt", "bad_text", "holds half a surrogate pair, which is no text")
            self._known[key] = found
        if isinstance(found, OptionError):
            raise found
        return found

    def _pin_lora(self, name: str) -> LoraPin:
        pin = self._pin(name)
        if isinstance(pin, LoraError):
            raise OptionError("lora", pin.code, str(pin))
        return pin

    def _fail(self, line: int, values: Mapping[str, str | None], code: str, message: str) -> JobRow:
        custom_id, image = (_clean(values.get(name)) for name in ("custom_id", "image"))
        if custom_id is None and image is not None:
            custom_id = derive_custom_id(image)
        return (
            self._batch_id, line, custom_id, image, None, 0, 0, _given(values, _TOLD_OF_BAD), "failed", None, code,
            _clean(message),
        )  # fmt: skip


def _pin_or_explain(pin_lora: PinLora, root: str, name: str) -> LoraPin | LoraError:
    """The pin of a LoRA, or why there is none: both are kept, so that a batch reads each LoRA once."""
    try:
        return pin_lora(name, root)
    except LoraError as error:
        return error


def derive_custom_id(image: str) -> str:
    """The image's relative path without its extension; for a URI, its path."""
    path = image
    if "://" in image:
        path = re.split("[?#]", image.partition("://")[2], maxsplit=1)[0].partition("/")[2].lstrip("/")
    stem, dot, extension = path.rpartition(".")
    custom_id = stem if dot and "/" not in extension and stem else path
    return custom_id[-CUSTOM_ID_MAX_CHARACTERS:] or "image"


_LINE, _CUSTOM_ID, _STATE, _ENDED_AT = map(COLUMNS.index, ("line", "custom_id", "state", "ended_at"))


def catalogue_version(catalogue: Catalogue) -> str:
    """Tells a changed catalogue from the same one: size and time of a local file, else a digest of its rows."""
    path = Path(catalogue.uri)
    if path.is_file():
        status = path.stat()
        return f"{status.st_size}:{status.st_mtime_ns}"
    digest = hashlib.blake2b(digest_size=16)
    for row in catalogue.rows():
        digest.update(repr(row).encode("utf-8", "replace"))
    return digest.hexdigest()


def _check_texts(image: str, custom_id: str) -> None:
    """Refuse what no database or file name can hold."""
    if len(custom_id) > CUSTOM_ID_MAX_CHARACTERS:
        raise OptionError(
            "custom_id", "bad_custom_id", f"{len(custom_id):,} characters are more than {CUSTOM_ID_MAX_CHARACTERS}"
        )
    for column, text in (("image", image), ("custom_id", custom_id)):
        if not text.isprintable() and ("\x00" in text or any("\ud800" <= letter <= "\udfff" for letter in text)):
            raise OptionError(column, "bad_text", "holds a NUL character or half a surrogate pair")


def _clean(text: str | None) -> str | None:
    return None if text is None else storable(text)


def _given(values: Mapping[str, str | None], told: frozenset[str] = _TOLD) -> str | None:
    kept = {name: value for name, value in values.items() if name not in told and value is not None}
    return json.dumps(kept) if kept else None


def _stamp(job: JobRow, ended_at: float) -> JobRow:
    """Give a job that failed as it was read the time of its end."""
    return (*job[:_ENDED_AT], ended_at, *job[_ENDED_AT + 1 :]) if job[_STATE] == JobState.FAILED else job


def _chunks(rows: Iterator[Row], size: int) -> Iterator[list[Row]]:
    while chunk := list(islice(rows, size)):
        yield chunk
