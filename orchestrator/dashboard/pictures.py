"""Pictures of jobs: thumbnails with an entity tag, the result as it was stored, and how it came to be."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from fastapi import Query, Request, Response
from PIL import Image, UnidentifiedImageError
from sqlalchemy import RowMapping

from kontext_model.canvas import Canvas
from orchestrator.api.access import Reader
from orchestrator.api.problems import Problem
from orchestrator.dashboard.finding import JobId, batch_of, find_job
from orchestrator.dashboard.job_card import on_the_web, version_of
from orchestrator.dashboard.page import page_router, render
from orchestrator.dashboard.services import Kept, Services
from orchestrator.dashboard.thumbnails import WIDTHS_PX, NoThumbnail
from orchestrator.state.database import reading
from orchestrator.state.queries import Batch, pages
from orchestrator.storage import ObjectMissing, StorageError, open_object, open_store, previews_key, sight_key

router = page_router()
WEBP, PNG, SVG = "image/webp", "image/png", "image/svg+xml"
# All previews of a job lie side by side in one picture.
STRIP_PX = 4096
ABSENT = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 96 96"><g fill="none" stroke="#8d8c86" stroke-width="3">'
    '<rect x="26" y="30" width="44" height="36" rx="4"/><path d="M22 72 74 24"/></g></svg>'
)
# For an address that names the content: a job's number alone may be another's, once the database was made anew.
KEEP = "private, max-age=86400"
ASK_AGAIN = "private, no-cache"
Width = Annotated[int, Query(alias="w", ge=1, le=WIDTHS_PX[-1])]
Version = Annotated[str, Query(alias="v", max_length=64, description="the beginning of the content's SHA-256")]


@dataclass(frozen=True)
class Previews:
    """The previews of a job: where each lies in the strip, as SVG's `viewBox` says it; none were recorded: empty."""

    job_id: int
    version: str = ""
    width: int = 0
    height: int = 0
    boxes: tuple[str, ...] = ()


@router.get("/jobs/{job_id}/result.webp")
def show_result(
    _: Reader, request: Request, kept: Services, job_id: JobId, width_px: Width = WIDTHS_PX[0], version: Version = ""
) -> Response:
    """The thumbnail of a job's result, at the next of the widths there are."""
    job = find_job(kept, job_id)
    if job["result"] is None:
        raise Problem(404, "no_picture", f"job {job_id} has no result")
    width_px = _round_up(width_px)
    tag = kept.thumbnails.tag(job["sha256"], width_px)
    caching = _caching(version, job["sha256"])
    return _answer(request, tag, caching, lambda: kept.thumbnails.stored(job["result"], job["sha256"], width_px))


@router.get("/jobs/{job_id}/source.webp")
def show_source(
    _: Reader, request: Request, kept: Services, job_id: JobId, width_px: Width = WIDTHS_PX[0], version: Version = ""
) -> Response:
    """The thumbnail of a job's source, at the next of the widths there are; of one on the web, what a worker kept."""
    job = find_job(kept, job_id)
    if job["image"] is None:
        raise Problem(404, "no_picture", f"job {job_id} names no image")
    batch = batch_of(kept, job)
    width_px = _round_up(width_px)
    content = job["image_sha256"] or f"{batch.image_root}\n{job['image']}"
    tag, caching = kept.thumbnails.tag(content, width_px), _caching(version, job["image_sha256"])

    def make() -> bytes:
        if on_the_web(job["image"]):
            return kept.thumbnails.stored(_sight_uri(kept, job, batch), content, width_px)
        return kept.thumbnails.source(job["image"], batch.image_root, content, width_px)

    return _answer(request, tag, caching, make)


@router.get("/jobs/{job_id}/result.png")
def download_result(_: Reader, kept: Services, job_id: JobId, version: Version = "") -> Response:
    """The result as it was stored, under its own name."""
    job = find_job(kept, job_id)
    if job["result"] is None:
        raise Problem(404, "no_picture", f"job {job_id} has no result")
    store, key = open_object(job["result"], kept.opened.settings)
    name = key.rpartition("/")[2].encode("ascii", "replace").decode().replace('"', "_")
    caching = _caching(version, job["sha256"])
    headers = {"content-disposition": f'attachment; filename="{name}"', "cache-control": caching}
    return Response(store.get(key), media_type=PNG, headers=headers)


