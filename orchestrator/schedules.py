"""Schedules: which catalogue becomes a batch, when, and what is done when runs meet or were missed.

Owns what may be asked of schedules and how they read outside; a change is noted in its own transaction. Refuses to run
them: that is the scheduler's.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from sqlalchemy import Connection, Engine

from orchestrator.access.audit import Note, unnoted
from orchestrator.batches import new_batch_id
from orchestrator.catalogs import CatalogueError
from orchestrator.fire_times import check, next_fire
from orchestrator.recipes import read_deadline
from orchestrator.settings import Settings
from orchestrator.state import queries
from orchestrator.state.database import reading, storable
from orchestrator.state.queries import Run, Schedule
from orchestrator.state.transitions import Missed, Overlap
from orchestrator.storage import StorageError, open_store
from orchestrator.storage.locations import read_path

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"


class ScheduleError(ValueError):
    """This cannot be asked of a schedule; the message says why. Nothing was changed."""


class NameTaken(ScheduleError):
    """There is one of that name already."""


class NoSchedule(ScheduleError):
    """There is none of that name."""


@dataclass(frozen=True)
class Plan:
    """What a schedule is made of. `asked` holds option values already read; `results_uri` None: as settings say."""

    name: str
    cron: str
    catalogue: str
    time_zone: str = "UTC"
    asked: Mapping[str, Any] = field(default_factory=dict)
    results_uri: str | None = None
    priority: int = 0
    only_changed: bool = True
    overlap: Overlap = Overlap.SKIP
    missed: Missed = Missed.ONCE


def add(engine: Engine, plan: Plan, settings: Settings, *, note: Note = unnoted) -> Schedule:
    """Store a schedule; its next fire time is the first one from now on, by the database's clock.

    Raises NameTaken, ScheduleError, FireTimeError, CatalogueError.
    """
    if not re.fullmatch(NAME_PATTERN, plan.name):
        raise ScheduleError(
            f"{plan.name[:120]!r} is no name: letters, digits, dots and dashes, at most 100, as nightly"
        )
    values = asdict(plan) | {"catalogue": place_catalogue(plan.catalogue)}
    values["results_uri"] = plan.results_uri and place_results(plan.results_uri, settings)
    _check_asked(plan.asked)
    with engine.begin() as connection:
        now_s = queries.read_clock(connection)
        check(plan.cron, plan.time_zone, now_s)
        values["next_fire_at"] = next_fire(plan.cron, plan.time_zone, now_s)
        if not queries.add_schedule(connection, _as_columns(values)):
            raise NameTaken(f"there is a schedule {plan.name!r} already; remove it first, or choose another name")
        note(connection, plan.name)
        return _find(connection, plan.name)


def change(
    engine: Engine,
    name: str,
    values: Mapping[str, Any],
    settings: Settings,
    *,
    paused: bool | None = None,
    note: Note = unnoted,
) -> Schedule:
    """Change fields of a plan, all but the name, and pause or resume it. Whatever of it is new counts from now on.

    Raises NoSchedule, ScheduleError, FireTimeError, CatalogueError.
    """
    values = dict(values)
    if unknown := set(values) - (set(Plan.__dataclass_fields__) - {"name"}):
        raise ScheduleError(f"schedule {name!r}: {', '.join(sorted(unknown))} cannot be changed")
    if "catalogue" in values:
        values["catalogue"] = place_catalogue(values["catalogue"])
    if values.get("results_uri") is not None:
        values["results_uri"] = place_results(values["results_uri"], settings)
    _check_asked(values.get("asked", {}))
    with engine.begin() as connection:
        stands = _lock(connection, name)
        cron, zone = values.get("cron", stands.cron), values.get("time_zone", stands.time_zone)
        rests = stands.paused if paused is None else paused
        if (cron, zone, rests) != (stands.cron, stands.time_zone, stands.paused):
            now_s = queries.read_clock(connection)
            check(cron, zone, now_s)
            values |= {"paused": int(rests), "next_fire_at": None if rests else next_fire(cron, zone, now_s)}
        if values:
            queries.change_schedule(connection, name, _as_columns(values))
        note(connection, name)
        return _find(connection, name)


def pause(engine: Engine, name: str, *, note: Note = unnoted) -> Schedule:
    """Fire no more until it is resumed; a run that has begun goes on. Raises NoSchedule."""
    with engine.begin() as connection:
        _lock(connection, name)
        queries.change_schedule(connection, name, {"paused": 1, "next_fire_at": None})
        note(connection, name)
        return _find(connection, name)


def resume(engine: Engine, name: str, *, note: Note = unnoted) -> Schedule:
    """Fire again from now on; what was due meanwhile was not missed, and stays undone. Raises NoSchedule."""
    with engine.begin() as connection:
        stands = _lock(connection, name)
        if stands.paused:
            next_at = next_fire(stands.cron, stands.time_zone, queries.read_clock(connection))
            queries.change_schedule(connection, name, {"paused": 0, "next_fire_at": next_at})
        note(connection, name)
        return _find(connection, name)


def remove(engine: Engine, name: str, *, note: Note = unnoted) -> None:
    """Forget a schedule and its runs; their batches stay, and go on. Raises NoSchedule."""
    with engine.begin() as connection:
        if not queries.remove_schedule(connection, name):
            raise _unknown(name)
        note(connection, name)


def fire(engine: Engine, name: str, *, note: Note = unnoted) -> Run:
    """Ask for a run now, also of a paused schedule; its overlap policy holds. A scheduler begins it in a moment.

    Raises NoSchedule.
    """
    with engine.begin() as connection:
        _lock(connection, name)
        run_id = None
        while run_id is None:  # two within one tick of the clock
            at_s = queries.read_clock(connection)
            run_id = queries.add_run(connection, name, at_s, new_batch_id(), by_request=True)
        run = queries.read_run(connection, run_id)
        assert run is not None
        note(connection, name, run=run_id)
        return run


def find(engine: Engine, name: str) -> Schedule:
    """One schedule. Raises NoSchedule."""
    with reading(engine).connect() as connection:
        return _find(connection, name)


def place_catalogue(uri: str) -> str:
    """The catalogue's absolute location: it is opened by another process, in another folder. Raises CatalogueError."""
    if not uri.strip() or storable(uri) != uri:
        raise CatalogueError(f"{uri[:200]!r} is no location: expected a path or s3://bucket/key in UTF-8")
    if uri.startswith("s3://"):
        return uri
    try:
        return str(read_path(uri))
    except StorageError as error:
        raise CatalogueError(str(error)) from error


