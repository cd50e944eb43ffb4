"""The overview: whether all is well and why not, how fast it goes, what failed today, how the last nights went."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

from fastapi import Query, Request, Response

from orchestrator.api.access import Reader
from orchestrator.api.health import NotReady, check_broker
from orchestrator.dashboard import charts
from orchestrator.dashboard.figures import chart_ends
from orchestrator.dashboard.listing import BatchRow, batch_row
from orchestrator.dashboard.page import page_router, render
from orchestrator.dashboard.services import Kept, Services
from orchestrator.dashboard.wording import last_part, plural
from orchestrator.progress import batch_rate_per_s, rate_per_s, remaining_s
from orchestrator.redaction import redact
from orchestrator.state import queries
from orchestrator.state.database import reading
from orchestrator.state.queries import Batch, FailureGroup, Group, Worker
from orchestrator.state.transitions import BatchStatus, JobState, Stage

router = page_router()
DAY_S = 86_400.0
CHART_S, CHART_STEP_S = 3600.0, 60.0
ENDED = (BatchStatus.COMPLETED, BatchStatus.CANCELLED, BatchStatus.FAILED)
OPEN_SHOWN, NIGHTS_SHOWN, FAILURES_SHOWN = 8, 6, 8
# Bells come within a second; a queue that stands for so long is heard by nobody.
STANDING_S = 60.0


@dataclass(frozen=True)
class Health:
    """One word for how it goes: ok, warn or bad; and why."""

    level: str
    title: str
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True)
class Queue:
    """What waits at a stage, and who serves it."""

    stage: str
    queued: int
    running: int
    workers: int


@dataclass(frozen=True)
class Overview:
    """All that the page shows."""

    title: str
    now: float
    health: Health
    per_min: float
    to_do: int
    eta_s: float | None
    workers: int
    failed_today: int
    chart: charts.Throughput
    chart_span_s: float
    open: tuple[BatchRow, ...]
    queues: tuple[Queue, ...]
    failures: tuple[FailureGroup, ...]
    nights: tuple[BatchRow, ...]


@router.get("/")
def show_overview(
    caller: Reader, request: Request, kept: Services, part: Annotated[str, Query(max_length=10)] = ""
) -> Response:
    """The overview, or the part of it that changes by itself."""
    view = look(kept)
    return render(request, caller, "parts/overview_live.html" if part else "overview.html", view, part=part)


def look(kept: Kept) -> Overview:
    """How all of it stands."""
    with reading(kept.opened.engine).connect() as connection:
        now_s = queries.read_clock(connection)
        open_batches = queries.open_batches(connection)
        ended = queries.list_batches(connection, limit=NIGHTS_SHOWN, statuses=ENDED)
        # While something runs its rate counts from its beginning, as on the page of a batch.
        began_s = [begin for batch in open_batches if (begin := batch.resumed_at or batch.started_at) is not None]
        per_s = rate_per_s(connection, now_s, [min(began_s)] if began_s else ())
        rates = {batch.id: batch_rate_per_s(connection, batch, now_s) for batch in open_batches[:OPEN_SHOWN]}
        workers = queries.live_workers(connection, lease_s=kept.opened.settings.lease_s)
        depths = queries.stage_depths(connection)
        failures = queries.failures_grouped(connection, since=now_s - DAY_S)
        chart = chart_ends(connection, now_s - CHART_S, now_s, CHART_STEP_S)
        late = queries.units_queued(connection, older_than_s=STANDING_S, unit_size=1)
    counts = kept.counts([*open_batches, *ended])
    to_do = sum(counts[batch.id].total - counts[batch.id].ended for batch in open_batches)
    rows = [replace(batch_row(batch, counts[batch.id]), eta_s=remaining_s(counts[batch.id], rates.get(batch.id)))
            for batch in open_batches[:OPEN_SHOWN]]  # fmt: skip
    health = judge(_broker_problem(kept), workers, open_batches, to_do, count_standing(late, depths))
    share = f"{to_do:,} to do" if to_do else "nothing to do"
    return Overview(
        title=f"{share} · Kontext Batch", now=now_s, health=health, per_min=(per_s or 0.0) * 60, to_do=to_do,
        eta_s=to_do / per_s if per_s and to_do else None, workers=len(workers),
        failed_today=sum(group.count for group in failures), chart=chart, chart_span_s=CHART_S,
        open=tuple(rows), queues=_queues(depths, workers), failures=tuple(failures[:FAILURES_SHOWN]),
        nights=tuple(batch_row(batch, counts[batch.id]) for batch in ended),
    )  # fmt: skip


def judge(
    broker_problem: str | None, workers: Sequence[Worker], open_batches: Sequence[Batch], to_do: int, standing: int
) -> Health:
    """Whether all is well, and if not, why: what stops everything first."""
    bad = [broker_problem] if broker_problem else []
    running = [batch for batch in open_batches if batch.status == BatchStatus.RUNNING]
    if to_do and running and not workers:
        bad.append("no worker is alive, so nothing is made; start one: kontext worker --stages encode,sample,decode")
    missing = [stage.value for stage in Stage if workers and not any(stage in w.stages.split(",") for w in workers)]
    if running and missing:
        bad.append(f"no worker serves {' and '.join(missing)}")
    alive = {(worker.revision, worker.numerics) for worker in workers}
    orphans = [batch for batch in running if workers and (batch.revision, batch.numerics) not in alive]
    if orphans:
        bad.append(f"{plural(len(orphans), 'batch is', 'batches are')} pinned to a checkpoint that no worker holds")
    warn = [f"{last_part(batch.catalogue)} is paused: {redact(batch.reason or 'by request')}"
            for batch in open_batches if batch.status == BatchStatus.PAUSED]  # fmt: skip
    if standing and workers and not bad:
        warn.append(f"{plural(standing, 'job')} have waited in a queue for over a minute, and nothing is worked on")
    if bad:
        return Health("bad", "Work stands still" if to_do else "Something is wrong", tuple(bad + warn))
    if warn:
        return Health("warn", "Working, with something to look at" if running else "Nothing moves", tuple(warn))
    if running:
        return Health("ok", "All is well", (f"{plural(len(running), 'batch', 'batches')} running on "
                                            f"{plural(len(workers), 'worker')}",))  # fmt: skip
    return Health("ok", "All is well", ("nothing to do; a batch that is submitted starts at once",))


def count_standing(late: Mapping[Group, int], depths: Mapping[tuple[JobState, Stage], int]) -> int:
    """Jobs that wait in a queue unheard. While anything is worked on, waiting long is what a backlog does."""
    running = sum(count for (state, _), count in depths.items() if state is JobState.RUNNING)
    return 0 if running else sum(late.values())


def _broker_problem(kept: Kept) -> str | None:
    try:
        check_broker(kept.opened.broker)
    except NotReady as problem:
        return str(problem)
    return None


def _queues(depths: Mapping[tuple[JobState, Stage], int], workers: Sequence[Worker]) -> tuple[Queue, ...]:
    return tuple(
        Queue(
            stage, depths[JobState.QUEUED, stage], depths[JobState.RUNNING, stage],
            sum(stage in worker.stages.split(",") for worker in workers),
        )
        for stage in Stage
    )  # fmt: skip
