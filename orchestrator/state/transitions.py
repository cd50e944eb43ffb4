"""Statuses of jobs, batches, runs and deliveries, and the legal moves between them. Pure: no SQL here.

`queries` takes its conditions from the moves below and the diagram of the README is drawn from them, so that what is
written, what is allowed and what is documented are one table.
"""

from dataclasses import dataclass
from enum import StrEnum


class JobState(StrEnum):
    """Six states; over a batch their counts always sum to its total."""

    PENDING = "pending"
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Stage(StrEnum):
    """What is done to a job, in this order."""

    ENCODE = "encode"
    SAMPLE = "sample"
    DECODE = "decode"

    @property
    def following(self) -> "Stage | None":
        """The stage after this one; None after decode."""
        return {Stage.ENCODE: Stage.SAMPLE, Stage.SAMPLE: Stage.DECODE}.get(self)


class Decision(StrEnum):
    """What somebody thinks of a succeeded job's picture. Of the takes of a line at most one is approved."""

    APPROVED = "approved"
    REJECTED = "rejected"


class BatchStatus(StrEnum):
    """Where a batch stands as a whole."""

    INGESTING = "ingesting"
    RUNNING = "running"
    PAUSED = "paused"
    CANCELLING = "cancelling"
    COMPLETED = "completed"
    CANCELLED = "cancelled"
    FAILED = "failed"
    DELETING = "deleting"  # it had ended, and its rows go: nothing is written of it, and nothing reopens it


class RunState(StrEnum):
    """Where a run of a schedule stands: one for each time it fires."""

    DUE = "due"  # its time has come, nobody has looked at it yet
    WAITING = "waiting"  # for the run before it, where they queue
    STARTING = "starting"  # a scheduler makes its batch, under a lease
    STARTED = "started"  # its batch is made
    ENDED = "ended"  # its batch has ended, and is reported
    SKIPPED = "skipped"
    FAILED = "failed"  # no batch could be made, or not wholly


class Overlap(StrEnum):
    """What a run does while the one before it has not ended."""

    SKIP = "skip"
    QUEUE = "queue"
    ALLOW = "allow"


class Missed(StrEnum):
    """What becomes of fire times at which no scheduler ran: one run for all of them, or none."""

    ONCE = "once"
    SKIP = "skip"


class Event(StrEnum):
    """What webhooks may hear of."""

    BATCH_COMPLETED = "batch.completed"
    BATCH_FAILED = "batch.failed"
    BATCH_PAUSED = "batch.paused"
    JOB_FAILED = "job.failed"
    SCHEDULE_FIRED = "schedule.fired"


class DeliveryState(StrEnum):
    """Where the message about an event stands, for one webhook."""

    PENDING = "pending"
    DELIVERED = "delivered"
    FAILED = "failed"  # for a day nobody took it; it can be replayed


class ErrorClass(StrEnum):
    """Why a job failed, which decides whether it is tried again."""

    INPUT = "input"  # a bad row, an unreadable image: never retried
    TRANSIENT = "transient"  # network, 5xx: back-off
    CAPACITY = "capacity"  # out of memory: claimed in smaller units
    CRASH = "crash"  # the worker died holding it
    INTERNAL = "internal"  # a fault of ours: tried again, in case it was the moment's


ACTIVE = (JobState.PENDING, JobState.QUEUED, JobState.RUNNING)
ENDED = (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)
OPEN_BATCH = (BatchStatus.INGESTING, BatchStatus.RUNNING, BatchStatus.PAUSED, BatchStatus.CANCELLING)


@dataclass(frozen=True)
class Move:
    """A legal change of state. `stages` holds (from, to) where a queued or running job changes its stage."""

    name: str
    source: tuple[JobState, ...]
    target: JobState
    stage: str = ""


_J = JobState
JOB_MOVES: dict[str, Move] = {
    move.name: move
    for move in (
        Move("dispatch", (_J.PENDING,), _J.QUEUED, "encode"),
        Move("reject", (_J.PENDING,), _J.FAILED, "bad row"),
        Move("claim", (_J.QUEUED,), _J.RUNNING),
        Move("advance", (_J.RUNNING,), _J.QUEUED, "next stage"),
        Move("carry", (_J.RUNNING,), _J.RUNNING, "next stage, the same worker goes on"),
        Move("succeed", (_J.RUNNING,), _J.SUCCEEDED, "after decode, or reused at encode"),
        Move("retry", (_J.RUNNING,), _J.QUEUED, "same stage, back-off in run_at"),
        Move("hand_back", (_J.RUNNING,), _J.QUEUED, "same stage"),
        Move("take_back", (_J.RUNNING,), _J.QUEUED, "same stage, its worker died or hangs"),
        Move("lose_handoff", (_J.RUNNING, _J.QUEUED), _J.QUEUED, "encode"),
        Move("fail", (_J.RUNNING,), _J.FAILED),
        Move("expire", (_J.PENDING, _J.QUEUED), _J.FAILED, "deadline passed"),
        Move("cancel", (_J.PENDING, _J.QUEUED, _J.RUNNING), _J.CANCELLED),
        Move("restart", (_J.FAILED, _J.CANCELLED), _J.PENDING, "retry asked"),
    )
}

_B = BatchStatus
BATCH_MOVES: frozenset[tuple[BatchStatus, BatchStatus]] = frozenset(
    {
        (_B.INGESTING, _B.RUNNING),
        (_B.INGESTING, _B.FAILED),
        (_B.INGESTING, _B.CANCELLING),
        (_B.RUNNING, _B.PAUSED),
        (_B.PAUSED, _B.RUNNING),
        (_B.RUNNING, _B.COMPLETED),
        (_B.RUNNING, _B.CANCELLING),
        (_B.PAUSED, _B.CANCELLING),
        (_B.CANCELLING, _B.CANCELLED),
        (_B.COMPLETED, _B.RUNNING),
        (_B.CANCELLED, _B.RUNNING),
        (_B.COMPLETED, _B.DELETING),
        (_B.CANCELLED, _B.DELETING),
        (_B.FAILED, _B.DELETING),
    }
)


def diagram() -> str:
    """The way of a job as a mermaid state diagram, drawn from the moves."""
    lines = ["stateDiagram-v2", "    [*] --> pending"]
    for move in JOB_MOVES.values():
        label = move.name.replace("_", " ") + (f" ({move.stage})" if move.stage else "")
        lines += [f"    {source} --> {move.target}: {label}" for source in move.source]
    lines += [f"    {state} --> [*]" for state in ENDED]
    return "\n".join(lines)
