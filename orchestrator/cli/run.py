"""`kontext run`: a catalogue, from its first row to its last result, on whatever is configured or embedded.

Owns the order of a run. Refuses to make a batch that could not be written, and a second one of an unfinished request.
"""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import typer
from sqlalchemy import Engine

from orchestrator.batches import DryRun, Request, create_batch, dry_run, find_unfinished, ingest
from orchestrator.catalogs import Catalogue
from orchestrator.checkpoints import pin_checkpoint
from orchestrator.cli.crew import Crew, Wanted, interruptible
from orchestrator.cli.display import Display, open_display
from orchestrator.cli.door import At, Door
from orchestrator.cli.failures import INCOMPLETE, INTERRUPTED, SUCCESS, CallError, RunError
from orchestrator.cli.local import Local
from orchestrator.cli.locations import check_redis, log_to_file, open_stack, open_state
from orchestrator.cli.request import Call, check_results, lies_in_embedded, make_request, open_asked, pin_asked
from orchestrator.cli.sending import dry_run as dry_run_at
from orchestrator.cli.summary import Summary, describe, sum_up, write_lines
from orchestrator.client import DryRun as RemoteDryRun
from orchestrator.contact_sheet import write_sheet
from orchestrator.progress import Pace, Snapshot, follow, look
from orchestrator.settings import Settings, read_settings
from orchestrator.state.queries import Batch
from orchestrator.state.transitions import BatchStatus, JobState
from orchestrator.storage.loras import pin_lora

FAILURES_SHOWN = 10


def check_rows(at: At, call: Call, *, as_json: bool) -> int:
    """`--dry-run`: read every row and say what is wrong. Makes no batch, starts nothing but the reading of a
    catalogue that lies in the embedded S3 server."""
    found = _dry_run(call) if at.here else dry_run_at(at, call)
    errors = [error if isinstance(error, dict) else asdict(error) for error in found.errors]
    if as_json:
        told = {
            "rows": found.rows,
            "bad": found.bad,
            "recipes": found.recipes,
            "errors": errors,
            "warnings": list(found.warnings),
        }
        if len(errors) < found.bad:
            told["errors_truncated"] = True
        typer.echo(json.dumps(told))
    else:
        for line in _write_check(found, errors):
            typer.echo(line)
    return INCOMPLETE if found.bad else SUCCESS


def _write_check(found: DryRun | RemoteDryRun, errors: list[dict[str, Any]]) -> Iterator[str]:
    for warning in found.warnings:
        yield f"warning: {warning}"
    for error in errors:
        yield f"{error['code']}: {error['message']}"
    if len(errors) < found.bad:
        yield f"… and {found.bad - len(errors):,} more bad rows"
    plural = "" if found.recipes == 1 else "s"
    yield (
        f"{found.rows:,} rows: {found.rows - found.bad:,} good, {found.bad:,} bad, {found.recipes:,} recipe{plural}; "
        "no batch was made"
    )


def _dry_run(call: Call) -> DryRun:
    settings = read_settings()
    say = partial(typer.echo, err=True)
    with ExitStack() as opened:
        if lies_in_embedded(call.catalogue):
            settings = opened.enter_context(open_stack(settings, say))
        catalogue = open_asked(call, settings)
        asked, pin = pin_asked(call, settings), partial(pin_lora, settings=settings)
        return dry_run(catalogue, asked, pin_checkpoint(settings).defaults, pin)


@dataclass(frozen=True)
class _Run:
    """All that one call works with, opened."""

    settings: Settings
    engine: Engine
    catalogue: Catalogue
    request: Request
    display: Display
    crew: Crew


