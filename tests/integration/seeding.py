"""Makes batches and brings their jobs where a test wants them, through the statements under test."""

import json
from collections.abc import Callable
from typing import Any, TypeVar

from sqlalchemy import Engine, select

from orchestrator.settings import PIPELINE_VERSION
from orchestrator.state import queries
from orchestrator.state.bulk import COLUMNS, insert_jobs
from orchestrator.state.database import reading
from orchestrator.state.queries import Batch, Claimed, Group
from orchestrator.state.tables import attempts
from orchestrator.state.tables import jobs as job_table
from orchestrator.state.transitions import BatchStatus, Stage

T = TypeVar("T")

NUMERICS, REVISION, RECIPE = f"float32/v{PIPELINE_VERSION}", "a" * 64, "recipe"


class Seeder:
    """A database under test, with the few moves that most tests begin with."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def batch(self, batch_id: str = "b", *, jobs: int = 0, status: str = "running", **given: Any) -> Batch:
        """A batch of so many pending jobs; `recipe` and `priorities` shape the jobs, all else is the batch's."""
        recipe, priorities = given.pop("recipe", RECIPE), given.pop("priorities", [0] * jobs)
        row = {
            "id": batch_id, "request": "request", "catalogue": "catalogue.csv", "image_root": "/photos",
            "columns": json.dumps(["image"]), "options": "{}", "checkpoint": "checkpoint", "revision": REVISION,
            "numerics": NUMERICS, "handoff_bytes": 1000, "results_uri": f"/results/{batch_id}", **given,
        }  # fmt: skip
        with self.engine.begin() as connection:
            queries.create_batch(connection, row)
            rows = [job_row(batch_id, line, recipe, priority) for line, priority in enumerate(priorities, start=1)]
            assert insert_jobs(connection, rows) == []
            assert queries.note_ingested(connection, batch_id, after=0, line=len(rows), rows=len(rows))
            assert queries.start_batch(connection, batch_id)
            if status != "running":
                assert queries.move_batch(connection, batch_id, BatchStatus(status))
            batch = queries.read_batch(connection, batch_id)
        assert batch is not None
        return batch

    def queued(self, jobs: int, batch_id: str = "b", **given: Any) -> Group:
        """A batch whose jobs all wait for encode; gives their group."""
        batch = self.batch(batch_id, jobs=jobs, **given)
        with self.engine.begin() as connection:
            queries.dispatch(connection, batch_id, jobs)
        return Group(Stage.ENCODE, given.get("recipe", RECIPE), "", batch.revision)

    def claim(self, group: Group, limit: int = 100, worker: str = "w", numerics: str = NUMERICS) -> list[Claimed]:
        """Claim at the group's stage, and commit."""
        given = {"revision": group.revision, "numerics": numerics, "worker_id": worker, "limit": limit}
        with self.engine.begin() as connection:
            return queries.claim(connection, group.stage, **given)

    def do(self, query: Callable[..., T], *given: Any, **named: Any) -> T:
        """Run one query in a transaction of its own."""
        with self.engine.begin() as connection:
            return query(connection, *given, **named)

    def rows(self, batch_id: str = "b") -> list[dict[str, Any]]:
        """All jobs of a batch as they stand, in the catalogue's order."""
        return [dict(row) for row in queries.stream_jobs(self.engine, batch_id)]

    def row(self, job_id: int) -> dict[str, Any]:
        """One job as it stands."""
        with reading(self.engine).connect() as connection:
            return dict(connection.execute(select(job_table).where(job_table.c.id == job_id)).mappings().one())

    def history(self, job_id: int) -> list[tuple[int, str]]:
        """What ended the attempts of a job, oldest first: (attempt, outcome)."""
        with reading(self.engine).connect() as connection:
            found = select(attempts.c.attempt, attempts.c.outcome).where(attempts.c.job_id == job_id)
            return [tuple(row) for row in connection.execute(found.order_by(attempts.c.id))]


def job_row(batch_id: str, line: int, recipe: str | None = RECIPE, priority: int = 0, **given: Any) -> tuple[Any, ...]:
    """One row for insert_jobs."""
    row = {
        "batch_id": batch_id, "line": line, "custom_id": f"photo-{line}", "image": f"{line}.jpg", "recipe_id": recipe,
        "seed": 0, "priority": priority, "given": None, "state": "pending", "ended_at": None, "code": None,
        "message": None, **given,
    }  # fmt: skip
    return tuple(row[name] for name in COLUMNS)
