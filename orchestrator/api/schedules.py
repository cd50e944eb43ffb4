"""Schedules: list, make, look, change, remove, run now; and the runs they had.

Owns the routes. What a schedule may be is `orchestrator.schedules`'; a dispatcher runs them.
"""

from itertools import islice
from typing import Annotated, Any, Literal

from fastapi import Path, Response
from pydantic import BaseModel, Field

from orchestrator import schedules, submission
from orchestrator.api import audit
from orchestrator.api.access import Admin, Reader, Submitter, open_router
from orchestrator.api.batches import Limit
from orchestrator.api.cursors import After, read_cursor, write_cursor
from orchestrator.api.problems import Problem
from orchestrator.api.resources import Open, Resources
from orchestrator.api.shapes import Page
from orchestrator.fire_times import fire_times
from orchestrator.recipes import PER_BATCH
from orchestrator.schedules import Plan
from orchestrator.state import queries
from orchestrator.state.database import reading
from orchestrator.state.queries import Schedule
from orchestrator.state.transitions import BatchStatus, Missed, Overlap, RunState
from orchestrator.telling import run_values, schedule_values

NEXT_TOLD = 5
router = open_router(prefix="/v1/schedules", tags=["schedules"])
Name = Annotated[str, Path(pattern=schedules.NAME_PATTERN, examples=["nightly"])]
Options = dict[str, str | int | float | None]


class Settable(BaseModel):
    """What makers and changers of a schedule may say."""

    model_config = {"extra": "forbid"}
    cron: str = Field(max_length=200, examples=["0 2 * * *"])
    time_zone: str = Field("UTC", max_length=100, examples=["Asia/Shanghai"])
    catalogue: str = Field(min_length=1, max_length=2000, examples=["s3://shop/catalogue.csv"])
    options: Options = Field(
        default={},
        max_length=50,
        description="what is asked of its batches: preset or prompt, and any option; deadline (a duration) and "
        "max_error_rate too",
        examples=[{"preset": "flat-lay", "steps": 8, "deadline": "6h"}],
    )
    results_uri: str | None = Field(
        None, max_length=2000, description="unset: as the dispatcher's settings say", examples=["s3://shop-results"]
    )
    priority: int = Field(0, ge=-100, le=100)
    only_changed: bool = Field(True, description="false: nothing is reused, every picture is made anew")
    overlap: Overlap = Overlap.SKIP
    missed: Missed = Missed.ONCE


class NewSchedule(Settable):
    """A schedule to be made."""

    name: str = Field(pattern=schedules.NAME_PATTERN, examples=["nightly"])


class ScheduleChange(BaseModel):
    """What to change; what is not named stays. `options` replaces all that was asked before."""

    model_config = {"extra": "forbid"}
    paused: bool | None = None
    cron: str | None = Field(None, max_length=200, examples=["30 1 * * *"])
    time_zone: str | None = Field(None, max_length=100)
    catalogue: str | None = Field(None, min_length=1, max_length=2000)
    options: Options | None = Field(None, max_length=50)
    results_uri: str | None = Field(None, max_length=2000, description="null: as the dispatcher's settings say")
    priority: int | None = Field(None, ge=-100, le=100)
    only_changed: bool | None = None
    overlap: Overlap | None = None
    missed: Missed | None = None


class ReportShape(BaseModel):
    """What became of a run's jobs; the five sum to `total`."""

    total: int = Field(examples=[1200])
    new: int = Field(description="made, and not in the run before", examples=[12])
    changed: int = Field(description="in the run before, and made anew", examples=[3])
    reused: int = Field(examples=[1184])
    failed: int = Field(examples=[1])
    cancelled: int = Field(examples=[0])


class RunShape(BaseModel):
    """One firing of a schedule."""

    id: int
    object: Literal["run"] = "run"
    schedule: str = Field(examples=["nightly"])
    fire_at: float = Field(description="when it was due", examples=[1_795_629_600.0])
    by_request: bool
    missed: int = Field(description="earlier fire times that it stands for")
    state: RunState
    reason: str | None = Field(description="why it was skipped, failed, waits, or is tried again")
    batch_id: str | None = Field(examples=["20261125-1f2e3d4c"])
    batch_status: BatchStatus | None
    created_at: int
    started_at: int | None
    ended_at: int | None
    report: ReportShape | None = Field(description="once its batch has ended")


class ScheduleShape(BaseModel):
    """A catalogue that becomes a batch again and again."""

    name: str = Field(examples=["nightly"])
    object: Literal["schedule"] = "schedule"
    cron: str = Field(examples=["0 2 * * *"])
    time_zone: str = Field(examples=["Asia/Shanghai"])
    catalogue: str
    options: dict[str, Any]
    results_uri: str | None
    priority: int
    only_changed: bool
    overlap: Overlap
    missed: Missed
    paused: bool
    next_fire_at: int | None
    created_at: int
    last_run: RunShape | None = None


