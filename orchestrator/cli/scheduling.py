"""`kontext schedule …`: schedules are stored and shown; a dispatcher runs them.

Owns how they read on a terminal and as JSON. Needs the door alone; refuses to start anything.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import typer

from kontext_model.lora_file import LoraError
from orchestrator.cli.door import At, open_door
from orchestrator.cli.failures import CallError
from orchestrator.cli.reports import shorten
from orchestrator.cli.request import Call
from orchestrator.client.shapes import Plan, Run, Schedule
from orchestrator.settings import read_settings
from orchestrator.state.clock import show_time
from orchestrator.state.transitions import Missed, Overlap
from orchestrator.storage.loras import pin_lora


def add_schedule(
    at: At,
    call: Call,
    name: str,
    cron: str,
    time_zone: str,
    *,
    only_changed: bool,
    overlap: Overlap,
    missed: Missed,
    as_json: bool,
) -> None:
    """Store a schedule, and say when it fires first."""
    asked = _place_lora(call.asked) if at.here else dict(call.asked)
    plan = Plan(
        name, cron, call.catalogue, time_zone, asked, call.out, call.priority, only_changed, overlap, missed
    )  # fmt: skip
    with open_door(at, making=True) as door:
        made = door.add_schedule(plan)
    if at.here and not made.catalogue.startswith("s3://") and not Path(made.catalogue).exists():
        typer.echo(f"warning: {made.catalogue} does not exist yet; a run that does not find it fails", err=True)
    _tell(describe_schedule(made), f"schedule {name} fires first at {_local(made, made.next_fire_at)}", as_json)


def _place_lora(asked: Any) -> dict[str, Any]:
    """What is asked, a LoRA's path absolute: its content is pinned by each run. Raises CallError."""
    if "lora" not in asked:
        return dict(asked)
    try:
        return {**asked, "lora": pin_lora(asked["lora"], os.getcwd(), read_settings()).place}
    except LoraError as error:
        raise CallError(f"--set lora={asked['lora']}: {error}") from error


def list_schedules(at: At, *, as_json: bool) -> None:
    """All schedules."""
    with open_door(at, making=True) as door:
        found = door.schedules()
    if as_json:
        typer.echo(json.dumps([describe_schedule(schedule) for schedule in found]))
    elif not found:
        typer.echo("no schedules yet; make one: kontext schedule add NAME --cron '0 2 * * *' --catalogue URI …")
    else:
        typer.echo(f"{'schedule':<24} {'cron':<16} {'time zone':<20} {'next':<17} {'last run':<34} catalogue")
        for schedule in found:
            last = schedule.last_run
            outcome = "none yet" if last is None else f"{_local(schedule, last.fire_at)[:16]} {last.state}"
            typer.echo(
                f"{shorten(schedule.name, 24):<24} {schedule.cron:<16} {schedule.time_zone:<20} "
                f"{_next(schedule)[:16]:<17} {outcome:<34} {schedule.catalogue}"
            )


def show_schedule(at: At, name: str, limit: int, *, as_json: bool) -> None:
    """One schedule with its next fire times and its past runs."""
    with open_door(at) as door:
        schedule = door.schedule(name)
        runs = door.runs(name, limit)
    if as_json:
        told = describe_schedule(schedule)
        told["next_fires"] = [show_time(at_s) for at_s in schedule.next_fires]
        typer.echo(json.dumps(told | {"runs": [describe_run(run) for run in runs]}))
    else:
        for line in _write_schedule(schedule, runs):
            typer.echo(line)


def pause_schedule(at: At, name: str, *, as_json: bool) -> None:
    """Pause, and say so."""
    with open_door(at) as door:
        paused = door.pause_schedule(name)
    _tell(describe_schedule(paused), f"schedule {name} is paused. Go on: kontext schedule resume {name}", as_json)


def resume_schedule(at: At, name: str, *, as_json: bool) -> None:
    """Resume, and say when it fires next."""
    with open_door(at) as door:
        resumed = door.resume_schedule(name)
    _tell(describe_schedule(resumed), f"schedule {name} fires next at {_next(resumed)}", as_json)


