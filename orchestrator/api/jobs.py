"""Jobs: lists by filter, one with its way, its picture, what somebody decides of it, another take.

Owns the routes. Pictures are not copied through this process where the store can hand out addresses.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Annotated, Any, Literal

from fastapi import Path, Query, Response
from fastapi.responses import RedirectResponse, StreamingResponse
from pydantic import BaseModel, Field

from orchestrator import decisions, manifest
from orchestrator.api import audit
from orchestrator.api.access import Reader, Submitter, open_router
from orchestrator.api.batches import BatchId, Limit, find_batch
from orchestrator.api.cursors import After, read_cursor, write_cursor
from orchestrator.api.problems import Problem
from orchestrator.api.resources import Open, Resources
from orchestrator.api.shapes import JobDetail, JobShape, Page, job_detail, job_shape
from orchestrator.api.texts import Storable
from orchestrator.recipes import SEED_MAX
from orchestrator.state import queries
from orchestrator.state.database import reading
from orchestrator.state.queries import JobFilter, JobHistory
from orchestrator.state.transitions import Decision, JobState
from orchestrator.storage import open_object

PRESIGNED_S = 900
CHUNK_BYTES = 1 << 18
router = open_router(tags=["jobs"])
JobId = Annotated[int, Path(ge=1, le=2**53, examples=[4711])]
PICTURE: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "the picture",
        "content": {"image/png": {"schema": {"type": "string", "format": "binary"}, "example": "…"}},
    },
    302: {"description": "leads to the picture in the store, for a quarter of an hour"},
}


class Deciding(BaseModel):
    """What somebody thinks of a picture; null takes a decision back."""

    model_config = {"extra": "forbid"}
    decision: Decision | None = Field(examples=["approved"])


class DecidingMany(Deciding):
    """The same of many jobs of a batch; those without a picture are left."""

    ids: list[Annotated[int, Field(ge=1, le=2**53)]] = Field(max_length=10_000, examples=[[4711, 4712]])


class Regenerating(BaseModel):
    """Another take; without a seed, the next one above those the row has."""

    model_config = {"extra": "forbid"}
    seed: int | None = Field(None, ge=0, le=SEED_MAX, examples=[7])


class Decided(BaseModel):
    """How many jobs changed."""

    changed: int = Field(examples=[1])


class NewTakeShape(BaseModel):
    """The take that was asked for, a job of its own."""

    id: int = Field(examples=[4712])
    take: int = Field(examples=[2])
    seed: int = Field(examples=[8])


@router.get("/v1/batches/{batch_id}/jobs", response_model=Page[JobShape])
def list_jobs(
    _: Reader,
    opened: Open,
    batch_id: BatchId,
    state: Annotated[list[JobState] | None, Query()] = None,
    code: Annotated[list[Storable] | None, Query(max_length=20, examples=[["image_missing"]])] = None,
    text: Annotated[str, Query(max_length=200, description="looked for in custom_id, image and message")] = "",
    decision: Annotated[Literal["approved", "rejected", "none"] | None, Query()] = None,
    order: Annotated[Literal["line"] | None, Query(description="the catalogue's order, whatever is asked for")] = None,
    limit: Limit = 100,
    after: After = None,
) -> Page[JobShape]:
    """A batch's jobs in pages: in the catalogue's order, or in the order of work where states alone are asked for."""
    batch = find_batch(opened, batch_id)
    wanted = JobFilter(tuple(state or ()), tuple(code or ()), text.replace("\0", ""), decision, order == "line")
    key = read_cursor(after, int, int)
    with reading(opened.engine).connect() as connection:
        found = queries.list_jobs(connection, batch_id, wanted, limit=limit, after=key)
    return Page(
        data=[job_shape(job, batch.revision) for job in found.jobs],
        has_more=found.after is not None,
        next=write_cursor(*found.after) if found.after else None,
    )


@router.get("/v1/jobs/{job_id}", response_model=JobDetail)
def get_job(_: Reader, opened: Open, job_id: JobId) -> JobDetail:
    """One job with its recipe, stages, attempts and takes."""
    history = _find(opened, job_id)
    with reading(opened.engine).connect() as connection:
        batch = queries.read_batch(connection, history.job["batch_id"])
        recipe = history.job["recipe_id"] and queries.read_recipe(connection, history.job["recipe_id"])
    return job_detail(history, batch.revision if batch else "", recipe, manifest.read_given(history.job))


@router.get("/v1/jobs/{job_id}/result", response_class=Response, responses=PICTURE)
def get_result(
    _: Reader,
    opened: Open,
    job_id: JobId,
    redirect: Annotated[bool, Query(description="false: the bytes, for callers whom the store does not reach")] = True,
) -> Response:
    """The picture: an address in the store that holds for a quarter of an hour, or its bytes."""
    job = _find(opened, job_id).job
    if not job["result"]:
        raise Problem(404, "no_result", f"job {job_id} is {job['state']}; only a succeeded job has a picture")
    return serve_object(opened, job["result"], etag=job["sha256"], redirect=redirect)


@router.post("/v1/jobs/{job_id}/decision", response_model=Decided)
def decide(caller: Submitter, opened: Open, job_id: JobId, asked: Deciding) -> Decided:
    """Approve or reject a picture, or take that back. Of a row's takes one at most is approved."""
    _find(opened, job_id)
    noted = audit.line(caller, "job.decide", decision=asked.decision)
    changed = decisions.decide(opened.engine, job_id, asked.decision, note=noted)
    return Decided(changed=int(changed))