class ScheduleDetail(ScheduleShape):
    """One schedule, with the times to come."""

    next_fires: list[int]


@router.get("", response_model=Page[ScheduleShape])
def list_schedules(_: Reader, opened: Open) -> Page[ScheduleShape]:
    """All schedules by name, each with its last run."""
    with reading(opened.engine).connect() as connection:
        found = queries.list_schedules(connection)
    return Page(data=[ScheduleShape(**schedule_values(schedule, last)) for schedule, last in found], has_more=False)


@router.post("", response_model=ScheduleDetail, status_code=201)
def add_schedule(caller: Admin, opened: Open, asked: NewSchedule, response: Response) -> ScheduleDetail:
    """Make a schedule; it fires first at the next time from now."""
    given = asked.model_dump(exclude={"options"})
    plan = Plan(asked=_read_options(opened, asked.options), **given)
    noted = audit.line(caller, "schedule.create", **asked.model_dump(mode="json", exclude={"name"}))
    made = schedules.add(opened.engine, plan, opened.settings, note=noted)
    response.headers["location"] = f"/v1/schedules/{made.name}"
    return _detail(opened, made)


@router.get("/{name}", response_model=ScheduleDetail)
def get_schedule(_: Reader, opened: Open, name: Name) -> ScheduleDetail:
    """One schedule, its last run and its next fire times."""
    return _detail(opened, schedules.find(opened.engine, name))


@router.patch("/{name}", response_model=ScheduleDetail)
def change_schedule(caller: Admin, opened: Open, name: Name, change: ScheduleChange) -> ScheduleDetail:
    """Change a schedule, pause or resume it. A new cron expression or time zone counts from now on."""
    named = change.model_dump(exclude_unset=True)
    values = {key: value for key, value in named.items() if value is not None or key == "results_uri"}
    paused, options = values.pop("paused", None), values.pop("options", None)
    if options is not None:
        values["asked"] = _read_options(opened, options)
    noted = audit.line(caller, "schedule.change", **change.model_dump(mode="json", exclude_unset=True))
    return _detail(opened, schedules.change(opened.engine, name, values, opened.settings, paused=paused, note=noted))


@router.delete("/{name}", status_code=204, response_class=Response)
def remove_schedule(caller: Admin, opened: Open, name: Name) -> Response:
    """Forget a schedule and its runs; their batches stay."""
    schedules.remove(opened.engine, name, note=audit.line(caller, "schedule.remove"))
    return Response(status_code=204)


@router.post("/{name}/fire", response_model=RunShape, status_code=202)
def fire_schedule(caller: Submitter, opened: Open, name: Name) -> RunShape:
    """Run a schedule now, also a paused one; its overlap policy holds. A dispatcher begins it in a moment."""
    return RunShape(**run_values(schedules.fire(opened.engine, name, note=audit.line(caller, "schedule.fire"))))


@router.get("/{name}/runs", response_model=Page[RunShape])
def list_runs(
    _: Reader,
    opened: Open,
    name: Name,
    limit: Limit = 20,
    after: After = None,
) -> Page[RunShape]:
    """The runs of a schedule, the latest first, in pages."""
    key = read_cursor(after, float, int)
    if key is not None and not 0 <= key[1] < 2**53:
        raise Problem(422, "bad_cursor", "after: this cursor is of no page")
    schedules.find(opened.engine, name)
    with reading(opened.engine).connect() as connection:
        found = queries.list_runs(connection, name, limit=limit + 1, before=key and (key[0], key[1]))
    page, more = found[:limit], len(found) > limit
    return Page(
        data=[RunShape(**run_values(run)) for run in page],
        has_more=more,
        next=write_cursor(page[-1].fire_at, page[-1].id) if more else None,
    )


def _read_options(opened: Resources, options: Options) -> dict[str, Any]:
    """What is asked, read; a LoRA as the place it has now, whose content each run pins anew. Raises OptionError."""
    asked = submission.read_asked(options)
    if "lora" in asked:
        pinned = submission.make_request(opened.settings, {n: v for n, v in asked.items() if n not in PER_BATCH})
        asked["lora"] = pinned.asked["lora"]
    return asked


def _detail(opened: Resources, schedule: Schedule) -> ScheduleDetail:
    with reading(opened.engine).connect() as connection:
        now_s = queries.read_clock(connection)
        runs = queries.list_runs(connection, schedule.name, limit=1)
    times = [] if schedule.paused else fire_times(schedule.cron, schedule.time_zone, now_s)
    upcoming = [int(at_s) for at_s in islice(times, NEXT_TOLD)]
    return ScheduleDetail(**schedule_values(schedule, runs[0] if runs else None), next_fires=upcoming)