def remove_schedule(at: At, name: str, *, as_json: bool) -> None:
    """Remove, and say so."""
    with open_door(at) as door:
        door.remove_schedule(name)
    _tell({"schedule": name, "removed": True}, f"schedule {name} is removed; its batches stay", as_json)


def fire_schedule(at: At, name: str, *, as_json: bool) -> None:
    """Ask for a run, and say where to look."""
    with open_door(at) as door:
        run = door.fire_schedule(name)
    sentence = f"run {run.id} of schedule {name} is due; a dispatcher begins it: kontext schedule show {name}"
    _tell(describe_run(run), sentence, as_json)


def describe_schedule(schedule: Schedule) -> dict[str, Any]:
    """A schedule for programs. Times are ISO 8601, in UTC."""
    same = (
        "name", "cron", "time_zone", "catalogue", "results_uri", "priority", "only_changed", "overlap", "missed",
        "paused",
    )  # fmt: skip
    return {
        **{name: getattr(schedule, name) for name in same},
        "next_fire_at": show_time(schedule.next_fire_at),
        "created_at": show_time(schedule.created_at),
        "asked": dict(schedule.options),
        "last_run": None if schedule.last_run is None else describe_run(schedule.last_run),
    }


def describe_run(run: Run) -> dict[str, Any]:
    """A run for programs."""
    return {
        "run": run.id,
        "schedule": run.schedule,
        "fire_at": show_time(run.fire_at),
        "by_request": run.by_request,
        "missed": run.missed,
        "state": run.state.value,
        "reason": run.reason,
        "batch": run.batch_id,
        "batch_status": run.batch_status and run.batch_status.value,
        "started_at": show_time(run.started_at),
        "ended_at": show_time(run.ended_at),
        "report": run.report and asdict(run.report),
    }


def _write_schedule(schedule: Schedule, runs: list[Run]) -> Iterator[str]:
    asked = ", ".join(f"{name}={value}" for name, value in schedule.options.items())
    yield f"schedule {schedule.name}{' (paused)' if schedule.paused else ''}: {schedule.cron} in {schedule.time_zone}"
    yield f"  catalogue   {schedule.catalogue}"
    yield f"  asked       {asked or 'as the catalogue says'}{'' if schedule.only_changed else ', every picture anew'}"
    yield f"  results     {schedule.results_uri or 'as KONTEXT_RESULTS_URI says'}"
    yield f"  overlap     {schedule.overlap};  missed  {schedule.missed}"
    for at_s in schedule.next_fires:
        yield f"  next        {_local(schedule, at_s)}"
    for run in runs:
        yield f"  run         {_local(schedule, run.fire_at)}  {_describe(run)}"


def _describe(run: Run) -> str:
    parts = [f"{run.state:<8}", run.batch_id or "no batch"]
    if run.report is not None:
        counts = run.report
        parts.append(
            f"{counts.total:,} jobs: {counts.new:,} new, {counts.changed:,} changed, {counts.reused:,} reused, "
            f"{counts.failed:,} failed" + (f", {counts.cancelled:,} cancelled" if counts.cancelled else "")
        )
    if run.missed:
        parts.append(f"stands for {run.missed:,} missed before it")
    return "  ".join([*parts, *([run.reason] if run.reason else [])])


def _next(schedule: Schedule) -> str:
    return "paused" if schedule.paused else _local(schedule, schedule.next_fire_at)


def _local(schedule: Schedule, seconds: float | None) -> str:
    """A time in the schedule's own zone, as its cron expression means it."""
    if seconds is None:
        return "never"
    shown = datetime.fromtimestamp(seconds, ZoneInfo(schedule.time_zone))
    return f"{shown.replace(tzinfo=None).isoformat(' ', 'minutes')} {shown.tzname()}"


def _tell(told: dict[str, Any], sentence: str, as_json: bool) -> None:
    typer.echo(json.dumps(told) if as_json else sentence)
