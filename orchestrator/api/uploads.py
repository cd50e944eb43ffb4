"""Images that a caller will send: addresses that take them straight into the store, skipping what lies there already.

Owns `inputs/<sha256>`: an image that is named so in a catalogue's row is found there, whoever sent it. Refuses bytes
that are not those of their name, wherever they are sent: here they are hashed as they come, and a store gives an
address only where it does the same.
"""

import hashlib
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path as FilePath
from typing import Annotated

from fastapi import Path, Request, Response
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, Field

from orchestrator.api.access import Submitter, open_router
from orchestrator.api.audit import note
from orchestrator.api.problems import Problem
from orchestrator.api.resources import Open
from orchestrator.catalogs.relayed import STORED_NAME
from orchestrator.storage import Store, open_store
from orchestrator.submission import inputs_uri

PRESIGNED_S = 3600
# Looks into the store side by side: on S3 each is a round trip.
LOOKS = 8
NAMES_MAX = 1000
router = open_router(prefix="/v1/uploads", tags=["uploads"])
ImageName = Annotated[str, Field(pattern=STORED_NAME, examples=["0" * 64 + ".jpg"])]


class Uploading(BaseModel):
    """Images by their names: the SHA-256 of the bytes, and the usual ending."""

    model_config = {"extra": "forbid"}
    names: list[ImageName] = Field(max_length=NAMES_MAX)


class UploadShape(BaseModel):
    """One image: whether it lies there already, and where to PUT it if not."""

    name: str
    exists: bool
    url: str | None = Field(description="takes a PUT of the bytes for an hour; a path is this server's own")
    headers: dict[str, str] = Field({}, description="that the PUT must have", examples=[{"if-none-match": "*"}])


class Uploads(BaseModel):
    """Where to send each image."""

    data: list[UploadShape]


@router.post("", response_model=Uploads)
def plan_uploads(_: Submitter, opened: Open, asked: Uploading) -> Uploads:
    """Say which images are missing, and where each is to be sent. A row then names its image by that name."""
    store = open_store(inputs_uri(opened.settings), opened.settings)
    with ThreadPoolExecutor(LOOKS) as threads:
        return Uploads(data=list(threads.map(partial(_plan, store), asked.names)))


def _plan(store: Store, name: str) -> UploadShape:
    if store.head(name) is not None:
        return UploadShape(name=name, exists=True, url=None)
    address = store.presign_put(name, PRESIGNED_S, name[:64])
    if address is None:
        return UploadShape(name=name, exists=False, url=f"/v1/uploads/{name}")
    return UploadShape(name=name, exists=False, url=address.url, headers=dict(address.headers))


@router.put("/{name}", status_code=204, response_class=Response)
async def upload(
    caller: Submitter,
    opened: Open,
    request: Request,
    name: Annotated[str, Path(pattern=STORED_NAME, examples=["0" * 64 + ".jpg"])],
) -> Response:
    """Take the bytes of one image, where the store has no addresses of its own or does not reach the caller."""
    limit, size, digest = opened.settings.max_image_bytes, 0, hashlib.sha256()
    store = open_store(inputs_uri(opened.settings), opened.settings)
    with tempfile.NamedTemporaryFile(prefix="kontext-image-") as file:
        async for chunk in request.stream():
            size += len(chunk)
            if size > limit:
                raise Problem(413, "image_too_large", f"larger than {limit:,} bytes (KONTEXT_MAX_IMAGE_BYTES)")
            digest.update(chunk)
            file.write(chunk)
        if digest.hexdigest() != name[:64]:
            raise Problem(422, "wrong_digest", "the bytes have another SHA-256 than the name says")
        file.flush()
        if await run_in_threadpool(store.head, name) is None:
            await run_in_threadpool(note, opened, caller, "input.store", name, size_bytes=size)
            await run_in_threadpool(store.put, name, FilePath(file.name))
    return Response(status_code=204)
