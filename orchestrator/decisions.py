"""Decisions: which pictures are approved or rejected, and a new take where none pleases.

Owns what may be decided of which job. A regenerated picture is a sibling row: the next take, with its own seed and its
own key in the store; the earlier ones stay. Refuses to touch a picture. Each may be asked any number of times, and is
noted in its own transaction.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine

from orchestrator.access.audit import Note, unnoted
from orchestrator.control import ControlError
from orchestrator.recipes import SEED_MAX
from orchestrator.state import queries
from orchestrator.state.database import reading
from orchestrator.state.queries import Take
from orchestrator.state.transitions import ACTIVE, Decision

# One statement's ids, well below what either database takes as parameters.
CHUNK_JOBS = 1_000


class DecisionError(ControlError):
    """This cannot be decided of that job; the message says why. Nothing was changed."""


@dataclass(frozen=True)
class NewTake:
    """A sibling that was asked for."""

    id: int
    take: int
    seed: int


def decide(engine: Engine, job_id: int, decision: Decision | None, *, note: Note = unnoted) -> bool:
    """Approve or reject a job's picture, or take that back (None); gives whether it changed.

    An approval takes back that of the row's other takes. Raises DecisionError for a job without a picture.
    """
    take = _find(engine, job_id)[1]
    with engine.begin() as connection:
        changed = queries.decide(connection, take.batch_id, [job_id], decision)
        if not changed:
            stands = next(other for other in queries.list_takes(connection, job_id) if other.id == job_id)
            if stands.decision != decision:
                raise DecisionError(f"job {job_id} is {stands.state}; only a succeeded job has a picture to decide on")
        else:
            note(connection, str(job_id))
    return bool(changed)


def decide_all(
    engine: Engine, batch_id: str, ids: Sequence[int], decision: Decision | None, *, note: Note = unnoted
) -> int:
    """Decide many jobs of a batch at once; those without a picture are left. Gives how many changed.

    Approving several takes of a row approves the latest.
    """
    changed = 0
    # By row number, so that of takes that fall into two chunks the later one, which wins, comes last.
    for start in range(0, len(ids), CHUNK_JOBS):
        with engine.begin() as connection:
            count = queries.decide(connection, batch_id, sorted(ids)[start : start + CHUNK_JOBS], decision)
            if count:
                note(connection, batch_id, jobs=count)
        changed += count
    return changed


def regenerate(engine: Engine, job_id: int, seed: int | None = None, *, note: Note = unnoted) -> NewTake:
    """Ask for another take of a job's row, with this seed, or one above those it has; its batch runs again.

    Raises DecisionError for a bad row, while a take of the row is still being made, and where the batch is being read
    or cancelled.
    """
    if seed is not None and not 0 <= seed <= SEED_MAX:
        raise DecisionError(f"seed {seed}: expected 0 to {SEED_MAX}")
    takes, job = _find(engine, job_id)
    with engine.begin() as connection:
        reopened = queries.reopen_batch(connection, job.batch_id)
        takes = queries.list_takes(connection, job_id)
        if job.recipe_id is None:
            raise DecisionError(f"job {job_id} is a bad row: correct it in the catalogue and submit that again")
        made = next((take for take in takes if take.state in ACTIVE), None)
        if made is not None:
            raise DecisionError(f"take {made.take} of this row is {made.state}; wait for it, then ask for another")
        if not reopened:
            raise DecisionError(
                f"batch {job.batch_id} is being read, cancelled or deleted, or could not be read; no take is made"
            )
        chosen = (max(take.seed for take in takes) + 1) % (SEED_MAX + 1) if seed is None else seed
        number = takes[-1].take + 1
        asked = NewTake(queries.add_take(connection, job_id, take=number, seed=chosen), number, chosen)
        note(connection, str(job_id), take=number, seed=chosen, made=asked.id)
        return asked


def regenerate_all(
    engine: Engine, batch_id: str, chosen: Iterable[Sequence[int]], *, most: int, note: Note = unnoted
) -> tuple[int, int]:
    """Ask for another take of each of these jobs' rows, of so many at most; gives how many were asked for, and not.

    All of them are a batch's, and noted as one change of it.
    """
    made = refused = 0

    def note_one(connection: Connection, target: str, *, jobs: int | None = None, **detail: Any) -> None:
        note(connection, batch_id, jobs=1)

    for ids in chosen:
        for job_id in ids:
            if made >= most:
                refused += 1
                continue
            try:
                regenerate(engine, job_id, note=note_one)
            except DecisionError:
                refused += 1
            else:
                made += 1
    return made, refused


def _find(engine: Engine, job_id: int) -> tuple[list[Take], Take]:
    with reading(engine).connect() as connection:
        takes = queries.list_takes(connection, job_id)
    for take in takes:
        if take.id == job_id:
            return takes, take
    raise DecisionError(f"there is no job {job_id}")
