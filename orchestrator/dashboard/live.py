"""Server-sent events for pages: `changed` whenever the page would show something else.

Owns one watcher a process, whatever the number of pages: it looks at SQL only while a page listens. An event says that
something changed, never what: the page asks for its parts again, so that a lost event costs a moment, not the truth.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Annotated, Any

from fastapi import Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from orchestrator.api.access import Reader
from orchestrator.api.resources import Open
from orchestrator.dashboard.page import page_router
from orchestrator.state.database import reading
from orchestrator.state.queries import pages

router = page_router()
LOOK_S = 0.25
# Looking never takes more than this share of the time, however large the batches are.
LOOKING_SHARE = 0.1
# A proxy closes what is silent, and a browser that is gone is noticed by writing to it.
BEAT_S = 15.0


@router.get("/live")
async def follow(
    _: Reader, request: Request, opened: Open, batch: Annotated[str, Query(max_length=100)] = ""
) -> Response:
    """Events of one batch, or of all that are open."""
    state = request.app.state
    if not hasattr(state, "watchers"):
        state.watchers = {}
    watchers: dict[str, Watcher] = state.watchers
    watcher = watchers.get(batch)
    if watcher is None:
        watcher = watchers[batch] = Watcher(opened.engine, batch or None)
    headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
    return StreamingResponse(_events(watchers, batch, watcher), media_type="text/event-stream", headers=headers)


async def _events(watchers: "dict[str, Watcher]", key: str, watcher: "Watcher") -> AsyncIterator[str]:
    yield "retry: 2000\n\n"
    try:
        async for changed in watcher.changes():
            yield "event: changed\ndata: 1\n\n" if changed else ": still here\n\n"
    finally:
        if not watcher.watched and watchers.get(key) is watcher:
            del watchers[key]


class Watcher:
    """Looks at one batch, or at all, for as many listeners as there are. Of one event loop."""

    def __init__(self, engine: Engine, batch_id: str | None) -> None:
        self._engine, self._batch_id = engine, batch_id
        self._listeners: set[asyncio.Event] = set()
        self._looking: asyncio.Task[None] | None = None

    @property
    def watched(self) -> bool:
        """Whether anybody listens."""
        return bool(self._listeners)

    async def changes(self) -> AsyncIterator[bool]:
        """True whenever something changed, False now and then where nothing did."""
        event = asyncio.Event()
        self._listeners.add(event)
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look())
        try:
            while True:
                try:
                    await asyncio.wait_for(event.wait(), BEAT_S)
                except TimeoutError:
                    yield False
                else:
                    event.clear()
                    yield True
        finally:
            self._listeners.discard(event)
            if not self._listeners:
                self._looking.cancel()

    async def _look(self) -> None:
        before: Any = None
        loop = asyncio.get_running_loop()
        while self._listeners:
            began_s = loop.time()
            with suppress(DBAPIError):  # away for a moment; the page says so by itself when it asks for its parts
                seen = await run_in_threadpool(self._read)
                if before is not None and seen != before:
                    for event in self._listeners:
                        event.set()
                before = seen
            await asyncio.sleep(max(LOOK_S, (loop.time() - began_s) / LOOKING_SHARE))

    def _read(self) -> object:
        with reading(self._engine).connect() as connection:
            return pages.pulse(connection, self._batch_id)
