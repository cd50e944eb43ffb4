"""How a call of `run` ended: for people as some lines, for programs as one object.

Owns the shape of `run --json` and the exit status that follows from how the batch stands.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from orchestrator.cli.display import show_rate
from orchestrator.cli.door import Door
from orchestrator.cli.failures import INCOMPLETE, SUCCESS
from orchestrator.client.shapes import Batch
from orchestrator.progress import show_duration
from orchestrator.state.transitions import BatchStatus, JobState

ERRORS_TOLD = 1000
MESSAGES_SHOWN = 3


@dataclass(frozen=True)
class Summary:
    """The end of a call: how the batch stood, how long the call took, how fast jobs ended, what failed."""

    batch: Batch
    seconds: float
    rate: float | None
    errors: list[dict[str, Any]]

    @property
    def exit_status(self) -> int:
        """0 when every job succeeded, else 3."""
        counts = self.batch.request_counts
        whole = self.batch.status == BatchStatus.COMPLETED and counts.succeeded == counts.total
        return SUCCESS if whole else INCOMPLETE


def sum_up(door: Door, batch_id: str, seconds: float, rate: float | None) -> Summary:
    """Gather what the summary tells; at most 1,000 failed jobs, in the catalogue's order."""
    batch = door.batch(batch_id)
    failed = door.jobs(batch_id, (JobState.FAILED,)) if batch.request_counts.failed else ()
    names = ("custom_id", "line", "code", "message")
    errors = [{name: getattr(job, name) for name in names} for job in islice(failed, ERRORS_TOLD)]
    return Summary(batch, seconds, rate, errors)


def describe(summary: Summary) -> dict[str, Any]:
    """The object that `run --json` prints last."""
    batch, counts = summary.batch, summary.batch.request_counts
    told = {
        "batch": batch.id,
        "status": batch.status.value,
        "total": counts.total,
        "succeeded": counts.succeeded,
        "failed": counts.failed,
        "cancelled": counts.cancelled,
        "reused": counts.reused,
        "seconds": round(summary.seconds, 3),
        "results": batch.results,
        "manifest": batch.manifest,
        "errors": summary.errors,
    }
    if len(summary.errors) < counts.failed:
        told["errors_truncated"] = True
    return told


def write_lines(summary: Summary) -> Iterator[str]:
    """The summary for people."""
    batch, counts = summary.batch, summary.batch.request_counts
    parts = [f"{counts.succeeded:,} of {counts.total:,} succeeded"]
    parts += [f"{counts.reused:,} reused"] if counts.reused else []
    parts += [f"{number:,} {name}" for name in ("failed", "cancelled") if (number := getattr(counts, name))]
    pace = f" ({show_rate(summary.rate)})" if summary.rate else ""
    yield f"batch {batch.id} {batch.status}: {', '.join(parts)} in {show_duration(summary.seconds)}{pace}"
    if batch.reason:
        yield f"  reason    {batch.reason}"
    yield f"  results   {batch.results}"
    if batch.manifest:
        yield f"  manifest  {batch.manifest} (and .csv)"
    yield from _write_failures(summary)
    if counts.failed:
        yield f"  next      kontext jobs {batch.id} --state failed, then kontext retry {batch.id}"
    if counts.succeeded:
        yield f"  {'' if counts.failed else 'next':<8}  kontext export {batch.id} DIR"


def _write_failures(summary: Summary) -> Iterator[str]:
    for failure in summary.batch.errors or ():
        code, number = failure.code, failure.count
        yield f"  failed    {number:,} × {code}"
        messages = [error["message"] for error in summary.errors if error["code"] == code]
        for message in messages[:MESSAGES_SHOWN]:
            yield f"              {message}"
        if number > MESSAGES_SHOWN:
            yield f"              … and {number - MESSAGES_SHOWN:,} more"
