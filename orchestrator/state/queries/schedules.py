"""Schedules, statement by statement: what fires when."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from sqlalchemy import (
    Connection,
    RowMapping,
    delete,
    select,
    update,
)

from orchestrator.state.database import insert_new, now
from orchestrator.state.queries.runs import Run, list_last_runs
from orchestrator.state.tables import schedules
from orchestrator.state.transitions import Missed, Overlap


@dataclass(frozen=True)
class Schedule:
    """A catalogue that becomes a batch again and again. `asked` holds option values already read."""

    name: str
    cron: str
    time_zone: str
    catalogue: str
    asked: Mapping[str, Any]
    results_uri: str | None
    priority: int
    only_changed: bool
    overlap: Overlap
    missed: Missed
    paused: bool
    next_fire_at: float | None
    created_at: float


def add_schedule(connection: Connection, schedule: Mapping[str, Any]) -> bool:
    """Store a new schedule; `asked` is given as JSON. False when the name is taken."""
    statement = insert_new(connection, schedules).values(created_at=now(), **schedule)
    return connection.execute(statement.returning(schedules.c.name)).first() is not None


def read_schedule(connection: Connection, name: str) -> Schedule | None:
    """One schedule, or None."""
    row = connection.execute(select(schedules).where(schedules.c.name == name)).mappings().one_or_none()
    return None if row is None else _schedule(row)


def list_schedules(connection: Connection) -> list[tuple[Schedule, Run | None]]:
    """All schedules by name, each with its last run."""
    found = [_schedule(row) for row in connection.execute(select(schedules).order_by(schedules.c.name)).mappings()]
    runs = list_last_runs(connection)
    return [(schedule, runs.get(schedule.name)) for schedule in found]


def due_schedules(connection: Connection) -> list[str]:
    """Names of the schedules whose next fire time has come."""
    statement = select(schedules.c.name).where(schedules.c.next_fire_at <= now(), schedules.c.paused == 0)
    return list(connection.execute(statement.order_by(schedules.c.next_fire_at)).scalars())


def lock_schedule(connection: Connection, name: str, *, wait: bool = False) -> Schedule | None:
    """One schedule, for this transaction alone; None when it is gone or, unless we `wait`, somebody else is at it."""
    statement = select(schedules).where(schedules.c.name == name).with_for_update(skip_locked=not wait)
    row = connection.execute(statement).mappings().one_or_none()
    return None if row is None else _schedule(row)


def change_schedule(connection: Connection, name: str, values: Mapping[str, Any]) -> bool:
    """Set columns of a schedule; `asked` is given as JSON. False when there is none of that name."""
    return connection.execute(update(schedules).where(schedules.c.name == name).values(**values)).rowcount == 1


def remove_schedule(connection: Connection, name: str) -> bool:
    """Forget a schedule and its runs; their batches stay. False when there is none of that name."""
    return connection.execute(delete(schedules).where(schedules.c.name == name)).rowcount == 1


def _schedule(row: RowMapping) -> Schedule:
    values = {field.name: row[field.name] for field in fields(Schedule)}
    values |= {
        "asked": json.loads(row["asked"]),
        "only_changed": bool(row["only_changed"]),
        "overlap": Overlap(row["overlap"]),
        "missed": Missed(row["missed"]),
        "paused": bool(row["paused"]),
    }
    return Schedule(**values)
