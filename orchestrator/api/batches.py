"""Batches: list, look, wait for a change; pause, resume, cancel, retry, re-prioritise, delete.

Owns the routes. What each change means is `orchestrator.control`'s.
"""

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import Header, Path, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, Field

from orchestrator import control
from orchestrator.api import audit
from orchestrator.api.access import Admin, Reader, Submitter, open_router
from orchestrator.api.cursors import After, read_cursor, write_cursor
from orchestrator.api.problems import Problem
from orchestrator.api.resources import Open, Resources
from orchestrator.api.shapes import BatchShape, Page, batch_etag, batch_shape
from orchestrator.api.texts import Storable
from orchestrator.api.watcher import Standing, Watcher
from orchestrator.control import Change
from orchestrator.progress import batch_rate_per_s
from orchestrator.state import queries
from orchestrator.state.database import reading
from orchestrator.state.queries import Batch, BatchCounts
from orchestrator.state.transitions import BatchStatus, JobState
from orchestrator.tallies import Tallies

WAIT_MAX_S = 60
router = open_router(prefix="/v1/batches", tags=["batches"])
BatchId = Annotated[str, Path(max_length=100, examples=["20261125-1f2e3d4c"])]
Limit = Annotated[int, Query(ge=1, le=1000)]


class Patch(BaseModel):
    """What may be changed of a batch."""

    model_config = {"extra": "forbid"}
    priority: int = Field(ge=-100, le=100, examples=[5])


class Retry(BaseModel):
    """Which ended jobs to try again; all given conditions must hold."""

    model_config = {"extra": "forbid"}
    states: list[JobState] = Field([JobState.FAILED], min_length=1, max_length=6, examples=[["failed"]])
    codes: list[Storable] = Field([], max_length=100, examples=[["unavailable"]])
    lines: list[Annotated[int, Field(ge=1, le=2**53)]] = Field([], max_length=10_000, examples=[[]])


class Changed(BaseModel):
    """How a batch stands after a change, and how many jobs the change moved."""

    batch: BatchShape
    changed: bool
    jobs: int = Field(examples=[17])
    bad_rows: int = Field(0, description="failed rows that no retry can mend")


@router.get("", response_model=Page[BatchShape])
def list_batches(
    _: Reader,
    opened: Open,
    status: Annotated[list[BatchStatus] | None, Query()] = None,
    limit: Limit = 20,
    after: After = None,
) -> Page[BatchShape]:
    """The newest batches, in pages."""
    key = read_cursor(after, float, str)
    with reading(opened.engine).connect() as connection:
        found = queries.list_batches(connection, limit=limit + 1, statuses=status or (), before=key)
    page = found[:limit]
    counts = opened.service(Tallies).counts_of(page)
    more = len(found) > limit
    return Page(
        data=[batch_shape(batch, counts[batch.id]) for batch in page],
        has_more=more,
        next=write_cursor(page[-1].created_at, page[-1].id) if more else None,
    )


@router.get("/{batch_id}", response_model=BatchShape, responses={304: {"description": "it stands as the ETag says"}})
async def get_batch(
    _: Reader,
    opened: Open,
    request: Request,
    response: Response,
    batch_id: BatchId,
    wait: Annotated[int, Query(ge=0, le=WAIT_MAX_S, description="seconds to wait for a change")] = 0,
    seconds: Annotated[bool, Query(description="also tell what its stages took, which reads all of its jobs")] = False,
    if_none_match: Annotated[str | None, Header(max_length=200, examples=['"5d0c3e9b7f2a4c1e8b6d0f3a"'])] = None,
) -> Any:
    """One batch. With `If-None-Match` and `wait`, the answer comes once something changes; 304 when nothing did."""
    watcher = opened.service(Watcher)
    known = None if if_none_match is None else if_none_match.strip().removeprefix("W/")
    shape: BatchShape | None = None
    if wait and known is not None and watcher.sees(batch_id):
        etag = known  # who polls a batch that others wait for costs SQL nothing of its own
    else:
        etag, shape = await run_in_threadpool(_look, opened, batch_id, seconds)
    if wait and known in (None, etag):
        standing = await watcher.await_change(batch_id, etag, wait)
        if standing is not None and not seconds:
            body = await watcher.tell(standing, lambda seen: _tell_standing(opened, seen))
            return Response(body, media_type="application/json", headers=_headers(standing.etag))
        etag, shape = await run_in_threadpool(_look, opened, batch_id, seconds)
    if known == etag:
        return Response(status_code=304, headers=_headers(etag))
    response.headers.update(_headers(etag))
    return shape


