"""Images that a caller will send: addresses that take them straight into the store, skipping what lies there already.

Owns `inputs/<sha256>`: an image that is named so in a catalogue's row is found there, whoever sent it.
"""

import hashlib
import re
from typing import Annotated

from fastapi import Path, Request, Response
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, Field

from orchestrator.api.access import Submitter, open_router
from orchestrator.api.audit import note
from orchestrator.api.problems import Problem
from orchestrator.api.resources import Open
from orchestrator.storage import open_store
from orchestrator.submission import inputs_uri

PRESIGNED_S = 3600
router = open_router(prefix="/v1/uploads", tags=["uploads"])
IMAGE_NAME = r"^[0-9a-f]{64}(\.[a-z0-9]{1,5})?$"
ImageName = Annotated[str, Field(pattern=IMAGE_NAME, examples=["0" * 64 + ".jpg"])]


class Uploading(BaseModel):
    """Images by their names: the SHA-256 of the bytes, and the usual ending."""

    model_config = {"extra": "forbid"}
    names: list[ImageName] = Field(max_length=1000)


class UploadShape(BaseModel):
    """One image: whether it lies there already, and where to PUT it if not."""

    name: str
    exists: bool
    url: str | None = Field(description="takes a PUT of the bytes for an hour; a path is this server's own")


class Uploads(BaseModel):
    """Where to send each image."""

    data: list[UploadShape]


@router.post("", response_model=Uploads)
def plan_uploads(_: Submitter, opened: Open, asked: Uploading) -> Uploads:
    """Say which images are missing, and where each is to be sent. A row then names its image by that name."""
    store = open_store(inputs_uri(opened.settings), opened.settings)
    data = []
    for name in asked.names:
        exists = store.head(name) is not None
        url = None if exists else (store.presign_put(name, PRESIGNED_S) or f"/v1/uploads/{name}")
        data.append(UploadShape(name=name, exists=exists, url=url))
    return Uploads(data=data)


@router.put("/{name}", status_code=204, response_class=Response)
async def upload(
    caller: Submitter, opened: Open, request: Request, name: Annotated[str, Path(pattern=IMAGE_NAME)]
) -> Response:
    """Take the bytes of one image, where the store has no addresses of its own."""
    limit, data = opened.settings.max_image_bytes, bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > limit:
            raise Problem(413, "image_too_large", f"larger than {limit:,} bytes (KONTEXT_MAX_IMAGE_BYTES)")
    if hashlib.sha256(data).hexdigest() != re.split(r"\.", name)[0]:
        raise Problem(422, "wrong_digest", "the bytes have another SHA-256 than the name says")
    store = open_store(inputs_uri(opened.settings), opened.settings)
    if await run_in_threadpool(store.put, name, bytes(data)):
        await run_in_threadpool(note, opened, caller, "input.store", name, size_bytes=len(data))
    return Response(status_code=204)
