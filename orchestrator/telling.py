"""Rows of SQL in the words of the API: by the names that its shapes have, and those of the client.

Owns the one translation that the API and the commands on this machine share, so that a thing is told alike wherever it
was read. Pure. Times lose their fractions; what may hold a secret is redacted.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.redaction import redact_cell
from orchestrator.state.queries import ApiKey, Batch, BatchCounts, Delivery, FailureGroup, Run, Schedule, Webhook
from orchestrator.state.transitions import BatchStatus

ENDED_AT: Mapping[BatchStatus, str] = {
    BatchStatus.COMPLETED: "completed_at",
    BatchStatus.CANCELLED: "cancelled_at",
    BatchStatus.FAILED: "failed_at",
}
"""What the end of a batch is called, by how it ended."""


def batch_values(
    batch: Batch,
    counts: BatchCounts,
    failures: Sequence[FailureGroup] | None = None,
    stage_seconds: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """How a batch is told."""
    names = ("id", "status", "reason", "priority", "checkpoint", "numerics")
    ended = {ENDED_AT[batch.status]: whole(batch.ended_at)} if batch.status in ENDED_AT else {}
    return {
        **{name: getattr(batch, name) for name in names},
        "request_counts": counts_values(counts),
        "created_at": whole(batch.created_at),
        "in_progress_at": whole(batch.started_at),
        "expires_at": whole(batch.deadline_at),
        "catalogue": redact_cell(batch.catalogue),
        "options": dict(batch.options),
        "metadata": dict(batch.metadata),
        "checkpoint_revision": batch.revision,
        "results": batch.results_uri,
        "manifest": batch.manifest_uri,
        "errors": None if failures is None else [vars(group) for group in failures],
        "stage_seconds": stage_seconds and {stage: round(seconds, 3) for stage, seconds in stage_seconds.items()},
        **ended,
    }


def counts_values(counts: BatchCounts) -> dict[str, int]:
    """Jobs by state; `completed` is `succeeded` by another name."""
    return {**vars(counts), "completed": counts.succeeded}


def run_values(run: Run) -> dict[str, Any]:
    """How one firing of a schedule is told."""
    report = None if run.report is None else vars(run.report)
    return {**vars(run), **_times(run, "created_at", "started_at", "ended_at"), "report": report}


def schedule_values(schedule: Schedule, last: Run | None) -> dict[str, Any]:
    """How a schedule is told, with its latest run."""
    return {
        **{name: value for name, value in vars(schedule).items() if name != "asked"},
        **_times(schedule, "created_at", "next_fire_at"),
        "catalogue": redact_cell(schedule.catalogue),
        "options": dict(schedule.asked),
        "last_run": None if last is None else run_values(last),
    }


def webhook_values(webhook: Webhook) -> dict[str, Any]:
    """How a webhook is told."""
    return {**vars(webhook), **_times(webhook, "created_at", "rotated_at"), "url": redact_cell(webhook.url)}


def delivery_values(delivery: Delivery) -> dict[str, Any]:
    """How a delivery is told; its body is told only where it is asked for by itself."""
    told = {name: value for name, value in vars(delivery).items() if name not in ("body", "next_at")}
    next_at = whole(delivery.next_at) if delivery.ended_at is None else None
    return {**told, **_times(delivery, "created_at", "ended_at"), "next_at": next_at}


def key_values(key: ApiKey) -> dict[str, Any]:
    """How a key is told."""
    return {**vars(key), **_times(key, "created_at", "last_used_at", "revoked_at")}


def whole(seconds: float | None) -> int | None:
    """A time in whole seconds."""
    return None if seconds is None else int(seconds)


def _times(row: object, *names: str) -> dict[str, int | None]:
    return {name: whole(getattr(row, name)) for name in names}
