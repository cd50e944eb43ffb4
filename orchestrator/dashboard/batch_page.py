"""One batch: its progress, rate and failures, live; its jobs, filtered and page by page; the list as CSV."""

import csv
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Query, Request, Response
from fastapi.responses import StreamingResponse
from sqlalchemy import Connection

from orchestrator.api.access import Reader
from orchestrator.api.cursors import write_cursor
from orchestrator.dashboard import charts
from orchestrator.dashboard.figures import BatchEnds
from orchestrator.dashboard.finding import find_batch
from orchestrator.dashboard.job_card import JobCard, job_card
from orchestrator.dashboard.job_filter import Filter, UrlFilter
from orchestrator.dashboard.listing import Pages, Tab
from orchestrator.dashboard.page import page_router, render
from orchestrator.dashboard.services import Kept, Services
from orchestrator.dashboard.wording import last_part, plural, share
from orchestrator.manifest import describe
from orchestrator.progress import batch_rate_per_s, remaining_s
from orchestrator.redaction import redact, redact_cell
from orchestrator.state import queries
from orchestrator.state.database import reading
from orchestrator.state.queries import Batch, BatchCounts, JobPage, pages
from orchestrator.state.transitions import JobState

router = page_router()
PAGE_JOBS = 50
# Of a batch that ran for weeks, the chart shows so many intervals.
CHART_COLUMNS = 60
# A column tells of so many jobs, or the rhythm of units would make a comb of it.
COLUMN_JOBS, LEAST_COLUMNS = 5, 6
CSV_COLUMNS = (
    "custom_id", "line", "take", "state", "decision", "code", "message", "result", "sha256", "seed", "attempts",
    "seconds", "reused", "image",
)  # fmt: skip


@dataclass(frozen=True)
class Group:
    """Failures of one code, and whether trying again can help."""

    code: str
    message: str
    count: int
    can_retry: bool


@dataclass(frozen=True)
class BatchView:
    """All that the page shows."""

    title: str
    now: float
    id: str
    name: str
    status: str
    open: bool
    reason: str | None
    counts: BatchCounts
    per_min: float | None
    eta_s: float | None
    took_s: float | None
    approved: int
    rejected: int
    chart: charts.Throughput | None
    facts: tuple[tuple[str, str | float], ...]
    failures: tuple[Group, ...]
    filter: UrlFilter
    query: str
    without_code: str
    tabs: tuple[Tab, ...]
    jobs: tuple[JobCard, ...]
    pages: Pages


@router.get("/batches/{batch_id}")
def show_batch(
    caller: Reader,
    request: Request,
    kept: Services,
    batch_id: str,
    filter_: Filter,
    part: Annotated[str, Query(max_length=10)] = "",
) -> Response:
    """A batch, or one of the two parts of it that change by themselves."""
    template = {"live": "parts/batch_live.html", "jobs": "parts/batch_jobs.html"}.get(part, "batch.html")
    view = look(kept, batch_id, filter_, live=part != "jobs", jobs=part != "live")
    return render(request, caller, template, view, part=part)


@router.get("/batches/{batch_id}/jobs.csv")
def export_jobs(_: Reader, kept: Services, batch_id: str, filter_: Filter) -> Response:
    """The jobs that match as CSV, streamed."""
    with reading(kept.opened.engine).connect() as connection:
        batch = find_batch(connection, batch_id)
    name = f"{batch.id}{'-' + filter_.state if filter_.state else ''}.csv"
    headers = {"content-disposition": f'attachment; filename="{name}"'}
    return StreamingResponse(_csv(kept, batch, filter_), media_type="text/csv; charset=utf-8", headers=headers)


def look(kept: Kept, batch_id: str, filter_: UrlFilter, *, live: bool = True, jobs: bool = True) -> BatchView:
    """How a batch stands. Raises BatchError. What a part does not show is not read."""
    with reading(kept.opened.engine).connect() as connection:
        # The status first: counts read after the end are final.
        batch = find_batch(connection, batch_id)
        now_s = queries.read_clock(connection)
        page = (
            queries.list_jobs(connection, batch.id, filter_.wanted, limit=PAGE_JOBS, after=filter_.key())
            if jobs
            else JobPage([], None)
        )
        decisions: Mapping[str, int] = queries.count_decisions(connection, batch.id) if live else {}
        failures = _failures(connection, batch.id) if live else ()
    # A request holds one connection at a time, and counting takes its own.
    counts = kept.counts([batch])[batch.id]
    chart, per_s = _tempo(kept, batch, now_s, counts.ended) if live else (None, None)
    took_s = batch.ended_at - batch.started_at if batch.ended_at and batch.started_at else None
    # One that was reopened stood still in between: its whole time tells no rate.
    if took_s and not batch.reopened and counts.succeeded > counts.reused:
        per_s = (counts.succeeded - counts.reused) / max(took_s, 1.0)
    last = write_cursor(*page.after) if page.after else ""
    name = last_part(redact(batch.catalogue))
    base = f"/batches/{batch.id}"
    told = share(counts.ended, counts.total) if batch.ended_at is None else f"{batch.status}:"
    first, after = base + filter_.query() + "#jobs", base + filter_.query(after=last) + "#jobs"
    return BatchView(
        title=f"{told} {name} · Kontext Batch",
        now=now_s, id=batch.id, name=name, status=batch.status, open=batch.ended_at is None,
        reason=redact(batch.reason) if batch.reason else None, counts=counts,
        per_min=per_s * 60 if per_s else None, eta_s=remaining_s(counts, per_s), took_s=took_s,
        approved=decisions.get("approved", 0), rejected=decisions.get("rejected", 0), chart=chart,
        facts=_facts(batch), failures=failures, filter=filter_,
        query=filter_.query(after=filter_.after), without_code=base + filter_.query(code="", state=""),
        tabs=_tabs(base, filter_, counts), jobs=tuple(map(job_card, page.jobs)),
        pages=Pages(first if filter_.after else "", after if last else ""),
    )  # fmt: skip


