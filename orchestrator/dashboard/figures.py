"""Figures that several pages show: what ended when, rates, and the time that is left.

Refuses to guess: without an end to go by there is no rate.
"""

from collections.abc import Sequence

from sqlalchemy import Connection

from orchestrator.dashboard import charts
from orchestrator.state import queries
from orchestrator.state.queries import Batch, BatchCounts
from orchestrator.state.transitions import JobState

RATE_WINDOW_S = 120.0
# Less than this says nothing about a rate.
LEAST_SPAN_S = 1.0


def chart_ends(
    connection: Connection, from_s: float, to_s: float, step_s: float, batch_id: str | None = None
) -> charts.Throughput:
    """Jobs that ended between two moments, by intervals of `step_s`; of a batch, or of all."""
    from_s, to_s = from_s // step_s * step_s, (to_s // step_s + 1) * step_s
    by_state: list[dict[float, int]] = [
        dict(queries.throughput(connection, since=from_s, until=to_s, batch_id=batch_id, bucket_s=step_s, state=state))
        for state in (JobState.SUCCEEDED, JobState.FAILED)
    ]
    moments = sorted({*by_state[0], *by_state[1]})
    ends = [(at_s, by_state[0].get(at_s, 0), by_state[1].get(at_s, 0)) for at_s in moments]
    return charts.throughput(ends, from_s, to_s, step_s)


def rate_per_s(
    connection: Connection, now_s: float, since: Sequence[float | None] = (), batch_id: str | None = None
) -> float | None:
    """Jobs a second over the last two minutes, or since the latest of the moments given; None where none ended."""
    from_s = max(now_s - RATE_WINDOW_S, *(at_s for at_s in since if at_s is not None), 0.0)
    span_s = max(LEAST_SPAN_S, now_s - from_s)
    ended = sum(
        count
        for state in (JobState.SUCCEEDED, JobState.FAILED)
        for _, count in queries.throughput(connection, since=from_s, batch_id=batch_id, state=state)
    )
    return ended / span_s if ended else None


def batch_rate_per_s(connection: Connection, batch: Batch, now_s: float) -> float | None:
    """Jobs a second of one open batch."""
    return rate_per_s(connection, now_s, (batch.started_at, batch.resumed_at), batch.id)


def remaining_s(counts: BatchCounts, per_s: float | None) -> float | None:
    """Seconds until all jobs have ended at this rate; None where there is none."""
    left = counts.total - counts.ended
    return left / per_s if per_s else None
