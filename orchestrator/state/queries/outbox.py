"""The outbox, statement by statement: messages for webhooks, written in the transaction of the change they tell of.

Owns what a message says. Asks first whether anybody listens: with no webhook for an event, telling it costs one look at
a small table. Refuses to send, that is the deliverer's, and to tell of more failed jobs of a batch than somebody reads.
"""

import json
import secrets
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, RowMapping, func, insert, select

from orchestrator.state.clock import show_time
from orchestrator.state.database import now, take_turn
from orchestrator.state.tables import OF_BATCH, batches, deliveries, jobs, schedule_runs, webhooks
from orchestrator.state.transitions import BatchStatus, DeliveryState, Event, JobState

TEST_EVENT = "webhook.test"
JOBS_TOLD = 1_000
"""So many failed jobs of a batch a webhook is told one by one, since it was made, resumed or retried. One message more
says that there are others."""
MORE = "more_failed"


def find_listeners(connection: Connection, event: Event) -> list[str]:
    """Ids of the webhooks that want to hear of an event."""
    rows = connection.execute(select(webhooks.c.id, webhooks.c.events))
    return [row.id for row in rows if event in json.loads(row.events)]


def tell(
    connection: Connection,
    event: str,
    listeners: Sequence[str],
    told: Sequence[Mapping[str, Any]],
    batch_id: str | None = None,
) -> list[str]:
    """Put a message for each of `told` into the outbox, for each listener; gives the messages' ids.

    With `batch_id` they count among those that a batch is told by.
    """
    if not listeners or not told:
        return []
    at_s = connection.execute(select(now())).scalar_one()
    ids, rows = [f"msg_{secrets.token_urlsafe(18)}" for _ in told], []
    for message_id, data in zip(ids, told, strict=True):
        body = json.dumps({"type": event, "timestamp": show_time(at_s), "data": data}, ensure_ascii=False)
        rows += [{"webhook_id": listener, "message_id": message_id, "body": body} for listener in listeners]
    times = {"created_at": at_s, "since": at_s, "next_at": at_s}
    common: dict[str, Any] = {"event": event, "state": DeliveryState.PENDING, "batch_id": batch_id, **times}
    connection.execute(insert(deliveries), [row | common for row in rows])
    return ids


def tell_of_batch(connection: Connection, event: Event, batch_id: str) -> None:
    """Tell how a batch stands, with its counts."""
    if not (listeners := find_listeners(connection, event)):
        return
    batch = connection.execute(select(batches).where(batches.c.id == batch_id)).mappings().one()
    counts = _count_jobs(connection, batch)
    schedule = select(schedule_runs.c.schedule).where(schedule_runs.c.batch_id == batch_id)
    ended = batch["status"] in (BatchStatus.COMPLETED, BatchStatus.CANCELLED)
    data = {
        "batch": batch_id,
        "status": batch["status"],
        "reason": batch["reason"],
        "schedule": connection.execute(schedule).scalar_one_or_none(),
        "request_counts": {"total": sum(counts.values())} | {state.value: counts.get(state, 0) for state in JobState},
        "results": batch["results_uri"],
        "manifest": f"{batch['results_uri']}/manifest.jsonl" if ended else None,
        **{name: show_time(batch[name]) for name in ("created_at", "started_at", "ended_at")},
    }
    tell(connection, event, listeners, [data])


def _count_jobs(connection: Connection, batch: RowMapping) -> dict[str, int]:
    """Jobs by state; those of an ended batch are counted already."""
    if batch["ended_counts"]:
        return {state.value: json.loads(batch["ended_counts"])[state] for state in JobState}
    statement = select(jobs.c.state, func.count()).where(jobs.c.batch_id == batch["id"]).group_by(jobs.c.state)
    return dict(connection.execute(statement).all())


