"""The batch of a run: what `kontext submit` would make, under an id that was fixed when the schedule fired.

Owns that a run which was begun twice, or was interrupted anywhere, gives one batch. Refuses to judge overlaps and
times: that is the scheduler's.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from sqlalchemy import Engine

from kontext_model.lora_file import LoraError
from kontext_model.revision import CheckpointError
from orchestrator.batches import BatchError, create_batch, ingest, request_digest, request_of
from orchestrator.catalogs import Catalogue, CatalogueError, open_catalogue
from orchestrator.checkpoints import pin_checkpoint
from orchestrator.recipes import OptionError, read_option
from orchestrator.settings import Settings
from orchestrator.state import queries
from orchestrator.state.database import reading
from orchestrator.state.queries import Batch, Run, Schedule
from orchestrator.state.transitions import BatchStatus
from orchestrator.storage import StorageError, open_store
from orchestrator.storage.loras import pin_lora


class Unusable(RuntimeError):
    """No batch can be made; the message says why. `transient`: the same may work in a while."""

    def __init__(self, message: str, *, transient: bool = False) -> None:
        super().__init__(message)
        self.transient = transient


def make_batch(
    engine: Engine, settings: Settings, schedule: Schedule, run: Run, on_progress: Callable[[int], None]
) -> Batch:
    """Make the batch of a run, or go on with what another scheduler left of it; gives it wholly stored.

    Raises Unusable; what `on_progress` raises interrupts the reading, between two chunks of rows.
    """
    with reading(engine).connect() as connection:
        batch = queries.read_batch(connection, run.reserved_id)
    if batch is not None and batch.status == BatchStatus.FAILED:
        raise Unusable(batch.reason or "its catalogue could not be read to the end")
    if batch is not None and batch.status != BatchStatus.INGESTING:
        return batch
    try:
        return _fill(engine, settings, schedule, run, batch, on_progress)
    except BatchError as error:  # another scheduler is at it still, or somebody cancelled it: look again later
        raise Unusable(str(error), transient=True) from error
    except (CatalogueError, CheckpointError, LoraError, OptionError, StorageError) as error:
        cause = error if isinstance(error, StorageError) else error.__cause__
        raise Unusable(str(error), transient=isinstance(cause, StorageError) and cause.transient) from error


def _fill(
    engine: Engine,
    settings: Settings,
    schedule: Schedule,
    run: Run,
    batch: Batch | None,
    on_progress: Callable[[int], None],
) -> Batch:
    catalogue = open_catalogue(schedule.catalogue, settings)
    asked = _pin(schedule, settings)
    _check_instructed(catalogue, asked)
    uri = schedule.results_uri or settings.results_uri
    if uri is None:
        raise Unusable("nothing says where results go: set KONTEXT_RESULTS_URI, or the schedule a place of its own")
    request = request_of(settings, pin_checkpoint(settings), asked, open_store(uri, settings).uri)
    request = replace(request, priority=schedule.priority)
    if batch is None:
        batch = create_batch(engine, catalogue, request, run.reserved_id)
    if batch.ingested_line and batch.request != request_digest(catalogue, request):
        raise Unusable(
            f"{schedule.catalogue} changed while it was read, and the scheduler that read it died; run it again: "
            f"kontext schedule fire {schedule.name}"
        )
    return ingest(engine, batch, catalogue, request, on_progress)


def _pin(schedule: Schedule, settings: Settings) -> Mapping[str, Any]:
    """What is asked of the batch, its LoRA pinned to what it holds now. Raises OptionError."""
    asked = dict(schedule.asked)
    if "deadline" in asked:
        read_option("deadline", asked["deadline"])  # older versions stored some that no calendar shows
    if not schedule.only_changed:
        asked["only_changed"] = False
    if "lora" in asked:
        pin = pin_lora(asked["lora"], "/", settings)
        asked |= {"lora": pin.place, "lora_sha256": pin.sha256}
    return asked


def _check_instructed(catalogue: Catalogue, asked: Mapping[str, Any]) -> None:
    if not {"prompt", "preset"} & {*asked, *catalogue.columns}:
        raise Unusable(
            f"{catalogue.uri} says nowhere what to do: give the schedule a prompt or preset, or the catalogue a column "
            "prompt or preset"
        )
