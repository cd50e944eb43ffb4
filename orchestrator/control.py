"""Control: what people ask of a batch while it runs, and what the dispatcher does about it.

Owns pause, resume, cancel, retry, priority, deadline and the breaker. Each may be asked any number of times, and is
noted in its own transaction where it changed something. Refuses to wait for workers: a change is in SQL when the call
returns, and claims look there.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from sqlalchemy import Connection, Engine

from orchestrator.access.audit import Note, unnoted
from orchestrator.state import queries
from orchestrator.state.database import reading
from orchestrator.state.queries import Batch
from orchestrator.state.transitions import BatchStatus, JobState

# One transaction's rows: about 30 ms on SQLite, so that heartbeats get through.
CHUNK_ROWS = 1_000
BUDGET_S = 1.0
BREAKER_LEAST_JOBS = 20
# An interrupted `run` or `submit` is resumed the next morning, too, and so is a request by its key.
ABANDONED_S = 86_400.0
ABANDONED = "whoever stored its rows died before the last one, and nobody went on for a day; submit it again"
_STANDS = {
    BatchStatus.INGESTING: "is still being read",
    BatchStatus.RUNNING: "is running",
    BatchStatus.PAUSED: "is paused",
    BatchStatus.CANCELLING: "is being cancelled",
    BatchStatus.COMPLETED: "has completed",
    BatchStatus.CANCELLED: "was cancelled",
    BatchStatus.FAILED: "could not be read as a whole",
    BatchStatus.DELETING: "is being deleted",
}


class ControlError(RuntimeError):
    """A batch stands where this cannot be asked of it; the message says where. Nothing was changed."""


@dataclass(frozen=True)
class Change:
    """How a batch stands after a call, whether the call changed it, and how many jobs it moved."""

    batch: Batch
    changed: bool
    jobs: int = 0
    bad_rows: int = 0


def pause(engine: Engine, batch_id: str, *, note: Note = unnoted) -> Change:
    """Claim nothing more of a batch; what is running ends its stage. Raises ControlError."""

    def move(connection: Connection) -> bool:
        return queries.move_batch(connection, batch_id, BatchStatus.PAUSED, reason="by request")

    return _ask(engine, batch_id, move, {BatchStatus.PAUSED}, "only a running batch can be paused", note)


def resume(engine: Engine, batch_id: str, *, note: Note = unnoted) -> Change:
    """Go on with a paused batch. Raises ControlError."""

    def move(connection: Connection) -> bool:
        return queries.resume_batch(connection, batch_id)

    return _ask(engine, batch_id, move, {BatchStatus.RUNNING}, "only a paused batch can be resumed", note)


def cancel(engine: Engine, batch_id: str, *, note: Note = unnoted) -> Change:
    """End a batch early: what has not ended is cancelled, what is running stops; what succeeded stays.

    Cancels for a second at most, running jobs first; the dispatcher goes on with the rest, writes the manifest and ends
    the batch. Raises ControlError.
    """

    def move(connection: Connection) -> bool:
        return queries.move_batch(connection, batch_id, BatchStatus.CANCELLING, reason="by request")

    over = {BatchStatus.CANCELLING, BatchStatus.CANCELLED}
    change = _ask(engine, batch_id, move, over, "there is nothing to cancel", note)
    if change.batch.status != BatchStatus.CANCELLING:
        return change
    jobs = _move_in_chunks(engine, queries.cancel_jobs, batch_id, BUDGET_S, note if change.changed else unnoted)
    return Change(change.batch, change.changed, jobs)


def set_priority(engine: Engine, batch_id: str, priority: int, *, note: Note = unnoted) -> Change:
    """Change the urgency of a batch that has not ended, its queued jobs included. Raises ControlError."""
    with engine.begin() as connection:
        before = _find(connection, batch_id)
        if before.ended_at is not None:
            raise ControlError(f"batch {batch_id} {_STANDS[before.status]}; its priority changes nothing any more")
        queries.set_priority(connection, batch_id, priority)
        if before.priority != priority:
            note(connection, batch_id, priority=priority)
        return Change(_find(connection, batch_id), before.priority != priority)


def retry(
    engine: Engine,
    batch_id: str,
    states: Sequence[JobState] = (JobState.FAILED,),
    codes: Sequence[str] = (),
    lines: Sequence[int] = (),
    *,
    note: Note = unnoted,
) -> Change:
    """Set the ended jobs of a batch that match pending again, and the batch running if it had ended.

    Bad rows are counted and left: no worker can mend them. Raises ControlError.
    """
    _look(engine, batch_id)
    return _retry(engine, batch_id, queries.match_jobs(engine, batch_id, states=states, codes=codes, lines=lines), note)


def retry_jobs(engine: Engine, batch_id: str, chosen: Iterable[Sequence[int]], *, note: Note = unnoted) -> Change:
    """Set these jobs of a batch pending again, chunk by chunk, as `retry` does; others of them are left.

    Raises ControlError.
    """

    def read() -> Iterator[list[tuple[int, bool]]]:
        for ids in chosen:
            with reading(engine).connect() as connection:
                found = queries.restartable(connection, batch_id, ids)
            yield found

    _look(engine, batch_id)
    return _retry(engine, batch_id, read(), note)


def _retry(engine: Engine, batch_id: str, pages: Iterable[Sequence[tuple[int, bool]]], note: Note) -> Change:
    """Set the good ones of these jobs pending again, page by page."""
    moved = bad_rows = 0
    for page in pages:
        ids = [job_id for job_id, good in page if good]
        bad_rows += len(page) - len(ids)
        if ids:
            moved += _restart(engine, batch_id, ids, note)
    return Change(_look(engine, batch_id), moved > 0, moved, bad_rows)


def _restart(engine: Engine, batch_id: str, ids: Sequence[int], note: Note) -> int:
    with engine.begin() as connection:
        if not queries.reopen_batch(connection, batch_id):
            batch = _find(connection, batch_id)
            raise ControlError(f"batch {batch_id} {_STANDS[batch.status]}; its jobs cannot be tried again now")
        moved = queries.restart_jobs(connection, ids)
        if moved:
            note(connection, batch_id, jobs=moved)
        return moved


def _ask(
    engine: Engine,
    batch_id: str,
    move: Callable[[Connection], bool],
    over: set[BatchStatus],
    otherwise: str,
    note: Note,
) -> Change:
    """Make a move of a batch; standing in `over` already is as good."""
    with engine.begin() as connection:
        changed = move(connection)
        batch = _find(connection, batch_id)
        if changed:
            note(connection, batch_id)
    if not changed and batch.status not in over:
        raise ControlError(f"batch {batch_id} {_STANDS[batch.status]}; {otherwise}")
    return Change(batch, changed)


def _look(engine: Engine, batch_id: str) -> Batch:
    with reading(engine).connect() as connection:
        return _find(connection, batch_id)


def _find(connection: Connection, batch_id: str) -> Batch:
    batch = queries.read_batch(connection, batch_id)
    if batch is None:
        raise ControlError(f"there is no batch {batch_id!r}; see: kontext batches")
    return batch


def _move_in_chunks(
    engine: Engine,
    move: Callable[[Connection, str, int], int],
    batch_id: str,
    budget_s: float,
    note: Note = unnoted,
) -> int:
    """Repeat a statement over chunks of a batch's jobs until it finds none, or the time is over; each is noted."""
    until_s, moved = time.monotonic() + budget_s, 0
    while True:
        with engine.begin() as connection:
            count = move(connection, batch_id, CHUNK_ROWS)
            if count:
                note(connection, batch_id, jobs=count)
        moved += count
        if count < CHUNK_ROWS or time.monotonic() >= until_s:
            return moved


