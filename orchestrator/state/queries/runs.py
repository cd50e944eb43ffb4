"""Runs of schedules, statement by statement.

The unique key (schedule, fire_at) decides who fires; a lease says who makes the batch. A write about a run names the
state it is in and, while its batch is made, the scheduler that holds it: one that was overtaken changes no row.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from sqlalchemy import Connection, Double, RowMapping, Select, and_, func, literal, or_, select, tuple_, update

from orchestrator.state.database import insert_new, now, tellable
from orchestrator.state.queries.outbox import tell_of_run
from orchestrator.state.tables import OPEN_RUN, batches, schedule_runs, schedules
from orchestrator.state.transitions import BatchStatus, RunState


@dataclass(frozen=True)
class Report:
    """What became of a run's jobs; new + changed + reused + failed + cancelled = total.

    New ones were not in the run before; changed ones were, and were made again all the same.
    """

    total: int
    new: int
    changed: int
    reused: int
    failed: int
    cancelled: int


@dataclass(frozen=True)
class Run:
    """One firing of a schedule. `batch_id` is None until its batch is made; `report` until that has ended.

    `reserved_id` is the id that its batch has or will have. Times are in seconds since the epoch.
    """

    id: int
    schedule: str
    fire_at: float
    by_request: bool
    missed: int
    state: RunState
    reason: str | None
    reserved_id: str
    tries: int
    created_at: float
    started_at: float | None
    ended_at: float | None
    batch_id: str | None
    batch_status: BatchStatus | None
    batch_ended_at: float | None
    report: Report | None


def add_run(
    connection: Connection, schedule: str, fire_at: float, batch_id: str, *, by_request: bool = False, missed: int = 0
) -> int | None:
    """Note that a schedule fires; None when this fire time was noted before, by whomever."""
    statement = (
        insert_new(connection, schedule_runs)
        .values(
            schedule=schedule, fire_at=fire_at, batch_id=batch_id, by_request=int(by_request), missed=missed,
            state=RunState.DUE, created_at=now(),
        )
        .returning(schedule_runs.c.id)
    )  # fmt: skip
    run_id: int | None = connection.execute(statement).scalar_one_or_none()
    return run_id


def read_run(connection: Connection, run_id: int) -> Run | None:
    """One run, or None."""
    row = connection.execute(_select_runs().where(schedule_runs.c.id == run_id)).mappings().one_or_none()
    return None if row is None else _run(row)


def list_runs(
    connection: Connection, schedule: str | None = None, *, limit: int, before: tuple[float, int] | None = None
) -> list[Run]:
    """Runs of a schedule, or of all, the latest first; `before` is (fire_at, id) of the last one of the page before."""
    statement = _select_runs().order_by(schedule_runs.c.fire_at.desc(), schedule_runs.c.id.desc()).limit(limit)
    if schedule is not None:
        statement = statement.where(schedule_runs.c.schedule == schedule)
    if before is not None:
        statement = statement.where(tuple_(schedule_runs.c.fire_at, schedule_runs.c.id) < before)
    return [_run(row) for row in connection.execute(statement).mappings()]


def list_last_runs(connection: Connection) -> Mapping[str, Run]:
    """The last run of each schedule that has fired, by the schedule's name."""
    later = schedule_runs.alias("later")
    last = (
        select(later.c.id)
        .where(later.c.schedule == schedules.c.name)
        .order_by(later.c.fire_at.desc())
        .limit(1)
        .scalar_subquery()
    )
    ids = select(last.label("id")).select_from(schedules).subquery()
    rows = connection.execute(_select_runs().where(schedule_runs.c.id.in_(select(ids.c.id)))).mappings()
    return {row["schedule"]: _run(row) for row in rows}