@router.get("/jobs/{job_id}/previews.webp")
def show_previews(_: Reader, request: Request, kept: Services, job_id: JobId, version: Version = "") -> Response:
    """How a result came to be, as one strip. Raises Problem 404 where that was not recorded."""
    job = find_job(kept, job_id)
    uri = _previews_uri(kept, job)
    if uri is None:
        raise Problem(404, "no_previews", f"job {job_id} has no result of its own, and hence no previews")
    tag = kept.thumbnails.tag(uri, STRIP_PX)  # written once: its place names its content
    return _answer(request, tag, _caching(version, job["sha256"]), lambda: kept.thumbnails.stored(uri, uri, STRIP_PX))


@router.get("/jobs/{job_id}/previews")
def show_previews_part(caller: Reader, request: Request, kept: Services, job_id: JobId) -> Response:
    """The part of a job's page that shows them; nothing where there are none, which only the store knows."""
    job = find_job(kept, job_id)
    uri = _previews_uri(kept, job)
    view = Previews(job_id) if uri is None else _cut(kept, job, uri)
    return render(request, caller, "parts/previews.html", view, part="previews")


def _sight_uri(kept: Kept, job: RowMapping, batch: Batch) -> str:
    """Where the worker that read a source put its sight: beside the results, or those of the job that is reused."""
    if job["image_sha256"] is None:
        raise NoThumbnail("no worker has read it yet")
    results_uri: str | None = batch.results_uri
    if job["reused"]:
        with reading(kept.opened.engine).connect() as connection:
            results_uri = pages.maker_of(connection, job["fingerprint"])
    if results_uri is None:
        raise NoThumbnail("the batch that read it is forgotten")
    return open_store(results_uri, kept.opened.settings).locate(sight_key(job["image_sha256"]))


def _previews_uri(kept: Kept, job: RowMapping) -> str | None:
    """Where a worker puts the previews of a result that it made, whether or not it did."""
    if job["result"] is None or job["reused"]:
        return None
    batch = batch_of(kept, job)
    store = open_store(batch.results_uri, kept.opened.settings)
    return store.locate(previews_key(job["custom_id"], job["take"], ignore_case=store.ignores_case))


def _cut(kept: Kept, job: RowMapping, uri: str) -> Previews:
    """The frames of a strip: they have the shape of the canvas, and stand side by side."""
    store, key = open_object(uri, kept.opened.settings)
    try:
        strip = Image.open(io.BytesIO(store.read(key, kept.opened.settings.max_image_bytes)), formats=["PNG"])
    except (ObjectMissing, UnidentifiedImageError):
        return Previews(job["id"])
    canvas = Canvas.parse(job["canvas"])
    count = max(1, round(strip.width * canvas.height_px / (strip.height * canvas.width_px)))
    width = strip.width / count
    boxes = tuple(f"{number * width:g} 0 {width:g} {strip.height}" for number in range(count))
    return Previews(job["id"], version_of(job["sha256"]), strip.width, strip.height, boxes)


def _caching(version: str, sha256: str | None) -> str:
    """How long a browser may keep a picture: a day, where its address names the content that it has."""
    return KEEP if version and version == version_of(sha256) else ASK_AGAIN


def _round_up(width_px: int) -> int:
    return next(known for known in WIDTHS_PX if known >= width_px)


def _answer(request: Request, tag: str, caching: str, make: Callable[[], bytes]) -> Response:
    """A thumbnail, unless the browser has it; a sign in its place where the file is gone or is no picture."""
    if f'"{tag}"' in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers={"etag": f'"{tag}"', "cache-control": caching})
    try:
        data = make()
    except (NoThumbnail, StorageError) as error:
        if isinstance(error, StorageError) and error.transient:
            raise
        return Response(ABSENT, media_type=SVG, headers={"cache-control": ASK_AGAIN})
    return Response(data, media_type=WEBP, headers={"etag": f'"{tag}"', "cache-control": caching})