def run_catalogue(call: Call, *, as_json: bool, sheet: Path | None = None) -> int:
    """Run a call to its end, print the summary, give the exit status."""
    began_s = time.monotonic()
    if sheet is not None:
        _check_sheet(sheet)
    with interruptible(), ExitStack() as opened:
        run = _open(call, opened)
        pace = Pace()
        found = find_unfinished(run.engine, run.catalogue, run.request)
        batch = found or create_batch(run.engine, run.catalogue, run.request)
        try:
            run.display.say(f"batch {batch.id}{' goes on where it stopped' if found else ''}")
            run.crew.tick()  # a worker opens its model while the catalogue is read
            if batch.status == BatchStatus.INGESTING:
                ingest(run.engine, batch, run.catalogue, run.request, partial(run.display.count, "rows stored"))
            last, interrupted = _watch(run, batch, pace), False
        except KeyboardInterrupt:
            last, interrupted = look(run.engine, batch.id), True
        except RunError as error:
            raise RunError(f"{error}\nbatch {batch.id} stays; the same command resumes it") from error
        door = Local(run.engine, run.settings, opened)
        summary = sum_up(door, batch.id, time.monotonic() - began_s, pace.mean_rate)
        _stop(run.crew, run.display)
        run.display.close()
        if interrupted:
            run.display.say(f"interrupted; the same command resumes batch {batch.id}")
        elif sheet is not None:
            write_sheet(run.engine, last, run.settings, sheet, seconds=summary.seconds)
        print_summary(summary, None if interrupted else sheet, as_json)
    return INTERRUPTED if interrupted else summary.exit_status


def _check_sheet(sheet: Path) -> None:
    """Say before the work, not after it, that the contact sheet could not be written."""
    try:
        sheet.parent.mkdir(parents=True, exist_ok=True)
        with sheet.open("ab"):
            pass
    except OSError as error:
        raise CallError(f"--sheet {sheet} cannot be written: {error.strerror}") from error
    if sheet.stat().st_size == 0:
        sheet.unlink()


def _open(call: Call, opened: ExitStack) -> _Run:
    """Check and open everything in the order that tells a wrong call soonest; nothing is stored yet."""
    settings = read_settings()
    log_to_file(settings)
    say = partial(typer.echo, err=True)
    early = None if lies_in_embedded(call.catalogue) else open_asked(call, settings)
    settings = opened.enter_context(open_stack(settings, say))
    catalogue = open_asked(call, settings) if early is None else early
    engine = opened.enter_context(open_state(settings))
    checkpoint = pin_checkpoint(settings)
    settings = settings.model_copy(update={"checkpoint": checkpoint.ref, "home": settings.home.absolute()})
    request = make_request(call, settings, checkpoint)
    check_results(request, settings)
    check_redis(settings)
    for warning in catalogue.warnings:
        say(f"warning: {warning}")
    display = open_display()
    opened.callback(display.close)
    crew = Crew(settings, engine, Wanted(checkpoint.revision, settings.numerics), display.say)
    opened.callback(_stop, crew, display)
    return _Run(settings, engine, catalogue, request, display, crew)


def _watch(run: _Run, batch: Batch, pace: Pace) -> Snapshot:
    """Show the batch until it stands; gives how it stands."""
    shown: set[int] = set()
    door = Local(run.engine, run.settings, ExitStack())
    for snapshot in follow(run.engine, batch.id):
        pace.note(snapshot.at_s, snapshot.counts.ended)
        if snapshot.counts.failed > len(shown) and len(shown) < FAILURES_SHOWN:
            show_failures(door, batch.id, shown, run.display.say)
        run.display.show(snapshot, pace, run.crew.waiting_for)
        if not snapshot.standing:
            run.crew.tick()
    return snapshot


def show_failures(door: Door, batch_id: str, shown: set[int], say: Callable[[str], None]) -> None:
    """Say which jobs failed since the last look, the first ones only; `shown` are the lines that were told of."""
    for job in door.jobs(batch_id, (JobState.FAILED,)):
        if job.line in shown:
            continue
        shown.add(job.line)
        say(f"failed: {job.custom_id or f'line {job.line}'}: {job.code}: {job.message}")
        if len(shown) == FAILURES_SHOWN:
            say("… further failures are told at the end")
            return


def _stop(crew: Crew, display: Display) -> None:
    """End our processes; Ctrl-C while they end in good order kills them."""
    try:
        crew.stop()
    except KeyboardInterrupt:
        display.say("killing what has not stopped")
        crew.stop()


def print_summary(summary: Summary, sheet: Path | None, as_json: bool) -> None:
    """Print how a call ended, for people or for programs."""
    if as_json:
        typer.echo(json.dumps(describe(summary)))
        return
    for line in write_lines(summary):
        typer.echo(line)
    if sheet is not None:
        typer.echo(f"  sheet     {sheet.absolute()}")