def enforce(engine: Engine, batch: Batch, now_s: float, budget_s: float) -> None:
    """Go on with what was asked of an open batch: its cancelling, or its deadline. `now_s` is the database's clock."""
    if batch.status == BatchStatus.CANCELLING:
        _move_in_chunks(engine, queries.cancel_jobs, batch.id, budget_s)
    elif is_overdue(batch, now_s):
        if batch.status == BatchStatus.PAUSED:  # or it would stand for ever, with nothing left to resume
            with suppress(ControlError):  # cancelled meanwhile
                resume(engine, batch.id)
        _move_in_chunks(engine, queries.expire_jobs, batch.id, budget_s)


def cancel_unread(engine: Engine, budget_s: float) -> int:
    """Cancel the jobs that were stored of catalogues that then could not be read on; gives how many.

    No worker would take them. For each such batch `budget_s` at most; the next call goes on.
    """
    with reading(engine).connect() as connection:
        unread = queries.failed_unfinished(connection)
    return sum(_move_in_chunks(engine, queries.cancel_jobs, batch_id, budget_s) for batch_id in unread)


def fail_abandoned(engine: Engine) -> list[str]:
    """Fail batches whose rows nobody goes on storing, and give their ids: whoever did died, and did not come back.

    A request that does come back later makes a new batch.
    """
    with reading(engine).connect() as connection:
        found = queries.find_abandoned(connection, ABANDONED_S)
    failed = []
    for batch_id in found:
        with engine.begin() as connection:
            if queries.fail_abandoned(connection, batch_id, ABANDONED_S, ABANDONED):
                failed.append(batch_id)
    return failed


