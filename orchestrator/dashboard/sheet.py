"""The contact sheet: source beside result, to be walked by keys, and what is decided of each picture."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Form, Path, Query, Request, Response
from sqlalchemy import RowMapping

from orchestrator import control, decisions
from orchestrator.api import audit
from orchestrator.api.access import Caller, Reader, Submitter, safe_target
from orchestrator.api.cursors import write_cursor
from orchestrator.api.problems import Problem
from orchestrator.dashboard.batch_list import Pages, Tab
from orchestrator.dashboard.batch_page import find_batch
from orchestrator.dashboard.job_card import JobCard, job_card
from orchestrator.dashboard.job_filter import Filter
from orchestrator.dashboard.page import page_router, query_of, redirect, render
from orchestrator.dashboard.services import Kept, Services
from orchestrator.dashboard.wording import last_part
from orchestrator.redaction import redact
from orchestrator.state import queries
from orchestrator.state.database import reading
from orchestrator.state.queries import UNDECIDED, pages
from orchestrator.state.transitions import Decision

router = page_router()
PAGE_FRAMES = 24
JobId = Annotated[int, Path(ge=1, le=2**63 - 1)]
Back = Annotated[str, Form(max_length=2000)]


@dataclass(frozen=True)
class Sheet:
    """All that the page shows."""

    id: str
    name: str
    tabs: tuple[Tab, ...]
    frames: tuple[JobCard, ...]
    pages: Pages
    empty_title: str
    empty_text: str
    empty_href: str
    empty_label: str


@router.get("/batches/{batch_id}/sheet")
def show_sheet(
    caller: Reader,
    request: Request,
    kept: Services,
    batch_id: str,
    filter_: Filter,
    show: Annotated[str, Query(max_length=20)] = "",
) -> Response:
    """A page of a batch's pictures, by decision."""
    base = f"/batches/{batch_id}/sheet"
    decision = show if show in (UNDECIDED, *Decision) else ""
    with reading(kept.opened.engine).connect() as connection:
        batch = find_batch(connection, batch_id)
        decided = queries.count_decisions(connection, batch.id)
        page = pages.list_pictures(connection, batch.id, decision, limit=PAGE_FRAMES, after=filter_.key())
    counts = kept.counts([batch])[batch.id]
    pictures = counts.succeeded + counts.pending + counts.queued + counts.running
    last = write_cursor(*page.after) if page.after else ""
    told = (
        ("All", "", pictures), ("Undecided", UNDECIDED, pictures - sum(decided.values())),
        ("Approved", "approved", decided.get("approved", 0)), ("Rejected", "rejected", decided.get("rejected", 0)),
    )  # fmt: skip
    view = Sheet(
        id=batch.id, name=last_part(redact(batch.catalogue)),
        tabs=tuple(Tab(name, base + query_of({"show": key}), key == decision, count, key or "all")
                   for name, key, count in told),
        frames=tuple(map(job_card, page.jobs)),
        pages=Pages(base + query_of({"show": decision}) if filter_.after else "",
                    base + query_of({"show": decision, "after": last}) if last else ""),
        empty_title="Nothing stands here" if decision else "No picture yet",
        empty_text="Pictures of this kind are shown here." if decision else "Pictures appear as they are made.",
        empty_href=base if decision else f"/batches/{batch.id}",
        empty_label="All pictures" if decision else "To the batch",
    )  # fmt: skip
    return render(request, caller, "sheet.html", view)


@router.get("/jobs/{job_id}/frame")
def show_frame(caller: Reader, request: Request, kept: Services, job_id: JobId) -> Response:
    """One frame of a sheet, as it stands now."""
    return _frame(caller, request, kept, job_id)


@router.post("/jobs/{job_id}/approve")
def approve(caller: Submitter, request: Request, kept: Services, job_id: JobId, back: Back = "") -> Response:
    """Approve a picture; once more takes that back."""
    return _decide(caller, request, kept, job_id, Decision.APPROVED, back)


@router.post("/jobs/{job_id}/reject")
def reject(caller: Submitter, request: Request, kept: Services, job_id: JobId, back: Back = "") -> Response:
    """Reject a picture; once more takes that back."""
    return _decide(caller, request, kept, job_id, Decision.REJECTED, back)


@router.post("/jobs/{job_id}/regenerate")
def regenerate(caller: Submitter, request: Request, kept: Services, job_id: JobId, back: Back = "") -> Response:
    """Ask for the next take of a job's row."""
    made = decisions.regenerate(kept.opened.engine, job_id)
    audit.note(kept.opened, caller, "job.regenerate", str(job_id), take=made.take, seed=made.seed, made=made.id)
    if "hx-request" in request.headers:
        return _frame(caller, request, kept, job_id, made.id)
    return redirect(f"/jobs/{made.id}", f"Take {made.take} is being made, with seed {made.seed}")


@router.post("/jobs/{job_id}/retry")
def retry(caller: Submitter, kept: Services, job_id: JobId, back: Back = "") -> Response:
    """Try one failed or cancelled job again."""
    job = _find(kept, job_id)
    change = control.retry_jobs(kept.opened.engine, job["batch_id"], [[job_id]])
    if not change.jobs:
        return redirect(back or f"/jobs/{job_id}", "This job cannot be tried again as it stands", bad=True)
    audit.note(kept.opened, caller, "job.retry", str(job_id), batch=job["batch_id"])
    return redirect(back or f"/jobs/{job_id}", "It is tried again")


def _decide(
    caller: Caller, request: Request, kept: Kept, job_id: int, decision: Decision, back: str
) -> Response:  # fmt: skip
    before = _find(kept, job_id)["decision"]
    wanted = None if before == decision else decision
    if decisions.decide(kept.opened.engine, job_id, wanted):
        audit.note(kept.opened, caller, f"job.{wanted or 'undecided'}", str(job_id))
    if "hx-request" in request.headers:
        return _frame(caller, request, kept, job_id)
    return redirect(safe_target(back or f"/jobs/{job_id}"), f"{wanted or 'undecided'}".capitalize())


def _frame(caller: Caller, request: Request, kept: Kept, *job_ids: int) -> Response:
    """The frames of these jobs, one after the other."""
    cards = [job_card(_find(kept, job_id)) for job_id in job_ids]
    return render(request, caller, "parts/frames.html", {"frames": cards}, part="frame")


def _find(kept: Kept, job_id: int) -> RowMapping:
    with reading(kept.opened.engine).connect() as connection:
        job = pages.read_job(connection, job_id)
    if job is None:
        raise Problem(404, "not_found", f"there is no job {job_id}")
    return job
