"""Pictures of jobs: thumbnails with an entity tag, and the result as it was stored."""

from collections.abc import Callable
from typing import Annotated

from fastapi import Path, Query, Request, Response
from sqlalchemy import RowMapping

from orchestrator.api.access import Reader
from orchestrator.api.problems import Problem
from orchestrator.dashboard.page import page_router, render
from orchestrator.dashboard.services import Kept, Services
from orchestrator.dashboard.thumbnails import WIDTHS_PX, NoThumbnail, shrink
from orchestrator.state import queries
from orchestrator.state.database import reading
from orchestrator.state.queries import pages
from orchestrator.storage import ObjectMissing, StorageError, open_object, open_store, previews_key

router = page_router()
WEBP, PNG, SVG = "image/webp", "image/png", "image/svg+xml"
STRIP_PX = 2_048
ABSENT = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 96 96"><g fill="none" stroke="#8d8c86" stroke-width="3">'
    '<rect x="26" y="30" width="44" height="36" rx="4"/><path d="M22 72 74 24"/></g></svg>'
)
# A result never changes; of a source only its content's name does, once a worker has read it.
KEEP = "private, max-age=86400"
ASK_AGAIN = "private, no-cache"
JobId = Annotated[int, Path(ge=1, le=2**63 - 1)]
Width = Annotated[int, Query(alias="w", ge=1, le=WIDTHS_PX[-1])]


@router.get("/jobs/{job_id}/result.webp")
def show_result(_: Reader, request: Request, kept: Services, job_id: JobId, width_px: Width = WIDTHS_PX[0]) -> Response:
    """The thumbnail of a job's result, at the next of the widths there are."""
    job = _find(kept, job_id)
    if job["result"] is None:
        raise Problem(404, "no_picture", f"job {job_id} has no result")
    width_px = _round_up(width_px)
    tag = kept.thumbnails.tag(job["sha256"], width_px)
    if (unchanged := _unchanged(request, tag, KEEP)) is not None:
        return unchanged
    return _answer(lambda: kept.thumbnails.result(job["result"], job["sha256"], width_px), tag, KEEP)


@router.get("/jobs/{job_id}/source.webp")
def show_source(_: Reader, request: Request, kept: Services, job_id: JobId, width_px: Width = WIDTHS_PX[0]) -> Response:
    """The thumbnail of a job's source, at the next of the widths there are."""
    job = _find(kept, job_id)
    if job["image"] is None:
        raise Problem(404, "no_picture", f"job {job_id} names no image")
    with reading(kept.opened.engine).connect() as connection:
        batch = queries.read_batch(connection, job["batch_id"])
    assert batch is not None
    width_px = _round_up(width_px)
    known = job["image_sha256"] is not None
    content = job["image_sha256"] or f"{batch.image_root}\n{job['image']}"
    tag, caching = kept.thumbnails.tag(content, width_px), KEEP if known else ASK_AGAIN
    if (unchanged := _unchanged(request, tag, caching)) is not None:
        return unchanged
    return _answer(
        lambda: kept.thumbnails.source(job["image"], batch.image_root, content, width_px), tag, caching
    )  # fmt: skip


@router.get("/jobs/{job_id}/result.png")
def download_result(_: Reader, kept: Services, job_id: JobId) -> Response:
    """The result as it was stored, under its own name."""
    job = _find(kept, job_id)
    if job["result"] is None:
        raise Problem(404, "no_picture", f"job {job_id} has no result")
    store, key = open_object(job["result"], kept.opened.settings)
    name = key.rpartition("/")[2].encode("ascii", "replace").decode().replace('"', "_")
    headers = {"content-disposition": f'attachment; filename="{name}"', "cache-control": KEEP}
    return Response(store.get(key), media_type=PNG, headers=headers)


@router.get("/jobs/{job_id}/previews.webp")
def show_previews(_: Reader, request: Request, kept: Services, job_id: JobId) -> Response:
    """How a result came to be, as one strip. Raises Problem 404 where that was not recorded."""
    job = _find(kept, job_id)
    tag = kept.thumbnails.tag(f"previews:{job['sha256']}", WIDTHS_PX[-1])
    if (unchanged := _unchanged(request, tag, KEEP)) is not None:
        return unchanged
    data = _read_previews(kept, job)
    if data is None:
        raise Problem(404, "no_previews", "no previews were recorded; KONTEXT_PREVIEW_EVERY asks workers for them")
    return Response(shrink(data, STRIP_PX, kept.opened.settings.max_image_px), media_type=WEBP,
                    headers={"etag": f'"{tag}"', "cache-control": KEEP})  # fmt: skip


@router.get("/jobs/{job_id}/previews")
def show_previews_part(caller: Reader, request: Request, kept: Services, job_id: JobId) -> Response:
    """The part of a job's page that shows them; nothing where there are none, which only the store knows."""
    found = _read_previews(kept, _find(kept, job_id)) is not None
    return render(request, caller, "parts/previews.html", {"id": job_id, "found": found}, part="previews")


def _read_previews(kept: Kept, job: RowMapping) -> bytes | None:
    if job["result"] is None or job["custom_id"] is None or job["reused"]:
        return None
    with reading(kept.opened.engine).connect() as connection:
        batch = queries.read_batch(connection, job["batch_id"])
    assert batch is not None
    store = open_store(batch.results_uri, kept.opened.settings)
    try:
        key = previews_key(job["custom_id"], job["take"], ignore_case=store.ignores_case)
        return store.read(key, kept.opened.settings.max_image_bytes)
    except ObjectMissing:
        return None


def _find(kept: Kept, job_id: int) -> RowMapping:
    with reading(kept.opened.engine).connect() as connection:
        job = pages.read_job(connection, job_id)
    if job is None:
        raise Problem(404, "not_found", f"there is no job {job_id}")
    return job


def _round_up(width_px: int) -> int:
    return next(known for known in WIDTHS_PX if known >= width_px)


def _unchanged(request: Request, tag: str, caching: str) -> Response | None:
    if f'"{tag}"' in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers={"etag": f'"{tag}"', "cache-control": caching})
    return None


def _answer(make: Callable[[], bytes], tag: str, caching: str) -> Response:
    """A thumbnail; a sign in its place where the file is gone or is no picture: pages show it as it is."""
    try:
        data = make()
    except NoThumbnail:
        return Response(ABSENT, media_type=SVG, headers={"cache-control": ASK_AGAIN})
    except StorageError as error:
        if error.transient:
            raise
        return Response(ABSENT, media_type=SVG, headers={"cache-control": ASK_AGAIN})
    return Response(data, media_type=WEBP, headers={"etag": f'"{tag}"', "cache-control": caching})