def is_overdue(batch: Batch, now_s: float) -> bool:
    """Whether the deadline of a batch that is read as a whole has passed."""
    ready = batch.status in (BatchStatus.RUNNING, BatchStatus.PAUSED)
    return ready and batch.deadline_at is not None and batch.deadline_at <= now_s


def break_off(engine: Engine, batch: Batch) -> str | None:
    """Pause a running batch of which more jobs fail than its `max_error_rate` allows; gives the reason if it was.

    Counted are the jobs that ran, and ended since the batch was last resumed or retried; fewer than twenty say nothing.
    """
    most = batch.options.get("max_error_rate")
    if most is None or batch.status != BatchStatus.RUNNING:
        return None
    enough = (1 - most) / most if most > 0 else None
    with reading(engine).connect() as connection:
        failed, succeeded = queries.count_failures(connection, batch.id, since=batch.resumed_at, enough=enough)
    ended = failed + succeeded
    if ended < BREAKER_LEAST_JOBS or failed <= most * ended:
        return None
    reason = f"{failed:,} of {ended:,} jobs failed, more than max_error_rate {most:g} allows"
    with engine.begin() as connection:
        moved = queries.move_batch(connection, batch.id, BatchStatus.PAUSED, reason=reason)
    return reason if moved else None


def delete(engine: Engine, batch_id: str, *, note: Note = unnoted) -> int:
    """Forget an ended batch and its jobs, in short transactions; gives how many jobs. Pictures and manifest stay.

    The first of them marks the batch: from then on nothing else is done to it. Interrupted, it is asked again. Raises
    ControlError for a batch that has not ended.
    """
    with engine.begin() as connection:
        marked = queries.begin_deletion(connection, batch_id)
        batch = _find(connection, batch_id)
        if marked:
            note(connection, batch_id, jobs=0)
    if batch.status != BatchStatus.DELETING:
        raise ControlError(f"batch {batch_id} {_STANDS[batch.status]}; cancel it before it is deleted")
    jobs = _move_in_chunks(engine, queries.delete_jobs, batch_id, float("inf"), note)
    with engine.begin() as connection:
        if not queries.delete_batch(connection, batch_id):
            raise ControlError(f"batch {batch_id} was deleted meanwhile, by another call")
        note(connection, batch_id, jobs=0)
    return jobs