def open_runs(connection: Connection) -> list[Run]:
    """Runs that somebody may have to see to, in the order they fired: those without a batch whose lease, if any, is
    over, and those whose batch has ended."""
    runs = schedule_runs.c
    statement = _select_runs().where(
        OPEN_RUN,
        or_(
            runs.state.in_((RunState.DUE, RunState.WAITING)),
            and_(runs.state == RunState.STARTING, runs.lease_until <= now()),
            and_(runs.state == RunState.STARTED, or_(batches.c.id.is_(None), batches.c.ended_at.is_not(None))),
        ),
    )
    return [_run(row) for row in connection.execute(statement.order_by(runs.fire_at, runs.id)).mappings()]


def find_blocking_run(connection: Connection, run: Run) -> Run | None:
    """The run of the same schedule that this one must not overlap: its batch is being made or has not ended."""
    runs = schedule_runs.c
    statement = _select_runs().where(
        OPEN_RUN,
        runs.schedule == run.schedule,
        runs.id != run.id,
        or_(
            runs.state == RunState.STARTING,
            and_(runs.state == RunState.STARTED, batches.c.id.is_not(None), batches.c.ended_at.is_(None)),
        ),
    )
    row = connection.execute(statement.order_by(runs.fire_at).limit(1)).mappings().one_or_none()
    return None if row is None else _run(row)


def count_before(connection: Connection, run: Run) -> int:
    """Runs of the same schedule that were due earlier and wait."""
    runs = schedule_runs.c
    statement = select(func.count()).where(
        OPEN_RUN,
        runs.schedule == run.schedule,
        runs.state.in_((RunState.DUE, RunState.WAITING)),
        tuple_(runs.fire_at, runs.id) < (run.fire_at, run.id),
    )
    return connection.execute(statement).scalar_one()


def hold_run(connection: Connection, run_id: int, reason: str) -> bool:
    """Let a due run wait for the one before it."""
    statement = update(schedule_runs).where(schedule_runs.c.id == run_id, schedule_runs.c.state == RunState.DUE)
    return connection.execute(statement.values(state=RunState.WAITING, reason=reason)).rowcount == 1


def skip_run(connection: Connection, run_id: int, reason: str) -> bool:
    """Skip a run that has not begun."""
    statement = (
        update(schedule_runs)
        .where(schedule_runs.c.id == run_id, schedule_runs.c.state.in_((RunState.DUE, RunState.WAITING)))
        .values(state=RunState.SKIPPED, reason=reason, ended_at=now())
    )
    return _told(connection, run_id, connection.execute(statement).rowcount == 1)


def claim_run(connection: Connection, run_id: int, claimed_by: str, lease_s: float) -> bool:
    """Take a run to make its batch; False when another scheduler has it."""
    runs = schedule_runs.c
    free = or_(
        runs.state.in_((RunState.DUE, RunState.WAITING)),
        and_(runs.state == RunState.STARTING, runs.lease_until <= now()),
    )
    statement = (
        update(schedule_runs)
        .where(runs.id == run_id, free)
        .values(
            state=RunState.STARTING, claimed_by=claimed_by, lease_until=now() + literal(lease_s, Double),
            tries=runs.tries + 1, reason=None,
        )
    )  # fmt: skip
    return connection.execute(statement).rowcount == 1


def renew_runs(connection: Connection, run_ids: Sequence[int], claimed_by: str, lease_s: float) -> None:
    """Go on holding runs."""
    statement = update(schedule_runs).where(schedule_runs.c.id.in_(run_ids), _held_by(claimed_by))
    connection.execute(statement.values(lease_until=now() + literal(lease_s, Double)))


def release_run(
    connection: Connection, run_id: int, claimed_by: str, reason: str, delay_s: float, *, counted: bool = True
) -> bool:
    """Give a run back: any scheduler may try again after so many seconds. `counted`: this was one of its tries."""
    statement = (
        update(schedule_runs)
        .where(schedule_runs.c.id == run_id, _held_by(claimed_by))
        .values(
            claimed_by=None, lease_until=now() + literal(delay_s, Double), reason=tellable(reason),
            tries=schedule_runs.c.tries - (0 if counted else 1),
        )
    )  # fmt: skip
    return connection.execute(statement).rowcount == 1