def place_results(uri: str, settings: Settings) -> str:
    """The absolute location of results. Raises ScheduleError."""
    try:
        return open_store(uri, settings).uri
    except StorageError as error:
        raise ScheduleError(str(error)) from error


def _check_asked(asked: Mapping[str, Any]) -> None:
    if "only_changed" in asked:
        raise ScheduleError("only_changed is a field of the schedule itself, on the command line --all")
    if "deadline" in asked and not read_deadline(asked["deadline"]).relative:
        raise ScheduleError(
            f"deadline {asked['deadline']!r} is one moment, and a schedule fires for ever: give a duration, as 8h"
        )


def _as_columns(values: Mapping[str, Any]) -> dict[str, Any]:
    columns = dict(values)
    if "asked" in columns:
        columns["asked"] = json.dumps(dict(columns["asked"]), sort_keys=True)
    if "only_changed" in columns:
        columns["only_changed"] = int(columns["only_changed"])
    return columns


def _lock(connection: Connection, name: str) -> Schedule:
    """The schedule, locked against schedulers. Raises NoSchedule."""
    found = queries.lock_schedule(connection, name, wait=True)
    if found is None:
        raise _unknown(name)
    return found


def _find(connection: Connection, name: str) -> Schedule:
    found = queries.read_schedule(connection, name)
    if found is None:
        raise _unknown(name)
    return found


def _unknown(name: str) -> NoSchedule:
    return NoSchedule(f"there is no schedule {name[:120]!r}; see: kontext schedule list")
