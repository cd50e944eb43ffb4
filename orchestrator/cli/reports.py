"""`kontext batches | show | jobs`: how things stand, for people and for programs.

Owns the shapes of their JSON. Needs SQL alone; refuses to start anything.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import typer
from sqlalchemy import Engine

from orchestrator.batches import BatchError, read_batch
from orchestrator.cli.display import describe_counts
from orchestrator.cli.failures import CallError
from orchestrator.cli.locations import open_existing_state
from orchestrator.manifest import describe_jobs
from orchestrator.progress import Snapshot, look, show_duration
from orchestrator.settings import read_settings
from orchestrator.state import queries
from orchestrator.state.clock import show_time
from orchestrator.state.database import reading
from orchestrator.state.queries import Batch
from orchestrator.state.transitions import JobState

COUNTS = ("total", *(state.value for state in JobState))
JOB_LINE = "{line:>8}  {custom_id:<32}  {state:<10}  {stage:<7}  {attempts:>8}  {seconds:>8}  {outcome}"


def find_batch(engine: Engine, batch_id: str) -> Batch:
    """One batch. Raises CallError when there is none of that id."""
    try:
        return read_batch(engine, batch_id)
    except BatchError as error:
        raise CallError(str(error)) from error


def list_batches(limit: int, *, as_json: bool) -> None:
    """The newest batches with their counts."""
    settings = read_settings()
    if settings.database_url is None and not (settings.home / "state.db").exists():
        typer.echo(
            "[]" if as_json else f"no batches yet in {settings.home.absolute()}; make one: kontext run CATALOGUE"
        )
        return
    with open_existing_state(settings) as engine:
        with reading(engine).connect() as connection:
            batches = queries.list_batches(connection, limit=limit)
        snapshots = [look(engine, batch.id) for batch in batches]
    if as_json:
        typer.echo(json.dumps([_describe_briefly(snapshot) for snapshot in snapshots]))
    elif not snapshots:
        typer.echo("no batches yet; make one: kontext run CATALOGUE")
    else:
        for line in _write_table(snapshots):
            typer.echo(line)


def _describe_briefly(snapshot: Snapshot) -> dict[str, Any]:
    batch, counts = snapshot.batch, snapshot.counts
    return {
        "batch": batch.id,
        "status": batch.status.value,
        "request_counts": {name: getattr(counts, name) for name in COUNTS},
        "reused": counts.reused,
        "reason": batch.reason,
        "catalogue": batch.catalogue,
        "priority": batch.priority,
        **_describe_times(batch),
    }


def _describe_times(batch: Batch) -> dict[str, str | None]:
    return {name: show_time(getattr(batch, name)) for name in ("created_at", "started_at", "ended_at")}


def _write_table(snapshots: Sequence[Snapshot]) -> Iterator[str]:
    yield f"{'batch':<18} {'status':<10} {'made (UTC)':<17} {'jobs':>10} {'ok':>10} {'failed':>8}  catalogue"
    for batch, counts in ((snapshot.batch, snapshot.counts) for snapshot in snapshots):
        made = (show_time(batch.created_at) or "")[:16].replace("T", " ")
        yield (
            f"{batch.id:<18} {batch.status:<10} {made:<17} {counts.total:>10,} {counts.succeeded:>10,} "
            f"{counts.failed:>8,}  {batch.catalogue}"
        )


def show_batch(batch_id: str, *, as_json: bool) -> None:
    """One batch: counts, errors, seconds, locations."""
    with open_existing_state(read_settings()) as engine:
        find_batch(engine, batch_id)
        snapshot = look(engine, batch_id)
        with reading(engine).connect() as connection:
            errors = queries.count_by_error(connection, batch_id)
            seconds = queries.stage_seconds(connection, batch_id)
    batch = snapshot.batch
    told = {
        **_describe_briefly(snapshot),
        "results": batch.results_uri,
        "manifest": batch.manifest_uri,
        "deadline_at": show_time(batch.deadline_at),
        "checkpoint": batch.checkpoint,
        "revision": batch.revision,
        "numerics": batch.numerics,
        "options": dict(batch.options),
        "seconds": {stage: round(value, 3) for stage, value in seconds.items()},
        "errors": dict(errors),
    }
    if as_json:
        typer.echo(json.dumps(told))
    else:
        for line in _write_batch(snapshot, told):
            typer.echo(line)


def _write_batch(snapshot: Snapshot, told: dict[str, Any]) -> Iterator[str]:
    batch = snapshot.batch
    reason = f" ({batch.reason})" if batch.reason else ""
    yield f"batch {batch.id} {batch.status}{reason}: {describe_counts(snapshot.counts)}"
    yield f"  catalogue   {batch.catalogue}"
    yield f"  results     {batch.results_uri}"
    if told["manifest"]:
        yield f"  manifest    {told['manifest']}"
    yield f"  checkpoint  {batch.checkpoint} at {batch.revision[:12]} ({batch.numerics})"
    yield f"  made        {told['created_at']}" + (f", ended {told['ended_at']}" if told["ended_at"] else "")
    if told["deadline_at"]:
        yield f"  deadline    {told['deadline_at']}"
    yield "  work        " + ", ".join(f"{stage} {show_duration(value)}" for stage, value in told["seconds"].items())
    for code, number in told["errors"].items():
        yield f"  failed      {number:,} × {code}"
    if told["errors"]:
        yield f"  next        kontext jobs {batch.id} --state failed, then kontext retry {batch.id}"


def list_jobs(batch_id: str, states: Sequence[JobState], *, as_json: bool) -> None:
    """A batch's jobs in the catalogue's order; streams."""
    with open_existing_state(read_settings()) as engine:
        batch = find_batch(engine, batch_id)
        if not as_json:
            names = ("line", "custom_id", "state", "stage", "attempts", "seconds", "outcome")
            typer.echo(JOB_LINE.format(**{name: name for name in names}))
        for job in describe_jobs(engine, batch, states):
            typer.echo(json.dumps(job) if as_json else _write_job(job))


def _write_job(job: dict[str, Any]) -> str:
    outcome = job["result"] or (f"{job['code']}: {job['message']}" if job["code"] else "")
    shown = {
        "line": job["line"],
        "custom_id": shorten(job["custom_id"] or "", 32),
        "state": job["state"],
        "stage": job["stage"] or "",
        "attempts": job["attempts"],
        "seconds": "" if job["seconds"] is None else f"{job['seconds']:.2f}",
        "outcome": "reused " * job["reused"] + " ".join(outcome.split()),
    }
    return JOB_LINE.format(**shown).rstrip()


def shorten(text: str, characters: int) -> str:
    """A text in at most so many characters, its end kept: ids differ there."""
    text = " ".join(text.split())
    return text if len(text) <= characters else f"…{text[1 - characters :]}"
