"""Live state: one watcher a process looks at SQL three times a second while somebody listens, and tells all of them.

Owns the watcher, which long polls, server-sent events and pages wait for. Refuses to look when nobody listens, or more
often for more listeners; what many are told of one look is made once.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import structlog
from fastapi.concurrency import run_in_threadpool
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from orchestrator.api.shapes import batch_etag
from orchestrator.state import queries
from orchestrator.state.database import reading
from orchestrator.state.queries import Batch, BatchCounts
from orchestrator.tallies import Tallies

INTERVAL_S = 0.33
KEEP_ALIVE_S = 15.0
# Whoever listens to all batches and takes what it is told slowly hears of an end for so long.
ENDED_S = 60.0
# A look takes milliseconds; only one that hangs is left to itself.
CLOSE_S = 5.0
EVERYTHING = "*"
log = structlog.get_logger("live")


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
        self._changed, self._looked = asyncio.Event(), asyncio.Event()
        # Looks begun, and the one that `_seen` came of.
        self._begun = self._shown = 0
        self._told: dict[str, tuple[str, asyncio.Future[str]]] = {}
        self._telling: set[asyncio.Future[Any]] = set()
        self._task: asyncio.Task[None] | None = None
        self._closed = asyncio.Event()

    async def follow(self, batch_id: str | None = None) -> AsyncGenerator[Standing | None, None]:
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

    def sees(self, batch_id: str) -> bool:
        """Whether somebody listens to a batch that there is."""
        return batch_id in self._seen

    async def await_change(self, batch_id: str, etag: str, wait_s: float) -> Standing | None:
        """How a batch stands once it no longer is as `etag` says; None when it still is after so many seconds.

        Only looks that began after this call count: an older one may not know yet what the caller does.
        """
        with self._listening(batch_id), suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                before = self._begun
                while True:
                    standing = self._seen.get(batch_id)
                    if standing is not None and standing.etag != etag and self._shown > before:
                        return standing
                    await self._looked.wait()
        return None

    async def tell(self, standing: Standing, make: Callable[[Standing], str]) -> str:
        """What `make` tells of how a batch stands: made once, in a thread, for all who ask."""
        kept = self._told.get(standing.batch.id)
        if kept is None or kept[0] != standing.etag or (kept[1].done() and kept[1].exception() is not None):
            kept = standing.etag, asyncio.ensure_future(run_in_threadpool(make, standing))
            self._told[standing.batch.id] = kept
            self._telling.add(kept[1])
            kept[1].add_done_callback(self._telling.discard)
        return await asyncio.shield(kept[1])

    async def close(self) -> None:
        """Look no more. Waits for the look in progress: its connection would outlive an engine that is disposed of."""
        self._closed.set()
        if at_work := self._telling | ({self._task} if self._task is not None else set()):
            await asyncio.wait(at_work, timeout=CLOSE_S)

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
        while self._listeners and not self._closed.is_set():
            began_s = time.monotonic()
            self._begun += 1
            look = self._begun
            try:
                seen = await run_in_threadpool(self._look, list(self._listeners))
            except (DBAPIError, PoolTimeout) as error:
                log.warning("the database does not answer; looking again", error=str(error).partition("\n")[0])
                await self._rest(1.0)
                continue
            if {k: s.etag for k, s in seen.items()} != {k: s.etag for k, s in self._seen.items()}:
                self._seen = seen
                self._changed.set()
                self._changed = asyncio.Event()
                self._told = {batch_id: told for batch_id, told in self._told.items() if batch_id in seen}
            self._shown = look
            self._looked.set()
            self._looked = asyncio.Event()
            await self._rest(max(self._interval_s - (time.monotonic() - began_s), 0.05))
        self._seen, self._told = {}, {}

    async def _rest(self, seconds: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._closed.wait(), seconds)

    def _look(self, listened: Sequence[str]) -> dict[str, Standing]:
        with reading(self._engine).connect() as connection:
            batches = {
                batch_id: queries.read_batch(connection, batch_id) for batch_id in listened if batch_id != EVERYTHING
            }
            if EVERYTHING in listened:
                batches |= {batch.id: batch for batch in queries.open_batches(connection)}
                batches |= self._ended_since(connection, batches)
        found = [batch for batch in batches.values() if batch is not None]
        counts = self._tallies.counts_of(found)
        return {b.id: Standing(b, counts[b.id], batch_etag(b, counts[b.id])) for b in found}

    def _ended_since(self, connection: Connection, known: Collection[str]) -> dict[str, Batch]:
        """Those seen at the last look that are open no more: each is told of as it ended, and then for a minute."""
        before = {batch_id: standing.batch for batch_id, standing in self._seen.items() if batch_id not in known}
        if not before:
            return {}
        since_s = queries.read_clock(connection) - ENDED_S
        return {
            batch.id: batch
            for batch in queries.read_batches(connection, list(before))
            if before[batch.id].ended_at is None or (batch.ended_at or since_s) > since_s
        }
