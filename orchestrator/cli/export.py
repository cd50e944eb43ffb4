"""`kontext export`: a batch's results and manifest, copied into a folder or another bucket.

Owns what is said of it. The copying, checked against each job's sha256, is the client's, whoever gives the pictures.
"""

import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import typer

from orchestrator.cli.display import open_display
from orchestrator.cli.door import At, Door, open_door
from orchestrator.cli.failures import ERROR, SUCCESS, CallError
from orchestrator.cli.locations import log_to_file, open_stack
from orchestrator.cli.request import lies_in_embedded
from orchestrator.client.downloads import copy_pictures
from orchestrator.progress import show_duration
from orchestrator.settings import read_settings
from orchestrator.state.transitions import JobState
from orchestrator.storage import StorageError, Store, open_store

PROBLEMS_SHOWN = 20
MANIFESTS = {"manifest.jsonl": "application/x-ndjson", "manifest.csv": "text/csv; charset=utf-8"}


def export_batch(at: At, batch_id: str, location: str) -> int:
    """Copy every succeeded result and the manifest; gives 0 when all of them are there, else 1."""
    began_s = time.monotonic()
    settings = read_settings()
    log_to_file(settings)
    with ExitStack() as opened:
        door = opened.enter_context(open_door(at))
        batch = door.batch(batch_id)
        if lies_in_embedded(location):
            settings = opened.enter_context(open_stack(settings, partial(typer.echo, err=True)))
        try:
            target = open_store(location, settings)
            target.check_writable()
        except StorageError as error:
            raise CallError(f"{location} cannot be written: {error}") from error
        found = copy_all(door, batch.id, target)
    typer.echo(
        f"batch {batch.id}: {found['copied']:,} copied, {found['equal']:,} there already, {found['failed']:,} failed "
        f"in {show_duration(time.monotonic() - began_s)}; manifest: {target.locate('manifest.jsonl')} (and .csv)"
    )
    return ERROR if found["failed"] else SUCCESS


def copy_all(door: Door, batch_id: str, target: Store) -> Counter[str]:
    """Copy pictures and manifest, and show how far that is; gives how many were copied, equal already, or failed."""
    display = open_display()

    def tell(found: Counter[str], problem: str | None) -> None:
        if problem and found["failed"] <= PROBLEMS_SHOWN:
            display.say(problem)
        display.count("pictures looked at", found.total())

    try:
        found = copy_pictures(door.jobs(batch_id, (JobState.SUCCEEDED,)), door.picture, target, tell)
    finally:
        display.close()
    with tempfile.TemporaryDirectory() as folder:
        for name, kind in MANIFESTS.items():
            door.save_manifest(batch_id, Path(folder) / name)
            # As the batch stands now: unlike a picture it is replaced.
            target.replace(name, Path(folder) / name, content_type=kind)
    return found
