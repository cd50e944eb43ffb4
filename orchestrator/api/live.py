"""Server-sent events: every open batch or one of them, and again whenever it changes.

Owns their form, and that whose key is revoked hears no more. Who looks at SQL, and how often, is the watcher's.
"""

import json
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from fastapi import Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse

from orchestrator.api.access import Reader, open_router
from orchestrator.api.batches import BatchId, find_batch
from orchestrator.api.resources import Open
from orchestrator.api.shapes import batch_shape
from orchestrator.api.watcher import Standing, Watcher

CHECK_S = 15.0
"""So long a caller is told of changes before its credentials are looked at again."""
router = open_router(tags=["live"])
_EVENT: dict[str, Any] = {
    "type": "object",
    "required": ["event", "id", "data"],
    "properties": {
        "event": {"const": "batch"},
        "id": {"type": "string", "description": "changes whenever what is told does"},
        "data": {
            "type": "string",
            "contentMediaType": "application/json",
            "contentSchema": {"$ref": "#/components/schemas/BatchShape"},
        },
    },
    "examples": [{"event": "batch", "id": "5d0c3e9b7f2a", "data": '{"id": "20261125-1f2e3d4c", "status": "running"}'}],
}
_EVENTS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "server-sent events named `batch`; the data of each is a batch",
        "content": {"text/event-stream": {"schema": _EVENT}},
    }
}


@router.get("/v1/events", response_class=StreamingResponse, responses=_EVENTS)
async def stream_all(_: Reader, request: Request, opened: Open) -> StreamingResponse:
    """Every open batch, and again whenever one changes, until the caller leaves."""
    return _stream(request, opened.service(Watcher), None)


@router.get("/v1/batches/{batch_id}/events", response_class=StreamingResponse, responses=_EVENTS)
async def stream_batch(_: Reader, request: Request, opened: Open, batch_id: BatchId) -> StreamingResponse:
    """One batch, and again whenever it changes, until it has ended or the caller leaves."""

    await run_in_threadpool(find_batch, opened, batch_id)
    return _stream(request, opened.service(Watcher), batch_id)


async def follow(request: Request, watcher: Watcher, batch_id: str | None) -> AsyncIterator[Standing | None]:
    """What the watcher tells, for as long as the caller's key or session holds."""
    checked_s = time.monotonic()
    async with aclosing(watcher.follow(batch_id)) as standings:
        async for standing in standings:
            if time.monotonic() - checked_s >= CHECK_S:
                if not await run_in_threadpool(request.state.still):
                    return
                checked_s = time.monotonic()
            yield standing


def _stream(request: Request, watcher: Watcher, batch_id: str | None) -> StreamingResponse:
    async def write() -> AsyncIterator[str]:
        yield "retry: 2000\n\n"
        async for standing in follow(request, watcher, batch_id):
            if standing is None:
                yield ": still here\n\n"
                continue
            told = batch_shape(standing.batch, standing.counts).model_dump(mode="json", exclude_none=True)
            yield f"event: batch\nid: {standing.etag.strip(chr(34))}\ndata: {json.dumps(told)}\n\n"
            if batch_id is not None and standing.batch.ended_at is not None:
                return

    headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
    return StreamingResponse(write(), media_type="text/event-stream", headers=headers)
