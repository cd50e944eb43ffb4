"""Making a batch of what was sent: the options it came with, once for each idempotency key, and what it would cost.

Owns reading options as a program gives them. Refuses what names files of this machine: a caller is somebody else.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from sqlalchemy import Connection, Engine

from kontext_model.lora_file import LoraError, LoraPin
from orchestrator.access.audit import Note, unnoted
from orchestrator.batches import BatchError, Request, create_batch, ingest, new_batch_id, request_digest, request_of
from orchestrator.catalogs import Catalogue, CatalogueError
from orchestrator.checkpoints import pin_checkpoint
from orchestrator.recipes import OPTIONS, PER_BATCH, PER_JOB, OptionError, read_option
from orchestrator.settings import Settings
from orchestrator.state import queries
from orchestrator.state.database import reading, storable, tellable
from orchestrator.state.queries import Batch
from orchestrator.state.transitions import BatchStatus
from orchestrator.storage.loras import pin_lora

KNOWN = frozenset({*OPTIONS, "seed", *PER_BATCH})
METADATA_MOST, METADATA_KEY_CHARACTERS, METADATA_VALUE_CHARACTERS = 16, 64, 512
RECENT_JOBS = 500


class _KeyForgotten(Exception):
    """The batch that a key stood for was deleted meanwhile, and the key with it."""


class KeyReused(BatchError):
    """An idempotency key came with another request before; the message says of which batch."""


@dataclass(frozen=True)
class Estimate:
    """What jobs would take by what recent ones took; `None` where none have run yet.

    `seconds` are a worker's, over all jobs; `wall_s` is until the end with the workers that live now.
    """

    jobs: int
    seconds: float | None
    wall_s: float | None
    cost: float | None


def read_asked(given: Mapping[str, Any]) -> dict[str, Any]:
    """Read options as a program gives them: texts or numbers. Raises OptionError."""
    asked: dict[str, Any] = {}
    for name, value in given.items():
        if name not in KNOWN:
            hint = "; give it beside the options" if name in PER_JOB else ""
            raise OptionError(
                name, "unknown_option", f"{name[:80]!r} is no option{hint}; options: {', '.join(sorted(KNOWN))}"
            )
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise OptionError(name, f"bad_{name}", f"{name}: expected a text or a number")
        asked[name] = read_option(name, str(value))
    if {"prompt", "preset"} <= set(asked):
        raise OptionError("preset", "prompt_and_preset", "prompt and preset are both set; keep one of them")
    return asked


def read_metadata(given: Mapping[str, Any] | None) -> dict[str, str]:
    """A caller's own texts, as other batch services bound them. Raises OptionError."""
    metadata = dict(given or {})
    good = len(metadata) <= METADATA_MOST and all(
        isinstance(value, str)
        and len(name) <= METADATA_KEY_CHARACTERS
        and len(value) <= METADATA_VALUE_CHARACTERS
        and storable(name + value) == name + value
        for name, value in metadata.items()
    )
    if not good:
        raise OptionError(
            "metadata",
            "bad_metadata",
            f"metadata: expected at most {METADATA_MOST} texts, names of {METADATA_KEY_CHARACTERS} and values of "
            f"{METADATA_VALUE_CHARACTERS} characters, in UTF-8 and without NUL",
        )
    return metadata


def make_request(settings: Settings, asked: Mapping[str, Any], priority: int = 0) -> Request:
    """The request for what was asked, pinned to checkpoint and LoRA. Raises OptionError, CheckpointError."""
    assert settings.results_uri is not None
    pin = partial(_pin_remote, settings=settings)
    if "lora" in asked:
        try:
            pinned = pin(asked["lora"], "")
        except LoraError as error:
            raise OptionError("lora", error.code, str(error)) from error
        asked = {**asked, "lora": pinned.place, "lora_sha256": pinned.sha256}
    request = request_of(settings, pin_checkpoint(settings), asked, settings.results_uri)
    return replace(request, priority=priority, pin_lora=pin)


def check_prompted(catalogue: Catalogue, asked: Mapping[str, Any]) -> None:
    """Raise CatalogueError for a catalogue without rows, OptionError where nothing says what to do."""
    if catalogue.is_empty():
        raise CatalogueError(f"{catalogue.uri} holds no rows: there is nothing to do")
    if not {"prompt", "preset"} & {*asked, *catalogue.columns}:
        raise OptionError("preset", "no_prompt", "nothing says what to do: give preset or prompt, for all or by row")


def inputs_uri(settings: Settings) -> str:
    """Where images lie that were sent to us, each under its digest."""
    return f"{settings.results_uri}/inputs"


