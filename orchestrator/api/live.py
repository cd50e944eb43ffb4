"""Live state: one watcher a process looks at SQL three times a second while somebody listens, and tells all of them.

Owns the watcher, long polls and server-sent events. Refuses to look when nobody listens, or more often for more
listeners.
"""

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import structlog
from fastapi import Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from orchestrator.api.access import Reader, open_router
from orchestrator.api.problems import Problem
from orchestrator.api.resources import Open
from orchestrator.api.shapes import batch_etag, batch_shape
from orchestrator.state import queries
from orchestrator.state.database import reading
from orchestrator.state.queries import Batch, BatchCounts
from orchestrator.tallies import Tallies

INTERVAL_S = 0.33
KEEP_ALIVE_S = 15.0
EVERYTHING = "*"
log = structlog.get_logger("live")
router = open_router(tags=["live"])


@dataclass(frozen=True)
class Standing:
    """A batch as it was last seen."""

    batch: Batch
    counts: BatchCounts
    etag: str


class Watcher:
    """Looks at the batches that are listened to; belongs to one event loop."""

    def __init__(self, engine: Engine, tallies: Tallies, interval_s: float = INTERVAL_S) -> None:
        self._engine, self._tallies, self._interval_s = engine, tallies, interval_s
        self._listeners: Counter[str] = Counter()
        self._seen: dict[str, Standing] = {}
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def follow(self, batch_id: str | None = None) -> AsyncIterator[Standing | None]:
        """How a batch stands, or every open one, and again whenever that changes; None when nothing did for a while."""
        told: dict[str, str] = {}
        with self._listening(batch_id or EVERYTHING):
            while True:
                changed = self._changed
                for standing in [s for s in self._seen.values() if batch_id in (None, s.batch.id)]:
                    if told.get(standing.batch.id) != standing.etag:
                        told[standing.batch.id] = standing.etag
                        yield standing
                try:
                    await asyncio.wait_for(changed.wait(), KEEP_ALIVE_S)
                except TimeoutError:
                    yield None

    async def await_change(self, batch_id: str, etag: str, wait_s: float) -> None:
        """Return when a batch no longer is as `etag` says, or after so many seconds."""
        with self._listening(batch_id), suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                while (standing := self._seen.get(batch_id)) is None or standing.etag == etag:
                    await self._changed.wait()

    def close(self) -> None:
        """Look no more."""
        if self._task is not None:
            self._task.cancel()

    @contextmanager
    def _listening(self, to: str) -> Iterator[None]:
        self._listeners[to] += 1
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._watch())
        try:
            yield
        finally:
            self._listeners[to] -= 1
            if not self._listeners[to]:
                del self._listeners[to]

    async def _watch(self) -> None:
        while self._listeners:
            began_s = time.monotonic()
            try:
                seen = await run_in_threadpool(self._look, list(self._listeners))
            except DBAPIError as error:
                log.warning("the database does not answer; looking again", error=str(error).partition("\n")[0])
                await asyncio.sleep(1.0)
                continue
            if {k: s.etag for k, s in seen.items()} != {k: s.etag for k, s in self._seen.items()}:
                self._seen = seen
                self._changed.set()
                self._changed = asyncio.Event()
            await asyncio.sleep(max(self._interval_s - (time.monotonic() - began_s), 0.05))
        self._seen = {}

    def _look(self, listened: Sequence[str]) -> dict[str, Standing]:
        with reading(self._engine).connect() as connection:
            batches = {
                batch_id: queries.read_batch(connection, batch_id) for batch_id in listened if batch_id != EVERYTHING
            }
            if EVERYTHING in listened:
                batches |= {batch.id: batch for batch in queries.open_batches(connection)}
                # Those that have ended since are told of once more, and then kept as they were.
                for batch_id, standing in self._seen.items():
                    if batch_id not in batches:
                        ended = standing.batch.ended_at is not None
                        batches[batch_id] = standing.batch if ended else queries.read_batch(connection, batch_id)
        found = [batch for batch in batches.values() if batch is not None]
        counts = self._tallies.counts_of(found)
        return {b.id: Standing(b, counts[b.id], batch_etag(b, counts[b.id])) for b in found}


_EVENTS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "server-sent events named `batch`; the data of each is a batch",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    }
}


@router.get("/v1/events", response_class=StreamingResponse, responses=_EVENTS)
async def stream_all(_: Reader, opened: Open, request: Request) -> StreamingResponse:
    """Every open batch, and again whenever one changes, until the caller leaves."""
    return _stream(opened.service(Watcher), None)


@router.get("/v1/batches/{batch_id}/events", response_class=StreamingResponse, responses=_EVENTS)
async def stream_batch(_: Reader, opened: Open, batch_id: str) -> StreamingResponse:
    """One batch, and again whenever it changes, until it has ended or the caller leaves."""

    def find() -> Batch | None:
        with reading(opened.engine).connect() as connection:
            return queries.read_batch(connection, batch_id)

    if await run_in_threadpool(find) is None:
        raise Problem(404, "not_found", f"there is no batch {batch_id!r}")
    return _stream(opened.service(Watcher), batch_id)


def _stream(watcher: Watcher, batch_id: str | None) -> StreamingResponse:
    async def write() -> AsyncIterator[str]:
        yield "retry: 2000\n\n"
        async for standing in watcher.follow(batch_id):
            if standing is None:
                yield ": still here\n\n"
                continue
            told = batch_shape(standing.batch, standing.counts).model_dump(mode="json", exclude_none=True)
            yield f"event: batch\nid: {standing.etag.strip(chr(34))}\ndata: {json.dumps(told)}\n\n"
            if batch_id is not None and standing.batch.ended_at is not None:
                return

    headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
    return StreamingResponse(write(), media_type="text/event-stream", headers=headers)
