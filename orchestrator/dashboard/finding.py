"""What an address names: a batch, a job. Raises what says that there is none."""

from typing import Annotated

from fastapi import Path
from sqlalchemy import Connection, RowMapping

from orchestrator.api.problems import Problem
from orchestrator.batches import BatchError
from orchestrator.dashboard.services import Kept
from orchestrator.state import queries
from orchestrator.state.database import reading
from orchestrator.state.queries import Batch, pages

JobId = Annotated[int, Path(ge=1, le=2**63 - 1)]
"""The id of a job in an address."""


def find_batch(connection: Connection, batch_id: str) -> Batch:
    """A batch. Raises BatchError when there is none of that id."""
    batch = queries.read_batch(connection, batch_id)
    if batch is None:
        raise BatchError(f"there is no batch {batch_id[:80]!r}")
    return batch


def find_job(kept: Kept, job_id: int) -> RowMapping:
    """A job's row. Raises Problem 404 when there is none of that id."""
    with reading(kept.opened.engine).connect() as connection:
        job = pages.read_job(connection, job_id)
    if job is None:
        raise Problem(404, "not_found", f"there is no job {job_id}")
    return job


def batch_of(kept: Kept, job: RowMapping) -> Batch:
    """The batch of a job that there is."""
    with reading(kept.opened.engine).connect() as connection:
        return find_batch(connection, job["batch_id"])
