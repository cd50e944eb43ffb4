"""Decisions and takes, statement by statement: what somebody thinks of a picture, and the next one beside it.

Every change counts itself in its batch, so that the dispatcher sees which manifests no longer tell the truth.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

from sqlalchemy import BigInteger, Connection, Text, and_, func, insert, literal, select, update

from orchestrator.state.database import now
from orchestrator.state.queries.batches import Batch, read_batch
from orchestrator.state.tables import batches, in_state, jobs
from orchestrator.state.transitions import BatchStatus, Decision, JobState

_COPIED = ("batch_id", "line", "custom_id", "image", "recipe_id", "priority", "given")


@dataclass(frozen=True)
class Take:
    """One of the pictures asked for a row. `recipe_id` is None for a bad row."""

    id: int
    batch_id: str
    line: int
    take: int
    recipe_id: str | None
    seed: int
    state: JobState
    decision: str | None


def list_takes(connection: Connection, job_id: int) -> list[Take]:
    """All takes of a job's row, this one among them, the first take first; empty when there is no such job."""
    given = jobs.alias("given")
    statement = (
        select(*(jobs.c[field.name] for field in fields(Take)))
        .join(given, and_(given.c.batch_id == jobs.c.batch_id, given.c.line == jobs.c.line))
        .where(given.c.id == job_id)
        .order_by(jobs.c.take)
    )
    return [
        Take(**{**row, "state": JobState(row["state"])}) for row in connection.execute(statement).mappings()
    ]  # fmt: skip


def decide(connection: Connection, batch_id: str, ids: Sequence[int], decision: Decision | None) -> int:
    """Approve or reject succeeded jobs of a batch, or take a decision back (None); gives how many changed.

    Of the takes of a line one at most is approved: the latest of those given, and no other one any longer.
    """
    # Locks the batch's row: two decisions about the takes of one line come one after the other.
    locked = select(batches.c.id).where(batches.c.id == batch_id).with_for_update()
    if not ids or connection.execute(locked).first() is None:
        return 0
    wanted = select(jobs.c.id, jobs.c.line, jobs.c.take).where(
        jobs.c.batch_id == batch_id, jobs.c.id.in_(ids), in_state(JobState.SUCCEEDED)
    )
    # Ordered by take, so that the latest of a line is the one that stays.
    rows = connection.execute(wanted.order_by(jobs.c.take)).all()
    by_line = {row.line: row.id for row in rows}
    approves = decision is Decision.APPROVED
    chosen = list(by_line.values()) if approves else [row.id for row in rows]
    if approves:
        _unapprove(connection, batch_id, list(by_line), chosen)
    changed = (
        update(jobs)
        .where(jobs.c.id.in_(chosen), jobs.c.decision.is_distinct_from(decision))
        .values(decision=decision, decided_at=now())
    )
    count = connection.execute(changed).rowcount
    if count:
        connection.execute(
            update(batches).where(batches.c.id == batch_id).values(decisions=batches.c.decisions + 1)
        )  # fmt: skip
    return count


def _unapprove(connection: Connection, batch_id: str, lines: Sequence[int], but: Sequence[int]) -> None:
    connection.execute(
        update(jobs)
        .where(
            jobs.c.batch_id == batch_id,
            jobs.c.line.in_(lines),
            jobs.c.id.not_in(but),
            jobs.c.decision == Decision.APPROVED,
        )
        .values(decision=None, decided_at=now())
    )


def add_take(connection: Connection, job_id: int, *, take: int, seed: int) -> int:
    """Store a job's sibling as pending: the same row, with a take and a seed of its own; gives its id.

    The caller has locked the batch's row by `reopen_batch`, so that no other one takes the number.
    """
    own = {"take": (take, BigInteger), "seed": (seed, BigInteger), "state": (JobState.PENDING, Text)}
    copied = select(*(jobs.c[name] for name in _COPIED), *(literal(value, kind) for value, kind in own.values()))
    statement = insert(jobs).from_select([*_COPIED, *own], copied.where(jobs.c.id == job_id)).returning(jobs.c.id)
    made: int = connection.execute(statement).scalar_one()
    batch_id = select(jobs.c.batch_id).where(jobs.c.id == job_id).scalar_subquery()
    connection.execute(update(batches).where(batches.c.id == batch_id).values(total=batches.c.total + 1))
    return made


def untold_batches(connection: Connection, *, limit: int) -> list[Batch]:
    """Ended batches whose manifest does not tell all decisions yet."""
    ended = (BatchStatus.COMPLETED, BatchStatus.CANCELLED)
    statement = (
        select(batches.c.id)
        .where(batches.c.decisions > batches.c.decisions_told, batches.c.status.in_(ended))
        .order_by(batches.c.id)
        .limit(limit)
    )
    found = (read_batch(connection, batch_id) for batch_id in connection.execute(statement).scalars().all())
    return [batch for batch in found if batch is not None]


def note_told(connection: Connection, batch_id: str, decisions: int) -> None:
    """Note that a manifest was written which tells so many of the batch's decisions."""
    statement = update(batches).where(batches.c.id == batch_id, batches.c.decisions_told < decisions)
    connection.execute(statement.values(decisions_told=decisions))


def count_decisions(connection: Connection, batch_id: str) -> dict[str, int]:
    """Jobs of a batch by decision; those nobody has decided are left out."""
    statement = (
        select(jobs.c.decision, func.count())
        .where(jobs.c.batch_id == batch_id, jobs.c.decision.is_not(None))
        .group_by(jobs.c.decision)
    )
    return dict(connection.execute(statement).all())