def tell_of_failed_jobs(connection: Connection, *which: ColumnElement[bool]) -> None:
    """Tell of those jobs that have just failed; of a batch with very many, of the first."""
    if not (listeners := find_listeners(connection, Event.JOB_FAILED)):
        return
    failed = (jobs.c.state == JobState.FAILED, *which)
    # In an order, so that nobody waits for one who waits for them.
    for batch_id in sorted(connection.execute(select(jobs.c.batch_id).where(*failed).distinct()).scalars()):
        if _find_rooms(connection, batch_id, listeners):
            # Nobody else tells of them meanwhile, and what others told counts.
            take_turn(connection, f"tell of failed jobs of {batch_id}")
            for room, those in _find_rooms(connection, batch_id, listeners).items():
                _tell_of_failed(connection, those, batch_id, failed, room)


def _tell_of_failed(
    connection: Connection, listeners: Sequence[str], batch_id: str, failed: Sequence[ColumnElement[bool]], room: int
) -> None:
    names = ("custom_id", "line", "take", "attempt", "code", "message")
    columns = [jobs.c.id.label("job"), jobs.c.batch_id.label("batch"), *(jobs.c[name] for name in names)]
    statement = select(*columns).where(jobs.c.batch_id == batch_id, *failed).order_by(jobs.c.id).limit(room + 1)
    data = [dict(row) for row in connection.execute(statement).mappings()]
    if len(data) > room:
        listed = f"GET /v1/batches/{batch_id}/jobs?state=failed"
        message = (
            f"{JOBS_TOLD:,} failed jobs of this batch were told; further ones are not, they are listed by {listed}"
        )
        data[room] = dict.fromkeys(data[room]) | {"batch": batch_id, "code": MORE, "message": message}
    tell(connection, Event.JOB_FAILED, listeners, data, batch_id)


def _find_rooms(connection: Connection, batch_id: str, listeners: Sequence[str]) -> dict[int, list[str]]:
    """Listeners by how many more failed jobs of a batch they are told of; without those that know of others."""
    since = select(func.coalesce(batches.c.resumed_at, 0.0)).where(batches.c.id == batch_id).scalar_subquery()
    rooms = defaultdict(list)
    for listener in listeners:
        some = (
            select(deliveries.c.id)
            .where(
                deliveries.c.batch_id == batch_id, OF_BATCH, deliveries.c.webhook_id == listener,
                deliveries.c.created_at >= since,
            )
            .limit(JOBS_TOLD + 1)
            .subquery()
        )  # fmt: skip
        rooms[JOBS_TOLD - connection.execute(select(func.count()).select_from(some)).scalar_one()].append(listener)
    return {room: those for room, those in rooms.items() if room >= 0}


def tell_of_bad_rows(connection: Connection, batch_id: str, first_line: int, last_line: int) -> None:
    """Tell of the rows of these lines that were refused as they were read."""
    tell_of_failed_jobs(connection, jobs.c.batch_id == batch_id, jobs.c.line.between(first_line, last_line))


def tell_of_run(connection: Connection, run_id: int) -> None:
    """Tell that a schedule fired, and what came of it: a batch, a skipped run, or one that failed.

    A run that failed without a batch is told as a batch that failed, too.
    """
    fired = find_listeners(connection, Event.SCHEDULE_FIRED)
    failed = find_listeners(connection, Event.BATCH_FAILED)
    if not fired and not failed:
        return
    runs = schedule_runs.c
    statement = select(schedule_runs, batches.c.id.label("made")).outerjoin(batches, batches.c.id == runs.batch_id)
    run = connection.execute(statement.where(runs.id == run_id)).mappings().one()
    data = {
        "schedule": run["schedule"],
        "run": run["id"],
        "fire_at": show_time(run["fire_at"]),
        "by_request": bool(run["by_request"]),
        "missed": run["missed"],
        "state": run["state"],
        "reason": run["reason"],
        "batch": run["made"],
    }
    tell(connection, Event.SCHEDULE_FIRED, fired, [data])
    if run["state"] == "failed" and run["made"] is None:
        tell(connection, Event.BATCH_FAILED, failed, [{**data, "status": BatchStatus.FAILED}])