@router.post("/v1/batches/{batch_id}/decisions", response_model=Decided)
def decide_many(caller: Submitter, opened: Open, batch_id: BatchId, asked: DecidingMany) -> Decided:
    """Approve or reject many pictures of a batch at once."""
    find_batch(opened, batch_id)
    noted = audit.line(caller, "batch.decide", decision=asked.decision)
    changed = decisions.decide_all(opened.engine, batch_id, asked.ids, asked.decision, note=noted)
    return Decided(changed=changed)


@router.post("/v1/jobs/{job_id}/regenerate", response_model=NewTakeShape, status_code=202)
def regenerate(caller: Submitter, opened: Open, job_id: JobId, asked: Regenerating | None = None) -> NewTakeShape:
    """Ask for another take beside this one, with its own seed; the batch runs again if it had ended."""
    _find(opened, job_id)
    noted = audit.line(caller, "job.regenerate")
    made = decisions.regenerate(opened.engine, job_id, asked.seed if asked else None, note=noted)
    return NewTakeShape(**vars(made))


def serve_object(
    opened: Resources, uri: str, *, etag: str | None, media_type: str = "image/png", redirect: bool = True
) -> Response:
    """An object of a store: by an address where the store gives one, else its bytes. Raises StorageError."""
    store, key = open_object(uri, opened.settings)
    address = store.presign(key, PRESIGNED_S) if redirect else None
    if address is not None:
        headers = {"cache-control": f"private, max-age={PRESIGNED_S // 2}"}
        return RedirectResponse(address, status_code=302, headers=headers)
    held = ExitStack()
    stream = held.enter_context(store.open(key))

    def read() -> Iterator[bytes]:
        with held:
            while chunk := stream.read(CHUNK_BYTES):
                yield chunk

    headers = {"cache-control": "private, max-age=3600"} | ({"etag": f'"{etag}"'} if etag else {})
    return StreamingResponse(read(), media_type=media_type, headers=headers)


def _find(opened: Resources, job_id: int) -> JobHistory:
    with reading(opened.engine).connect() as connection:
        history = queries.job_history(connection, job_id)
    if history is None:
        raise Problem(404, "not_found", f"there is no job {job_id}")
    return history
