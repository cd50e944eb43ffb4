"""`kontext batches | show | jobs | workers | presets`: how things stand, for people and for programs.

Owns the shapes of their JSON. Needs the door alone; refuses to start anything.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import chain, islice
from typing import Any

import typer

from orchestrator.cli.display import describe_counts
from orchestrator.cli.door import At, open_client, open_door
from orchestrator.cli.locations import has_state
from orchestrator.client.shapes import Batch, Job, Preset, Worker
from orchestrator.presets import PRESETS
from orchestrator.progress import show_duration
from orchestrator.settings import read_settings
from orchestrator.state.clock import show_time
from orchestrator.state.transitions import JobState

COUNTS = ("total", *(state.value for state in JobState))
TOLD_OF_JOB = (
    "custom_id", "line", "take", "image", "state", "stage", "attempt", "attempts", "code", "message", "result",
    "sha256", "seed", "seconds", "reused", "canvas", "revision", "recipe", "decision",
)  # fmt: skip
JOB_LINE = "{line:>8}  {custom_id:<32}  {state:<10}  {stage:<7}  {attempts:>8}  {seconds:>8}  {outcome}"


def list_batches(at: At, limit: int, *, as_json: bool) -> None:
    """The newest batches with their counts."""
    if at.here and not has_state(settings := read_settings()):
        typer.echo(
            "[]" if as_json else f"no batches yet in {settings.home.absolute()}; make one: kontext run CATALOGUE"
        )
        return
    with open_door(at) as door:
        batches = list(door.batches(limit))
    if as_json:
        typer.echo(json.dumps([_describe_briefly(batch) for batch in batches]))
    elif not batches:
        typer.echo("no batches yet; make one: kontext run CATALOGUE")
    else:
        for line in _write_table(batches):
            typer.echo(line)


def _describe_briefly(batch: Batch) -> dict[str, Any]:
    counts = batch.request_counts
    return {
        "batch": batch.id,
        "status": batch.status.value,
        "request_counts": {name: getattr(counts, name) for name in COUNTS},
        "reused": counts.reused,
        "reason": batch.reason,
        "catalogue": batch.catalogue,
        "priority": batch.priority,
        "created_at": show_time(batch.created_at),
        "started_at": show_time(batch.in_progress_at),
        "ended_at": show_time(batch.ended_at),
    }


def _write_table(batches: Sequence[Batch]) -> Iterator[str]:
    yield f"{'batch':<18} {'status':<10} {'made (UTC)':<17} {'jobs':>10} {'ok':>10} {'failed':>8}  catalogue"
    for batch, counts in ((batch, batch.request_counts) for batch in batches):
        made = (show_time(batch.created_at) or "")[:16].replace("T", " ")
        yield (
            f"{batch.id:<18} {batch.status:<10} {made:<17} {counts.total:>10,} {counts.succeeded:>10,} "
            f"{counts.failed:>8,}  {batch.catalogue}"
        )


def show_batch(at: At, batch_id: str, *, as_json: bool) -> None:
    """One batch: counts, errors, seconds, locations."""
    with open_door(at) as door:
        batch = door.batch(batch_id)
    told = {
        **_describe_briefly(batch),
        "results": batch.results,
        "manifest": batch.manifest,
        "deadline_at": show_time(batch.expires_at),
        "checkpoint": batch.checkpoint,
        "revision": batch.checkpoint_revision,
        "numerics": batch.numerics,
        "options": dict(batch.options),
        "seconds": dict(batch.stage_seconds or {}),
        "errors": {failure.code: failure.count for failure in batch.errors or ()},
    }
    if as_json:
        typer.echo(json.dumps(told))
    else:
        for line in _write_batch(batch, told):
            typer.echo(line)


def _write_batch(batch: Batch, told: dict[str, Any]) -> Iterator[str]:
    reason = f" ({batch.reason})" if batch.reason else ""
    yield f"batch {batch.id} {batch.status}{reason}: {describe_counts(batch.request_counts)}"
    yield f"  catalogue   {batch.catalogue}"
    yield f"  results     {batch.results}"
    if told["manifest"]:
        yield f"  manifest    {told['manifest']}"
    yield f"  checkpoint  {batch.checkpoint} at {batch.checkpoint_revision[:12]} ({batch.numerics})"
    yield f"  made        {told['created_at']}" + (f", ended {told['ended_at']}" if told["ended_at"] else "")
    if told["deadline_at"]:
        yield f"  deadline    {told['deadline_at']}"
    yield "  work        " + ", ".join(f"{stage} {show_duration(value)}" for stage, value in told["seconds"].items())
    for code, number in told["errors"].items():
        yield f"  failed      {number:,} × {code}"
    if told["errors"]:
        yield f"  next        kontext jobs {batch.id} --state failed, then kontext retry {batch.id}"


def list_jobs(at: At, batch_id: str, states: Sequence[JobState], *, as_json: bool) -> None:
    """A batch's jobs in the catalogue's order; streams."""
    with open_door(at) as door:
        found = iter(door.jobs(batch_id, states))
        first = list(islice(found, 1))  # a batch that is not there is told of before the header
        if not as_json:
            names = ("line", "custom_id", "state", "stage", "attempts", "seconds", "outcome")
            typer.echo(JOB_LINE.format(**{name: name for name in names}))
        for job in chain(first, found):
            typer.echo(json.dumps({name: getattr(job, name) for name in TOLD_OF_JOB}) if as_json else _write_job(job))


def _write_job(job: Job) -> str:
    outcome = job.result or (f"{job.code}: {job.message}" if job.code else "")
    shown = {
        "line": job.line,
        "custom_id": shorten(job.custom_id or "", 32),
        "state": job.state,
        "stage": job.stage or "",
        "attempts": job.attempts,
        "seconds": "" if job.seconds is None else f"{job.seconds:.2f}",
        "outcome": "reused " * job.reused + " ".join(outcome.split()),
    }
    return JOB_LINE.format(**shown).rstrip()


def list_workers(at: At, *, as_json: bool) -> None:
    """The workers that live; with JSON one object a line."""
    with open_door(at) as door:
        found = door.workers()
    for worker in found:
        typer.echo(json.dumps(asdict(worker)) if as_json else _write_worker(worker))
    if not found and not as_json:
        typer.echo("no worker lives; one comes with kontext up, or: kontext worker")


def _write_worker(worker: Worker) -> str:
    memory = f"{worker.memory_bytes / (1 << 20):,.0f} MiB"
    held = f", holds {len(worker.jobs)}" if worker.jobs else ", idle"
    stages = ",".join(worker.stages)
    return f"{worker.id}  {stages} on {worker.device}, {worker.revision[:12]} ({worker.numerics}), {memory}{held}"


def list_presets(at: At, *, as_json: bool) -> None:
    """The built-in edits; with JSON one object a line."""
    if at.here:
        found = [Preset(p.name, p.summary, p.prompt, p.negative_prompt, dict(p.options)) for p in PRESETS.values()]
    else:
        with open_client(at) as client:
            found = client.presets()
    for preset in found:
        typer.echo(json.dumps(asdict(preset)) if as_json else f"{preset.name:<18} {preset.summary}")


def shorten(text: str, characters: int) -> str:
    """A text in at most so many characters, its end kept: ids differ there."""
    text = " ".join(text.split())
    return text if len(text) <= characters else f"…{text[1 - characters :]}"
