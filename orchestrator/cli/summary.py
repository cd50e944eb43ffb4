"""How a call of `run` ended: for people as some lines, for programs as one object.

Owns the shape of `run --json` and the exit status that follows from how the batch stands.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine

from orchestrator.cli.display import show_rate
from orchestrator.cli.failures import INCOMPLETE, SUCCESS
from orchestrator.progress import Snapshot, show_duration
from orchestrator.state import queries
from orchestrator.state.database import reading
from orchestrator.state.transitions import BatchStatus, JobState

ERRORS_TOLD = 1000
MESSAGES_SHOWN = 3


@dataclass(frozen=True)
class Summary:
    """The end of a call: how the batch stood, how long the call took, how fast jobs ended, what failed."""

    snapshot: Snapshot
    seconds: float
    rate: float | None
    errors: list[dict[str, Any]]
    by_code: Mapping[str, int]

    @property
    def exit_status(self) -> int:
        """0 when every job succeeded, else 3."""
        counts = self.snapshot.counts
        whole = self.snapshot.batch.status == BatchStatus.COMPLETED and counts.succeeded == counts.total
        return SUCCESS if whole else INCOMPLETE


def sum_up(engine: Engine, snapshot: Snapshot, seconds: float, rate: float | None) -> Summary:
    """Gather what the summary tells; at most 1,000 failed jobs, in the catalogue's order."""
    errors: list[dict[str, Any]] = []
    by_code: Mapping[str, int] = {}
    if snapshot.counts.failed:
        with reading(engine).connect() as connection:
            by_code = queries.count_by_error(connection, snapshot.batch.id)
            for job in queries.stream_jobs(connection, snapshot.batch.id, states=(JobState.FAILED,)):
                errors.append({name: job[name] for name in ("custom_id", "line", "code", "message")})
                if len(errors) == ERRORS_TOLD:
                    break
    return Summary(snapshot, seconds, rate, errors, by_code)


def describe(summary: Summary) -> dict[str, Any]:
    """The object that `run --json` prints last."""
    batch, counts = summary.snapshot.batch, summary.snapshot.counts
    told = {
        "batch": batch.id,
        "status": batch.status.value,
        "total": counts.total,
        "succeeded": counts.succeeded,
        "failed": counts.failed,
        "cancelled": counts.cancelled,
        "reused": counts.reused,
        "seconds": round(summary.seconds, 3),
        "results": batch.results_uri,
        "manifest": batch.manifest_uri,
        "errors": summary.errors,
    }
    if len(summary.errors) < counts.failed:
        told["errors_truncated"] = True
    return told


def write_lines(summary: Summary) -> Iterator[str]:
    """The summary for people."""
    batch, counts = summary.snapshot.batch, summary.snapshot.counts
    parts = [f"{counts.succeeded:,} of {counts.total:,} succeeded"]
    parts += [f"{counts.reused:,} reused"] if counts.reused else []
    parts += [f"{number:,} {name}" for name in ("failed", "cancelled") if (number := getattr(counts, name))]
    pace = f" ({show_rate(summary.rate)})" if summary.rate else ""
    yield f"batch {batch.id} {batch.status}: {', '.join(parts)} in {show_duration(summary.seconds)}{pace}"
    if batch.reason:
        yield f"  reason    {batch.reason}"
    yield f"  results   {batch.results_uri}"
    if batch.manifest_uri:
        yield f"  manifest  {batch.manifest_uri} (and .csv)"
    yield from _write_failures(summary)
    if counts.failed:
        yield f"  next      kontext jobs {batch.id} --state failed, then kontext retry {batch.id}"
    if counts.succeeded:
        yield f"  {'' if counts.failed else 'next':<8}  kontext export {batch.id} DIR"


def _write_failures(summary: Summary) -> Iterator[str]:
    for code, number in summary.by_code.items():
        yield f"  failed    {number:,} × {code}"
        messages = [error["message"] for error in summary.errors if error["code"] == code]
        for message in messages[:MESSAGES_SHOWN]:
            yield f"              {message}"
        if number > MESSAGES_SHOWN:
            yield f"              … and {number - MESSAGES_SHOWN:,} more"
