"""Schedules: what fires when, how its runs went, and what is asked of it: run now, pause, resume, remove, a new one."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Annotated, Any

from fastapi import Form, Path, Query, Request, Response

from orchestrator import schedules
from orchestrator.api import audit
from orchestrator.api.access import Admin, Caller, Reader, Submitter
from orchestrator.api.problems import Problem
from orchestrator.catalogs import CatalogueError
from orchestrator.dashboard.page import page_router, redirect, render
from orchestrator.dashboard.services import Kept, Services
from orchestrator.dashboard.wording import moment, plural
from orchestrator.fire_times import FireTimeError, fire_times
from orchestrator.presets import PRESETS
from orchestrator.recipes import OptionError
from orchestrator.redaction import redact
from orchestrator.schedules import NoSchedule, Plan, ScheduleError
from orchestrator.state import queries
from orchestrator.state.database import reading
from orchestrator.state.queries import Run, Schedule
from orchestrator.state.transitions import Missed, Overlap
from orchestrator.submission import read_asked

router = page_router()
RUNS_SHOWN, NEXT_SHOWN = 20, 3
Name = Annotated[str, Path(max_length=120)]
Text = Annotated[str, Form(max_length=2000)]
POLICIES = {
    Overlap.SKIP: "skip the new run", Overlap.QUEUE: "let the new run wait", Overlap.ALLOW: "run both",
}  # fmt: skip


@dataclass(frozen=True)
class RunRow:
    """A run as the page shows it."""

    schedule: str
    fire_at: float
    state: str
    batch_id: str | None
    told: str
    by_request: bool


@dataclass(frozen=True)
class ScheduleRow:
    """A schedule as the page shows it."""

    name: str
    when: str
    time_zone: str
    catalogue: str
    what: str
    paused: bool
    next: tuple[float, ...]
    last: RunRow | None


@dataclass(frozen=True)
class Schedules:
    """All that the page shows. `given` are the values of a form that was refused."""

    now: float
    rows: tuple[ScheduleRow, ...]
    runs: tuple[RunRow, ...]
    presets: tuple[str, ...]
    policies: tuple[tuple[str, str], ...]
    given: dict[str, str]
    problem: str = ""


@router.get("/schedules")
def show_schedules(
    caller: Reader, request: Request, kept: Services, part: Annotated[str, Query(max_length=10)] = ""
) -> Response:
    """All schedules and the runs that fired last, or the part of the page that changes by itself."""
    template = "parts/schedules_live.html" if part else "schedules.html"
    return render(request, caller, template, _look(kept), part=part)


@router.post("/schedules")
def add_schedule(
    caller: Admin,
    request: Request,
    kept: Services,
    name: Text,
    cron: Text,
    catalogue: Text,
    time_zone: Text = "UTC",
    preset: Text = "",
    overlap: Overlap = Form(Overlap.SKIP),
    missed: Missed = Form(Missed.ONCE),
    every: Annotated[str, Form(alias="all", max_length=1)] = "",
) -> Response:
    """Make a schedule. A form that cannot be read as one comes back as it was, and says what was wrong."""
    try:
        asked = read_asked({"preset": preset} if preset else {})
        plan = Plan(
            name.strip(), cron.strip(), catalogue.strip(), time_zone.strip() or "UTC", asked, overlap=overlap,
            missed=missed, only_changed=not every,
        )  # fmt: skip
        noted = audit.line(caller, "schedule.create", cron=plan.cron, catalogue=redact(plan.catalogue))
        made = schedules.add(kept.opened.engine, plan, kept.opened.settings, note=noted)
    except (ScheduleError, FireTimeError, CatalogueError, OptionError) as error:
        given = {"name": name, "cron": cron, "catalogue": catalogue, "time_zone": time_zone, "preset": preset,
                 "overlap": overlap.value}  # fmt: skip
        return render(request, caller, "schedules.html", _look(kept, given, redact(str(error))), status_code=422)
    return redirect("/schedules", f"{made.name} fires next at {moment(made.next_fire_at)}")


@router.post("/schedules/{name}/fire")
def fire(caller: Submitter, kept: Services, name: Name) -> Response:
    """Run it now."""
    return _ask(kept, caller, name, "fire", schedules.fire, "It fires in a moment")


@router.post("/schedules/{name}/pause")
def pause(caller: Admin, kept: Services, name: Name) -> Response:
    """Fire no more until it is resumed."""
    return _ask(kept, caller, name, "pause", schedules.pause, "Paused: it fires no more until it is enabled")


@router.post("/schedules/{name}/resume")
def resume(caller: Admin, kept: Services, name: Name) -> Response:
    """Fire again, from now on."""
    return _ask(kept, caller, name, "resume", schedules.resume, "Enabled: it fires again from now on")


@router.post("/schedules/{name}/remove")
def remove(caller: Admin, kept: Services, name: Name) -> Response:
    """Forget it; its batches stay."""
    return _ask(kept, caller, name, "remove", schedules.remove, "Removed; its batches stay")


def _ask(kept: Kept, caller: Caller, name: str, action: str, ask: Callable[..., Any], said: str) -> Response:
    try:
        ask(kept.opened.engine, name, note=audit.line(caller, f"schedule.{action}"))
    except NoSchedule as error:
        raise Problem(404, "not_found", str(error)) from error
    return redirect("/schedules", said)


def _look(kept: Kept, given: dict[str, str] | None = None, problem: str = "") -> Schedules:
    with reading(kept.opened.engine).connect() as connection:
        now_s = queries.read_clock(connection)
        found = queries.list_schedules(connection)
        runs = queries.list_runs(connection, limit=RUNS_SHOWN)
    return Schedules(
        now_s, tuple(_row(schedule, run, now_s) for schedule, run in found), tuple(map(_run, runs)), tuple(PRESETS),
        tuple((policy.value, told) for policy, told in POLICIES.items()),
        {"name": "", "cron": "0 2 * * *", "catalogue": "", "time_zone": "UTC", "preset": "flat-lay",
         "overlap": Overlap.SKIP.value, **(given or {})},
        problem,
    )  # fmt: skip


def _row(schedule: Schedule, last: Run | None, now_s: float) -> ScheduleRow:
    upcoming = (
        () if schedule.paused else tuple(islice(fire_times(schedule.cron, schedule.time_zone, now_s), NEXT_SHOWN))
    )
    what = schedule.asked.get("preset") or str(schedule.asked.get("prompt", "as the catalogue says"))[:80]
    return ScheduleRow(
        schedule.name, schedule.cron, schedule.time_zone, redact(schedule.catalogue),
        f"{what}, {'what changed' if schedule.only_changed else 'all of it'}", schedule.paused, upcoming,
        None if last is None else _run(last),
    )  # fmt: skip


def _run(run: Run) -> RunRow:
    told = redact(run.reason or "")
    if run.report is not None:
        parts = {"new": run.report.new, "changed": run.report.changed, "reused": run.report.reused,
                 "failed": run.report.failed, "cancelled": run.report.cancelled}  # fmt: skip
        told = ", ".join(f"{count:,} {name}" for name, count in parts.items() if count) or "nothing to do"
    elif run.missed:
        told = told or f"also for {plural(run.missed, 'fire time')} that were missed"
    state = {"started": "running", "ended": "completed"}.get(run.state.value, run.state.value)
    return RunRow(run.schedule, run.fire_at, state, run.batch_id, told, run.by_request)
