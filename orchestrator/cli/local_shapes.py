"""Rows of SQL in the words of the API, so that what is shown of them is the same wherever it was read.

Owns the translation. Pure; times lose their fractions, as the API's do.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from orchestrator.access.scopes import Scope
from orchestrator.client import shapes
from orchestrator.redaction import redact_cell
from orchestrator.state import queries
from orchestrator.state.queries import BatchCounts, Delivery, FailureGroup, Run, Schedule, Webhook
from orchestrator.state.transitions import BatchStatus


def as_batch(
    batch: queries.Batch,
    counts: BatchCounts,
    failures: Sequence[FailureGroup] | None = None,
    seconds: dict[str, float] | None = None,
) -> shapes.Batch:
    """A batch in the words of the API."""
    ended = {
        BatchStatus.COMPLETED: "completed_at",
        BatchStatus.CANCELLED: "cancelled_at",
        BatchStatus.FAILED: "failed_at",
    }
    times = {ended[batch.status]: _whole(batch.ended_at)} if batch.status in ended else {}
    return shapes.Batch(
        id=batch.id,
        status=batch.status,
        reason=batch.reason,
        request_counts=shapes.Counts(**vars(counts)),
        created_at=int(batch.created_at),
        in_progress_at=_whole(batch.started_at),
        expires_at=_whole(batch.deadline_at),
        priority=batch.priority,
        catalogue=redact_cell(batch.catalogue),
        options=dict(batch.options),
        metadata=dict(batch.metadata),
        checkpoint=batch.checkpoint,
        checkpoint_revision=batch.revision,
        numerics=batch.numerics,
        results=batch.results_uri,
        manifest=batch.manifest_uri,
        errors=None if failures is None else [shapes.Failure(f.code, f.count, f.message) for f in failures],
        stage_seconds=seconds,
        **times,
    )


def as_schedule(schedule: Schedule, last: Run | None, upcoming: Sequence[int] = ()) -> shapes.Schedule:
    """A schedule in the words of the API."""
    same = {name: value for name, value in vars(schedule).items() if name != "asked"}
    return shapes.Schedule(
        **{
            **same,
            "catalogue": redact_cell(schedule.catalogue),
            "options": dict(schedule.asked),
            "next_fire_at": _whole(schedule.next_fire_at),
            "created_at": int(schedule.created_at),
            "last_run": None if last is None else as_run(last),
            "next_fires": upcoming,
        }
    )


def as_run(run: Run) -> shapes.Run:
    """A run in the words of the API."""
    names = ("id", "schedule", "fire_at", "by_request", "missed", "state", "reason", "batch_id", "batch_status")
    return shapes.Run(
        **{name: getattr(run, name) for name in names},
        started_at=_whole(run.started_at),
        ended_at=_whole(run.ended_at),
        report=None if run.report is None else shapes.Report(**vars(run.report)),
    )


def as_delivery(delivery: Delivery, log: Sequence[shapes.Try] = (), body: str = "") -> shapes.Delivery:
    """A delivery in the words of the API."""
    names = ("id", "webhook_id", "message_id", "event", "state", "attempts", "status", "latency_s", "error")
    return shapes.Delivery(
        **{name: getattr(delivery, name) for name in names},
        created_at=int(delivery.created_at),
        next_at=_whole(delivery.next_at) if delivery.ended_at is None else None,
        ended_at=_whole(delivery.ended_at),
        body=body,
        log=log,
    )


def webhook_values(webhook: Webhook) -> dict[str, Any]:
    """The fields of a webhook in the words of the API."""
    times = {name: _whole(getattr(webhook, name)) for name in ("created_at", "rotated_at")}
    return {**vars(webhook), **times, "url": redact_cell(webhook.url)}


def key_values(key: queries.ApiKey) -> dict[str, Any]:
    """The fields of a key in the words of the API."""
    times = {name: _whole(getattr(key, name)) for name in ("created_at", "last_used_at", "revoked_at")}
    return {**asdict(key), **times, "scope": Scope(key.scope)}


def _whole(seconds: float | None) -> int | None:
    return None if seconds is None else int(seconds)
