"""`kontext export`: a batch's results and manifest, copied into a folder or another bucket.

Owns the copying: checked against each job's sha256, several at once, in constant memory. Refuses to overwrite a picture
that differs.
"""

import hashlib
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import typer
from sqlalchemy import Engine

from orchestrator.cli.display import open_display
from orchestrator.cli.failures import ERROR, SUCCESS, CallError
from orchestrator.cli.locations import log_to_file, open_existing_state, open_stack
from orchestrator.cli.reports import find_batch
from orchestrator.cli.request import lies_in_embedded
from orchestrator.manifest import describe_jobs, write_files
from orchestrator.progress import show_duration
from orchestrator.settings import Settings, read_settings
from orchestrator.state.queries import Batch
from orchestrator.state.transitions import JobState
from orchestrator.storage import StorageError, Store, open_object, open_store, result_name

THREADS = 8
PAGE_JOBS = 64
PROBLEMS_SHOWN = 20
PNG = "image/png"


def export_batch(batch_id: str, location: str) -> int:
    """Copy every succeeded result and the manifest; gives 0 when all of them are there, else 1."""
    began_s = time.monotonic()
    settings = read_settings()
    log_to_file(settings)
    say = partial(typer.echo, err=True)
    with ExitStack() as opened:
        engine = opened.enter_context(open_existing_state(settings))
        batch = find_batch(engine, batch_id)
        if any(map(lies_in_embedded, (batch.results_uri, location))):
            settings = opened.enter_context(open_stack(settings, say))
        try:
            target = open_store(location, settings)
            target.check_writable()
        except StorageError as error:
            raise CallError(f"{location} cannot be written: {error}") from error
        found = _copy_all(engine, batch, target, settings)
        _write_manifest(engine, batch, target)
    copied, equal, failed = found["copied"], found["equal"], found["failed"]
    typer.echo(
        f"batch {batch.id}: {copied:,} copied, {equal:,} there already, {failed:,} failed in "
        f"{show_duration(time.monotonic() - began_s)}; manifest: {target.locate('manifest.jsonl')} (and .csv)"
    )
    return ERROR if failed else SUCCESS


def _copy_all(engine: Engine, batch: Batch, target: Store, settings: Settings) -> Counter[str]:
    found: Counter[str] = Counter()
    display = open_display()
    jobs = describe_jobs(engine, batch, (JobState.SUCCEEDED,))
    with ThreadPoolExecutor(THREADS) as threads:
        try:
            for page in _pages(jobs):
                for outcome, problem in threads.map(lambda job: _copy(job, target, settings), page):
                    found[outcome] += 1
                    if problem and found["failed"] <= PROBLEMS_SHOWN:
                        display.say(problem)
                display.count("pictures looked at", found.total())
        finally:
            threads.shutdown(cancel_futures=True)
            display.close()
    return found


def _pages(jobs: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    while page := list(islice(jobs, PAGE_JOBS)):
        yield page


def _copy(job: dict[str, Any], target: Store, settings: Settings) -> tuple[str, str | None]:
    """Copy one result; gives what became of it, and what is wrong."""
    key = result_name(job["custom_id"], job["take"], ignore_case=target.ignores_case)
    try:
        if target.head(key) is not None:
            return _compare(job, target, key)
        store, source = open_object(job["result"], settings)
        data = store.get(source)
        if hashlib.sha256(data).hexdigest() != job["sha256"]:
            return "failed", f"{job['result']} is not what was stored (its sha256 differs); it was not copied"
        return ("copied", None) if target.put(key, data, content_type=PNG) else _compare(job, target, key)
    except StorageError as error:
        return "failed", str(error)


def _compare(job: dict[str, Any], target: Store, key: str) -> tuple[str, str | None]:
    if hashlib.sha256(target.get(key)).hexdigest() == job["sha256"]:
        return "equal", None
    return "failed", f"{target.locate(key)} holds another picture and is kept; export into another folder"


def _write_manifest(engine: Engine, batch: Batch, target: Store) -> None:
    """The manifest as the batch stands now; unlike a picture it is replaced."""
    with tempfile.TemporaryDirectory() as folder:
        lines, table = Path(folder) / "manifest.jsonl", Path(folder) / "manifest.csv"
        write_files(engine, batch, lines, table)
        target.replace("manifest.jsonl", lines, content_type="application/x-ndjson")
        target.replace("manifest.csv", table, content_type="text/csv; charset=utf-8")
