"""The contact sheet: source beside result, to be walked by keys, and what is decided of each picture."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from fastapi import Form, Query, Request, Response

from orchestrator import control, decisions
from orchestrator.api import audit
from orchestrator.api.access import Caller, Reader, Submitter, safe_target
from orchestrator.api.cursors import write_cursor
from orchestrator.dashboard.finding import JobId, find_batch, find_job
from orchestrator.dashboard.job_card import JobCard, job_card
from orchestrator.dashboard.job_filter import Filter
from orchestrator.dashboard.listing import Pages, Tab
from orchestrator.dashboard.page import page_router, query_of, redirect, render
from orchestrator.dashboard.services import Kept, Services
from orchestrator.dashboard.wording import last_part
from orchestrator.redaction import redact
from orchestrator.state import queries
from orchestrator.state.database import reading
from orchestrator.state.queries import UNDECIDED, BatchCounts, JobPage, pages
from orchestrator.state.transitions import Decision

router = page_router()
PAGE_FRAMES = 24
# What a page holds at once: its frames, and the takes that were asked for since.
MOST_SEEN = 500
Seen = Annotated[str, Query(pattern=r"^[0-9]{1,18}:", max_length=100)]
Back = Annotated[str, Form(max_length=2000)]


@dataclass(frozen=True)
class Sheet:
    """All that the page shows; `show` is the decision it is narrowed to."""

    id: str
    name: str
    show: str
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
    part: Annotated[str, Query(max_length=10)] = "",
    seen: Annotated[list[Seen] | None, Query(max_length=MOST_SEEN)] = None,
) -> Response:
    """A page of a batch's pictures, by decision; as a part, what of those `seen` looks otherwise by now.

    A frame stays on the page that somebody walks through also when it no longer belongs to it.
    """
    base = f"/batches/{batch_id}/sheet"
    show = show if show in (UNDECIDED, *Decision) else ""
    with reading(kept.opened.engine).connect() as connection:
        batch = find_batch(connection, batch_id)
        decided = queries.count_decisions(connection, batch.id)
        if part:
            page = JobPage(pages.read_jobs(connection, batch.id, _ids(seen or ())), None)
        else:
            page = pages.list_pictures(connection, batch.id, show, limit=PAGE_FRAMES, after=filter_.key())
    cards = map(job_card, page.jobs)
    last = write_cursor(*page.after) if page.after else ""
    view = Sheet(
        id=batch.id, name=last_part(redact(batch.catalogue)), show=show,
        tabs=_tabs(base, show, kept.counts([batch])[batch.id], decided),
        frames=tuple(card for card in cards if card.mark not in (seen or ())),
        pages=Pages(base + query_of({"show": show}) if filter_.after else "",
                    base + query_of({"show": show, "after": last}) if last else ""),
        empty_title="Nothing stands here" if show else "No picture yet",
        empty_text="Pictures of this kind are shown here." if show else "Pictures appear as they are made.",
        empty_href=base if show else f"/batches/{batch.id}",
        empty_label="All pictures" if show else "To the batch",
    )  # fmt: skip
    return render(request, caller, "parts/sheet_live.html" if part else "sheet.html", view, part=part)


def _tabs(base: str, show: str, counts: BatchCounts, decided: Mapping[str, int]) -> tuple[Tab, ...]:
    """All pictures, and each decision, with how many there are."""
    pictures = counts.succeeded + counts.pending + counts.queued + counts.running
    told = (
        ("All", "", pictures), ("Undecided", UNDECIDED, pictures - sum(decided.values())),
        ("Approved", "approved", decided.get("approved", 0)), ("Rejected", "rejected", decided.get("rejected", 0)),
    )  # fmt: skip
    return tuple(Tab(name, base + query_of({"show": key}), key == show, count, key or "all")
                 for name, key, count in told)  # fmt: skip


def _ids(seen: Sequence[str]) -> list[int]:
    return [int(mark.partition(":")[0]) for mark in seen]


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
    made = decisions.regenerate(kept.opened.engine, job_id, note=audit.line(caller, "job.regenerate"))
    if "hx-request" in request.headers:
        return _frame(caller, request, kept, job_id, made.id)
    return redirect(f"/jobs/{made.id}", f"Take {made.take} is being made, with seed {made.seed}")


@router.post("/jobs/{job_id}/retry")
def retry(caller: Submitter, kept: Services, job_id: JobId, back: Back = "") -> Response:
    """Try one failed or cancelled job again."""
    job = find_job(kept, job_id)
    noted = audit.line(caller, "job.retry", job=job_id)
    change = control.retry_jobs(kept.opened.engine, job["batch_id"], [[job_id]], note=noted)
    if not change.jobs:
        return redirect(back or f"/jobs/{job_id}", "This job cannot be tried again as it stands", bad=True)
    return redirect(back or f"/jobs/{job_id}", "It is tried again")


def _decide(
    caller: Caller, request: Request, kept: Kept, job_id: int, decision: Decision, back: str
) -> Response:  # fmt: skip
    before = find_job(kept, job_id)["decision"]
    wanted = None if before == decision else decision
    decisions.decide(kept.opened.engine, job_id, wanted, note=audit.line(caller, f"job.{wanted or 'undecided'}"))
    if "hx-request" in request.headers:
        return _frame(caller, request, kept, job_id)
    return redirect(safe_target(back or f"/jobs/{job_id}"), f"{wanted or 'undecided'}".capitalize())


def _frame(caller: Caller, request: Request, kept: Kept, *job_ids: int) -> Response:
    """The frames of these jobs, one after the other."""
    cards = [job_card(find_job(kept, job_id)) for job_id in job_ids]
    return render(request, caller, "parts/frames.html", {"frames": cards}, part="frame")
