"""What became of a run's jobs, beside those of the run before it: the figures of its report."""

from sqlalchemy import Connection, case, func, select, tuple_

from orchestrator.state.queries.runs import Report, Run
from orchestrator.state.tables import batches, in_state, jobs, schedule_runs
from orchestrator.state.transitions import JobState


def count_outcomes(connection: Connection, run: Run) -> Report:
    """What became of the jobs of a run's batch, beside those of the latest run before it that had one."""
    before = (
        select(schedule_runs.c.batch_id)
        .join(batches, batches.c.id == schedule_runs.c.batch_id)
        .where(
            schedule_runs.c.schedule == run.schedule,
            tuple_(schedule_runs.c.fire_at, schedule_runs.c.id) < (run.fire_at, run.id),
        )
        .order_by(schedule_runs.c.fire_at.desc(), schedule_runs.c.id.desc())
        .limit(1)
    )
    batch_before = connection.execute(before).scalar_one_or_none()
    earlier = jobs.alias("earlier")
    known = (
        select(earlier.c.id)
        .where(
            earlier.c.batch_id == (batch_before or ""),
            earlier.c.custom_id == jobs.c.custom_id,
            earlier.c.recipe_id.is_not(None),
        )
        .exists()
    )
    kind = case((jobs.c.reused == 1, "reused"), (known, "changed"), else_="new")
    mine = jobs.c.batch_id == run.reserved_id
    made = select(kind.label("kind")).where(mine, in_state(JobState.SUCCEEDED), jobs.c.take == 1).subquery()
    kinds = select(made.c.kind, func.count()).group_by(made.c.kind)
    counts: dict[str, int] = dict(connection.execute(kinds).all())
    for state in (JobState.FAILED, JobState.CANCELLED):
        ended = select(func.count()).select_from(jobs).where(mine, in_state(state), jobs.c.take == 1)
        counts[state] = connection.execute(ended).scalar_one()
    named = {name: counts.get(name, 0) for name in ("new", "changed", "reused", "failed", "cancelled")}
    return Report(total=sum(named.values()), **named)
