"""Server-sent events for pages: `changed` whenever the page would show something else.

Owns their form. An event says that something changed, never what: the page asks for its parts again, so that a lost
event costs a moment, not the truth. Who looks at SQL, and how often, is `orchestrator.api.watcher`'s.
"""

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import Query, Request, Response
from fastapi.responses import StreamingResponse

from orchestrator.api import live
from orchestrator.api.access import Reader
from orchestrator.api.resources import Open
from orchestrator.api.watcher import Watcher
from orchestrator.dashboard.page import page_router

router = page_router()


@router.get("/live")
async def follow(
    _: Reader, request: Request, opened: Open, batch: Annotated[str, Query(max_length=100)] = ""
) -> Response:
    """Events of one batch, or of all that are open; the first one at once."""
    headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
    events = _events(request, opened.service(Watcher), batch or None)
    return StreamingResponse(events, media_type="text/event-stream", headers=headers)


async def _events(request: Request, watcher: Watcher, batch_id: str | None) -> AsyncIterator[str]:
    yield "retry: 2000\n\n"
    async for standing in live.follow(request, watcher, batch_id):
        yield ": still here\n\n" if standing is None else "event: changed\ndata: 1\n\n"