def submit(
    engine: Engine,
    catalogue: Catalogue,
    request: Request,
    metadata: Mapping[str, str],
    key: tuple[str, str, str] | None = None,
    *,
    note: Note = unnoted,
) -> Batch:
    """Store a batch with all its rows; it is noted as it is made, and once more with its rows.

    `key` is (caller, idempotency key, digest of the request): the same three give the same batch, until it is deleted;
    it goes on being stored where an earlier call was cut off, or fails where what it was to be made of has changed
    since. Raises KeyReused, BatchError, CatalogueError.
    """
    while True:
        try:
            return _submit(engine, catalogue, request, metadata, key, note)
        except _KeyForgotten:
            continue


def _submit(
    engine: Engine,
    catalogue: Catalogue,
    request: Request,
    metadata: Mapping[str, str],
    key: tuple[str, str, str] | None,
    note: Note,
) -> Batch:
    batch_id, making = new_batch_id(), note
    if key is not None:
        batch_id = _keep(engine, key, batch_id)
        making = _while_kept(key, batch_id, note)
    with reading(engine).connect() as connection:
        batch = queries.read_batch(connection, batch_id)
    resumed = batch is not None
    if batch is None:
        batch = create_batch(engine, catalogue, request, batch_id, metadata, note=making)
    else:
        note = unnoted  # by the call that made it
    if batch.status == BatchStatus.INGESTING:
        if resumed or batch.ingested_line:
            _refuse_changed(engine, batch, catalogue, request)
        batch = ingest(engine, batch, catalogue, request, note=note)
    return batch


def _keep(engine: Engine, key: tuple[str, str, str], batch_id: str) -> str:
    """The id of the batch that a key stands for: this one, unless it was given before. Raises KeyReused."""
    caller, name, sha256 = key
    with engine.begin() as connection:
        kept = queries.keep_idempotency(connection, caller=caller, key=name, sha256=sha256, batch_id=batch_id)
        if kept.sha256 == sha256:
            queries.resume_ingest(connection, kept.batch_id)
    if kept.sha256 != sha256:
        raise KeyReused(f"Idempotency-Key {name!r} was used for another request, batch {kept.batch_id}")
    return kept.batch_id


def _while_kept(key: tuple[str, str, str], batch_id: str, note: Note) -> Note:
    """A note of a batch that is made only while its key stands for it: else it would lie over a deleted one's."""

    def noted(connection: Connection, target: str, *, jobs: int | None = None, **detail: Any) -> None:
        if not queries.key_stands_for(connection, caller=key[0], key=key[1], batch_id=batch_id):
            raise _KeyForgotten
        note(connection, target, jobs=jobs, **detail)

    return noted


def estimate(engine: Engine, settings: Settings, revision: str, jobs: int) -> Estimate:
    """What so many jobs would take by the latest ones of this checkpoint."""
    with reading(engine).connect() as connection:
        each_s = queries.recent_seconds(connection, revision=revision, latest=RECENT_JOBS)
        workers = queries.live_workers(connection, lease_s=settings.lease_s)
    if each_s is None:
        return Estimate(jobs, None, None, None)
    samplers = sum("sample" in worker.stages and worker.revision == revision for worker in workers)
    seconds = jobs * each_s
    cost = None if settings.cost_per_hour is None else round(seconds / 3600 * settings.cost_per_hour, 4)
    return Estimate(jobs, round(seconds, 1), round(seconds / max(samplers, 1), 1), cost)


def _refuse_changed(engine: Engine, batch: Batch, catalogue: Catalogue, request: Request) -> None:
    """Fail a batch that can only go on with rows of another request than it began with. Raises CatalogueError."""
    if batch.request == request_digest(catalogue, request):
        return
    told = f"{catalogue.uri}, its checkpoint or its LoRA changed while it was read; submit it again"
    with engine.begin() as connection:
        failed = queries.move_batch(connection, batch.id, BatchStatus.FAILED, reason=tellable(told))
    if failed:  # else another call ended the reading meanwhile
        raise CatalogueError(told)


def _pin_remote(name: str, root: str, settings: Settings) -> LoraPin:
    """A LoRA in S3, on the hub, or among what was sent; no other file of this machine."""
    # By what is allowed: a scheme has as many spellings of its case as letters.
    elsewhere = name.startswith(("s3://", "hf://"))
    sent = not name.startswith(("/", "~", ".")) and not {":", "\\"} & set(name)
    if not (elsewhere or sent) or ".." in name.split("/"):
        raise LoraError(name, "a caller from elsewhere names s3:// or a hub id, no file of the server")
    return pin_lora(name, root or inputs_uri(settings), settings)