def start_run(connection: Connection, run_id: int) -> bool:
    """Note that a run's batch is made, whoever made it."""
    statement = (
        update(schedule_runs)
        .where(schedule_runs.c.id == run_id, schedule_runs.c.state == RunState.STARTING)
        .values(state=RunState.STARTED, started_at=now(), claimed_by=None, lease_until=None, reason=None)
    )
    return _told(connection, run_id, connection.execute(statement).rowcount == 1)


def fail_run(connection: Connection, run_id: int, claimed_by: str, reason: str) -> bool:
    """End a run of which no whole batch can be made."""
    statement = (
        update(schedule_runs)
        .where(schedule_runs.c.id == run_id, _held_by(claimed_by))
        .values(
            state=RunState.FAILED, reason=tellable(reason), ended_at=now(), claimed_by=None, lease_until=None,
        )
    )  # fmt: skip
    return _told(connection, run_id, connection.execute(statement).rowcount == 1)


def end_run(connection: Connection, run: Run, report: Report | None) -> bool:
    """End a run whose batch has ended; without a report where that batch is gone.

    False when the batch was reopened since `run` was read: it is reported when it ends again.
    """
    counts = {f"{field.name}_jobs": getattr(report, field.name) for field in fields(Report)} if report else {}
    others = select(batches.c.id).where(
        batches.c.id == run.reserved_id,
        or_(batches.c.ended_at.is_(None), batches.c.ended_at != literal(run.batch_ended_at, Double)),
    )
    failed = run.batch_status == BatchStatus.FAILED
    statement = (
        update(schedule_runs)
        .where(schedule_runs.c.id == run.id, schedule_runs.c.state == RunState.STARTED, ~others.exists())
        .values(
            state=RunState.FAILED if failed else RunState.ENDED,
            ended_at=now() if run.batch_ended_at is None else run.batch_ended_at,
            reason=None if report else "its batch was deleted",
            **counts,
        )
    )
    return connection.execute(statement).rowcount == 1


def reopen_runs(connection: Connection, batch_id: str) -> None:
    """Take back the report of a batch that runs again."""
    statement = (
        update(schedule_runs)
        .where(schedule_runs.c.batch_id == batch_id, schedule_runs.c.state == RunState.ENDED)
        .values(
            state=RunState.STARTED, ended_at=None, **{f"{field.name}_jobs": None for field in fields(Report)}
        )
    )  # fmt: skip
    connection.execute(statement)


def _told(connection: Connection, run_id: int, moved: bool) -> bool:
    """Tell webhooks what came of a run, once it is settled."""
    if moved:
        tell_of_run(connection, run_id)
    return moved


def _held_by(claimed_by: str) -> Any:
    return and_(schedule_runs.c.state == RunState.STARTING, schedule_runs.c.claimed_by == claimed_by)


def _select_runs() -> Select[Any]:
    columns = [column for column in schedule_runs.c if column.name != "batch_id"]
    return select(
        *columns,
        schedule_runs.c.batch_id.label("reserved_id"),
        batches.c.id.label("batch_id"),
        batches.c.status.label("batch_status"),
        batches.c.ended_at.label("batch_ended_at"),
    ).outerjoin(batches, batches.c.id == schedule_runs.c.batch_id)


def _run(row: RowMapping) -> Run:
    counted = row["total_jobs"] is not None
    values = {field.name: row[field.name] for field in fields(Run) if field.name != "report"}
    values |= {
        "by_request": bool(row["by_request"]),
        "state": RunState(row["state"]),
        "batch_status": row["batch_status"] and BatchStatus(row["batch_status"]),
        "report": Report(**{field.name: row[f"{field.name}_jobs"] for field in fields(Report)}) if counted else None,
    }
    return Run(**values)