def _failures(connection: Connection, batch_id: str) -> tuple[Group, ...]:
    """Failures by code. Codes of bad rows are their own: one example tells whether trying again can help."""
    found = queries.failures_grouped(connection, batch_id=batch_id)
    good = pages.good_rows(connection, [group.job_id for group in found if group.job_id is not None])
    return tuple(Group(group.code, group.message or "", group.count, group.job_id in good) for group in found)


def _tabs(base: str, filter_: UrlFilter, counts: BatchCounts) -> tuple[Tab, ...]:
    """All, and each state that there is."""
    found = [Tab("All", base + filter_.query(state="", code=""), not filter_.state, counts.total)]
    for state in charts.ORDER:
        count = getattr(counts, state)
        if count or filter_.state == state:
            href = base + filter_.query(state=state, code=filter_.code if state == JobState.FAILED else "")
            found.append(Tab(state.value.capitalize(), href, filter_.state == state, count))
    return tuple(found)


def _facts(batch: Batch) -> tuple[tuple[str, str | float], ...]:
    """What was asked, and where it lies; a number is a moment."""
    asked = {name: redact(str(value)) for name, value in batch.options.items() if name != "lora_sha256"}
    prompt = asked.pop("prompt", None)
    found: dict[str, str | float] = {
        "Catalogue": redact(batch.catalogue), "Results": redact(batch.results_uri),
        **({"Prompt": prompt[:300]} if prompt else {}),
        **{name.replace("_", " ").capitalize(): value for name, value in asked.items()},
        "Priority": str(batch.priority), "Checkpoint": batch.revision[:12], "Numerics": batch.numerics,
        "Made": batch.created_at,
        **({"Deadline": batch.deadline_at} if batch.deadline_at else {}),
        **({"Asked again": plural(batch.reopened, "time")} if batch.reopened else {}),
    }  # fmt: skip
    return tuple(found.items())


def _tempo(
    kept: Kept, batch: Batch, now_s: float, ended: int
) -> tuple[charts.Throughput | None, float | None]:  # fmt: skip
    """What ended when, and jobs a second; None while nothing has ended, and no rate where the batch has."""
    with reading(kept.opened.engine).connect() as connection:
        chart = _chart(kept, connection, batch, now_s, ended)
        return chart, batch_rate_per_s(connection, batch, now_s) if batch.ended_at is None else None


def _chart(
    kept: Kept, connection: Connection, batch: Batch, now_s: float, ended: int
) -> charts.Throughput | None:  # fmt: skip
    """From its start to its end, or to now; None while nothing has ended."""
    from_s, to_s = batch.started_at or batch.created_at, min(batch.ended_at or now_s, now_s)
    most = min(CHART_COLUMNS, max(LEAST_COLUMNS, ended // COLUMN_JOBS))
    step_s = charts.choose_step(max(1.0, to_s - from_s), most)
    found = kept.opened.service(BatchEnds).chart(connection, batch, to_s, step_s)
    return found if found.columns else None


def _csv(kept: Kept, batch: Batch, filter_: UrlFilter) -> Iterator[str]:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, CSV_COLUMNS, extrasaction="ignore")
    writer.writeheader()
    after: tuple[int, int] | None = None
    while True:
        with reading(kept.opened.engine).connect() as connection:
            page = queries.list_jobs(connection, batch.id, filter_.wanted, limit=1000, after=after)
        for row in page.jobs:
            writer.writerow(_cells(describe(row, batch.revision)))
        yield stream.getvalue()
        stream.seek(0)
        stream.truncate()
        after = page.after
        if after is None:
            return


def _cells(told: Mapping[str, Any]) -> dict[str, Any]:
    """Texts that a spreadsheet would run as a formula are quoted."""
    cells = {name: "" if value is None else value for name, value in told.items()}
    return {
        name: f"'{value}"
        if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t")
        else redact_cell(value)
        if isinstance(value, str)
        else value
        for name, value in cells.items()
    }
