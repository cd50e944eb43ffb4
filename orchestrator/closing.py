"""The end of batches: the manifest is written off the dispatcher's loop, and only then the batch ends.

Owns the threads that write. Refuses to end a batch that was reopened while its manifest was written, and to store a
manifest of one that is being deleted. Any number of processes may close the same batch. An ended batch that something
is decided in later has its manifest written anew.
What jobs that ended midway left in the cache is forgotten, where the cache answers; else its time to live ends it.
"""

import threading
import time

import redis
import structlog
from redis.exceptions import RedisError
from sqlalchemy import Engine

from orchestrator.manifest import Overtaken, write_manifest
from orchestrator.settings import Settings
from orchestrator.state import queries
from orchestrator.state.database import DATABASE_AWAY, reading
from orchestrator.state.messages import handoff_key
from orchestrator.state.queries import Batch
from orchestrator.state.transitions import Stage
from orchestrator.storage import StorageError

# A manifest of a million lines takes a minute: others end beside it.
WRITERS = 4
# One that cannot be written is tried again less and less often: it shall not keep the writers from the others.
LONGEST_DELAY_S = 300.0
# Somebody walks through a contact sheet at a few decisions a second: a manifest is written for many of them.
TELLING_INTERVAL_S = 2.0
TOLD_AT_ONCE = 100
CACHE_S = 5.0
_AWAY: tuple[type[Exception], ...] = (StorageError, OSError, *DATABASE_AWAY)
_LEFT_BY = (Stage.ENCODE, Stage.SAMPLE)
log = structlog.get_logger("closing")


class Closer:
    """Closes batches whose jobs have all ended, a few at a time."""

    def __init__(self, engine: Engine, settings: Settings) -> None:
        self._engine, self._settings = engine, settings
        self._writers: dict[str, threading.Thread] = {}
        self._failed: dict[str, tuple[int, float]] = {}  # how often in a row, and until when it is left alone
        self._next_telling_s = 0.0

    def begin(self, batch: Batch) -> None:
        """Begin to close a batch, unless that is being done or has just failed; who is not served asks again later."""
        self._writers = {batch_id: writer for batch_id, writer in self._writers.items() if writer.is_alive()}
        _, until_s = self._failed.get(batch.id, (0, 0.0))
        if batch.id in self._writers or len(self._writers) >= WRITERS or time.monotonic() < until_s:
            return
        writer = threading.Thread(target=self._close, args=(batch,), name=f"close-{batch.id}", daemon=True)
        self._writers[batch.id] = writer
        writer.start()

    def wait(self, timeout_s: float | None = None) -> None:
        """Wait for the manifests that are being written, so long at most in all."""
        until_s = None if timeout_s is None else time.monotonic() + timeout_s
        for writer in self._writers.values():
            writer.join(None if until_s is None else max(0.0, until_s - time.monotonic()))

    def _close(self, batch: Batch) -> None:
        try:
            while (again := self._write_and_end(batch)) is not None:
                batch = again
        except Overtaken as overtaken:  # whoever reopened or deletes it sees to it
            log.info("batch not closed", batch=batch.id, reason=str(overtaken))
        except _AWAY as error:
            times = self._failed.get(batch.id, (0, 0.0))[0] + 1
            delay_s = min(LONGEST_DELAY_S, 2.0 ** min(times, 10))
            self._failed[batch.id] = times, time.monotonic() + delay_s
            told = str(error).partition("\n")[0]
            log.warning("batch not closed, trying again", batch=batch.id, error=told, delay_s=delay_s)
        else:
            self._failed.pop(batch.id, None)

    def _write_and_end(self, batch: Batch) -> Batch | None:
        """Write the manifest and end the batch; gives the batch where its manifest must be written once more.

        That is so where it was reopened and has ended again meanwhile, closed by another process: ours may lie over a
        newer manifest.
        """
        write_manifest(self._engine, batch, self._settings)
        with reading(self._engine).connect() as looking:
            counts = queries.count_by_state(looking, batch.id)
        with self._engine.begin() as connection:
            closed = queries.close_batch(connection, batch.id, reopened=batch.reopened, counts=counts)
            queries.note_told(connection, batch.id, batch.decisions)
            found = queries.read_batch(connection, batch.id)
        if closed and found is not None:
            log.info("batch closed", batch=batch.id, status=found.status)
            self._forget_handoffs(batch.id)
        if found is None or found.ended_at is None:
            return None
        # Also where a decision came meanwhile: of several writers the last one to end has seen all of them.
        return None if (found.reopened, found.decisions) == (batch.reopened, batch.decisions) else found

    def _forget_handoffs(self, batch_id: str) -> None:
        if self._settings.cache_url is None:
            return
        cache = redis.Redis.from_url(self._settings.cache_url, socket_timeout=CACHE_S, socket_connect_timeout=CACHE_S)
        try:
            with cache, reading(self._engine).connect() as connection:
                for ids in queries.ended_midway(connection, batch_id):
                    cache.unlink(*(handoff_key(batch_id, job_id, stage) for job_id in ids for stage in _LEFT_BY))
        except RedisError as error:
            log.warning("handoffs left to their time to live", batch=batch_id, error=str(error).partition("\n")[0])

    def tell_decisions(self) -> None:
        """Begin to write the manifests of ended batches anew whose decisions they do not tell yet."""
        if time.monotonic() < self._next_telling_s:
            return
        self._next_telling_s = time.monotonic() + TELLING_INTERVAL_S
        with reading(self._engine).connect() as connection:
            untold = queries.untold_batches(connection, limit=TOLD_AT_ONCE)
        for batch in untold:
            self.begin(batch)
