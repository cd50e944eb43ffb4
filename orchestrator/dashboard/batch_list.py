"""The list of batches: the newest first, by status and by a part of their name."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Query, Request, Response

from orchestrator.api.access import Reader
from orchestrator.api.cursors import read_cursor, write_cursor
from orchestrator.dashboard.listing import BatchRow, Pages, Tab, batch_row
from orchestrator.dashboard.page import page_router, query_of, render
from orchestrator.dashboard.services import Services
from orchestrator.state import queries
from orchestrator.state.database import reading, storable
from orchestrator.state.transitions import OPEN_BATCH, BatchStatus

router = page_router()
PAGE_BATCHES = 20
TABS: tuple[tuple[str, str, tuple[BatchStatus, ...]], ...] = (
    ("All", "", ()), ("Open", "open", OPEN_BATCH), ("Paused", "paused", (BatchStatus.PAUSED,)),
    ("Completed", "completed", (BatchStatus.COMPLETED,)), ("Cancelled", "cancelled", (BatchStatus.CANCELLED,)),
    ("Failed", "failed", (BatchStatus.FAILED,)),
)  # fmt: skip


@dataclass(frozen=True)
class BatchList:
    """All that the page shows."""

    now: float
    tabs: tuple[Tab, ...]
    status: str
    text: str
    filtered: bool
    rows: tuple[BatchRow, ...]
    pages: Pages


@router.get("/batches")
def show_batches(
    caller: Reader,
    request: Request,
    kept: Services,
    status: Annotated[str, Query(max_length=20)] = "",
    q: Annotated[str, Query(max_length=200)] = "",
    before: Annotated[str, Query(max_length=200)] = "",
) -> Response:
    """A page of the batches that match."""
    text = storable(q.strip())
    statuses = next((statuses for _, name, statuses in TABS if name == status), ())
    with reading(kept.opened.engine).connect() as connection:
        now_s = queries.read_clock(connection)
        found = queries.list_batches(
            connection,
            limit=PAGE_BATCHES + 1,
            statuses=statuses,
            text=text,
            before=read_cursor(before or None, float, str),
        )
        shown = found[:PAGE_BATCHES]
    counts = kept.counts(shown)
    kept_filter = {"status": status, "q": text}
    last = write_cursor(shown[-1].created_at, shown[-1].id) if len(found) > PAGE_BATCHES else ""
    view = BatchList(
        now=now_s,
        tabs=tuple(
            Tab(name, f"/batches{query_of({'status': key, 'q': text})}", key == status) for name, key, _ in TABS
        ),
        status=status, text=text, filtered=bool(statuses or text or before),
        rows=tuple(batch_row(batch, counts[batch.id]) for batch in shown),
        pages=Pages(
            f"/batches{query_of(kept_filter)}" if before else "",
            f"/batches{query_of({**kept_filter, 'before': last})}" if last else "",
        ),
    )  # fmt: skip
    return render(request, caller, "batches.html", view)
