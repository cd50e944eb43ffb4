"""Nights for tests: a catalogue, a schedule of it, schedulers that fire it, jobs that end as they are told."""

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from pathlib import Path

from sqlalchemy import Engine, select, update

from kontext_model.revision import PARTS
from orchestrator import schedules
from orchestrator.scheduler import Scheduler
from orchestrator.schedules import Plan
from orchestrator.settings import Settings
from orchestrator.state import queries
from orchestrator.state.database import now, reading
from orchestrator.state.queries import Failed, Finished, Run
from orchestrator.state.tables import jobs, schedule_runs
from orchestrator.state.tables import schedules as schedule_table
from orchestrator.state.transitions import RunState, Stage
from tests.waiting import PATIENCE_S


@dataclass
class Night:
    """A folder with `nightly.csv`, a checkpoint that can be pinned, and the schedule `nightly`."""

    engine: Engine
    folder: Path
    settings: Settings = field(init=False)

    def __post_init__(self) -> None:
        checkpoint = make_checkpoint(self.folder)
        self.settings = Settings(
            home=self.folder / "home", results_uri=str(self.folder / "results"), checkpoint=str(checkpoint)
        )

    def write(self, *ids: str, name: str = "nightly.csv") -> Path:
        """Write the catalogue anew: one image for each id."""
        path = self.folder / name
        path.write_text("image,custom_id\n" + "".join(f"{each}.jpg,{each}\n" for each in ids))
        return path

    def plan(self, name: str = "nightly", **given: object) -> None:
        """Store a schedule of the catalogue."""
        plan = Plan(name, "0 2 * * *", str(self.folder / "nightly.csv"), "Europe/Berlin", {"prompt": "flat lay"})
        schedules.add(self.engine, replace(plan, **given), self.settings)  # type: ignore[arg-type]

    def come_due(self, name: str = "nightly", ago_s: float = 1.0) -> None:
        """Let the schedule have been due so many seconds ago."""
        with self.engine.begin() as connection:
            connection.execute(
                update(schedule_table).where(schedule_table.c.name == name).values(next_fire_at=now() - ago_s)
            )

    def scheduler(self) -> Scheduler:
        """Another scheduler, as another process would run one."""
        return Scheduler(self.engine, self.settings)

    def tick(self, scheduler: Scheduler | None = None) -> None:
        """One tick, and what it began."""
        scheduler = scheduler or self.scheduler()
        scheduler._next_s = 0.0
        scheduler.tick()
        scheduler.wait(PATIENCE_S)

    def runs(self, name: str | None = "nightly") -> list[Run]:
        """Its runs, the latest first."""
        with reading(self.engine).connect() as connection:
            return queries.list_runs(connection, name, limit=100)

    def run(self) -> Run:
        """Its one run."""
        (run,) = self.runs()
        return run

    def work(self, batch_id: str, *, failing: Collection[str] = (), reused: Collection[str] = ()) -> None:
        """Let every job of a batch end, and the batch with them."""
        with self.engine.begin() as connection:
            batch = queries.read_batch(connection, batch_id)
            assert batch is not None
            queries.dispatch(connection, batch_id, 1000)
            given = {"revision": batch.revision, "numerics": batch.numerics, "worker_id": "w", "limit": 1000}
            unit = queries.claim(connection, Stage.ENCODE, **given)
            queries.fail(
                connection,
                Stage.ENCODE,
                [Failed(job.id, job.attempt, 0.1, "image_missing", "gone") for job in unit if job.custom_id in failing],
            )
            queries.succeed(
                connection,
                Stage.ENCODE,
                [
                    Finished(job.id, job.attempt, 0.1, "/x.png", "sha", reused=int(job.custom_id in reused))
                    for job in unit
                    if job.custom_id not in failing
                ],
            )
            assert queries.close_batch(connection, batch_id, reopened=batch.reopened)

    def lines(self, batch_id: str) -> list[str]:
        """The custom_ids of a batch's jobs."""
        with reading(self.engine).connect() as connection:
            statement = select(jobs.c.custom_id).where(jobs.c.batch_id == batch_id).order_by(jobs.c.line)
            return list(connection.execute(statement).scalars())

    def let_lease_end(self) -> None:
        """Let whoever makes a batch have been silent for too long."""
        with self.engine.begin() as connection:
            starting = schedule_runs.c.state == RunState.STARTING
            connection.execute(update(schedule_runs).where(starting).values(lease_until=now() - 1))


def make_checkpoint(folder: Path) -> Path:
    """A checkpoint as the control plane reads it."""
    checkpoint = folder / "checkpoint"
    for part in PARTS:
        (checkpoint / part).mkdir(parents=True, exist_ok=True)
        (checkpoint / part / "config.json").write_text("{}")
    (checkpoint / "model_index.json").write_text("{}")
    (checkpoint / "kontext.json").write_text('{"area_px": 4096, "steps": 2}')
    return checkpoint