@router.patch("/{batch_id}", response_model=Changed)
def patch_batch(caller: Submitter, opened: Open, batch_id: BatchId, patch: Patch) -> Changed:
    """Change a batch's priority, also of its jobs that are queued already."""
    noted = audit.line(caller, "batch.priority")
    return _tell(opened, control.set_priority(opened.engine, batch_id, patch.priority, note=noted))


def _route(name: str, ask: Callable[..., Change], summary: str) -> None:
    @router.post(f"/{{batch_id}}/{name}", response_model=Changed, summary=summary, name=f"{name}_batch")
    def answer(caller: Submitter, opened: Open, batch_id: BatchId) -> Changed:
        return _tell(opened, ask(opened.engine, batch_id, note=audit.line(caller, f"batch.{name}")))


_route("pause", control.pause, "Claim nothing more of a batch; what is running ends its stage")
_route("resume", control.resume, "Go on with a paused batch")
_route("cancel", control.cancel, "End a batch early; what succeeded stays, with a manifest")


@router.post("/{batch_id}/retry", response_model=Changed)
def retry_batch(caller: Submitter, opened: Open, batch_id: BatchId, asked: Retry | None = None) -> Changed:
    """Try failed or cancelled jobs again, in the same batch; one that had ended runs again."""
    asked = asked or Retry()
    wrong = set(asked.states) - {JobState.FAILED, JobState.CANCELLED}
    if wrong:
        raise Problem(422, "bad_state", f"states: only failed and cancelled jobs can be tried again, not {min(wrong)}")
    noted = audit.line(caller, "batch.retry", **asked.model_dump(mode="json"))
    return _tell(opened, control.retry(opened.engine, batch_id, asked.states, asked.codes, asked.lines, note=noted))


@router.delete("/{batch_id}", status_code=204, response_class=Response)
def delete_batch(caller: Admin, opened: Open, batch_id: BatchId) -> Response:
    """Forget an ended batch: its rows go, its pictures and manifest stay, since other batches may have reused them."""
    control.delete(opened.engine, batch_id, note=audit.line(caller, "batch.delete"))
    return Response(status_code=204)


def find_batch(opened: Resources, batch_id: str) -> Batch:
    """One batch. Raises Problem 404 when there is none of that id."""
    with reading(opened.engine).connect() as connection:
        batch = queries.read_batch(connection, batch_id)
    if batch is None:
        raise Problem(404, "not_found", f"there is no batch {batch_id!r}")
    return batch


def _look(opened: Resources, batch_id: str, seconds: bool) -> tuple[str, BatchShape]:
    batch = find_batch(opened, batch_id)
    counts = opened.service(Tallies).counts(batch)
    return batch_etag(batch, counts), _shape(opened, batch, counts, seconds)


def _tell_standing(opened: Resources, standing: Standing) -> str:
    return _shape(opened, standing.batch, standing.counts, False).model_dump_json()


def _headers(etag: str) -> dict[str, str]:
    return {"etag": etag, "cache-control": "private, no-cache"}


def _shape(opened: Resources, batch: Batch, counts: BatchCounts, seconds: bool) -> BatchShape:
    """A batch with what failed, how fast it goes and, with `seconds`, what its stages took."""
    rate = None
    with reading(opened.engine).connect() as connection:
        failures = queries.failures_grouped(connection, batch_id=batch.id) if counts.failed else []
        if batch.status == BatchStatus.RUNNING and counts.ended < counts.total:
            rate = batch_rate_per_s(connection, batch, queries.read_clock(connection))
        took = queries.stage_seconds(connection, batch.id) if seconds else None
    return batch_shape(batch, counts, failures, rate, took)


def _tell(opened: Resources, change: Change) -> Changed:
    counts = opened.service(Tallies).counts(change.batch)
    return Changed(
        batch=batch_shape(change.batch, counts), changed=change.changed, jobs=change.jobs, bad_rows=change.bad_rows
    )
