"""The dispatcher: pending jobs become queued ones, as many as the window holds, fair between batches.

Owns the window, the order of batches and their end. It is the only Celery client of the control plane. Refuses to
remember anything: any number of dispatchers may run, and each may be killed between two statements.
"""

import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import structlog
from celery import Celery
from kombu.exceptions import OperationalError as BrokerError
from redis.exceptions import RedisError
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from orchestrator.manifest import write_manifest
from orchestrator.rescuer import Rescuer
from orchestrator.settings import Settings
from orchestrator.state import queries
from orchestrator.state.database import open_database, reading
from orchestrator.state.messages import Bell, bells_needed, broker_options, ring
from orchestrator.state.queries import Batch
from orchestrator.state.transitions import BatchStatus, Stage
from orchestrator.storage import StorageError

INTERVAL_S = 0.25
# Refilling by single jobs would ring a bell for each; by a quarter of the window, units stay full.
REFILL_SHARE = 4
log = structlog.get_logger("dispatcher")


class Dispatcher:
    """One tick fills the window; `ring` is told the bells after the commit."""

    def __init__(self, engine: Engine, settings: Settings, ring: Callable[[Sequence[Bell]], None]) -> None:
        self._engine, self._settings, self._ring = engine, settings, ring

    def tick(self) -> int:
        """Queue what fits, close what has ended; gives the number of jobs queued."""
        with reading(self._engine).connect() as connection:
            batches = queries.open_batches(connection)
            in_flight = dict(queries.in_flight(connection)) if batches else {}
        idle = [batch for batch in batches if batch.status == BatchStatus.RUNNING and batch.id not in in_flight]
        queued, exhausted = 0, set[str]()
        # Again until the window is full: what a batch has no jobs for is room for the others.
        while shares := share_window(batches, in_flight, self._settings, exhausted):
            for batch, share in shares:
                count = self._dispatch(batch, share)
                in_flight[batch.id] = in_flight.get(batch.id, 0) + count
                queued += count
                if count < share:
                    exhausted.add(batch.id)
        for batch in idle:
            self._close(batch)
        return queued

    def _dispatch(self, batch: Batch, limit: int) -> int:
        with self._engine.begin() as connection:
            recipes = queries.dispatch(connection, batch.id, limit)
        unit_size = self._settings.unit_size
        self._ring(
            [
                Bell(Stage.ENCODE, batch.revision, recipe_id)
                for recipe_id, rows in recipes.items()
                for _ in range(bells_needed(rows, unit_size))
            ]
        )
        return sum(recipes.values())

    def _close(self, batch: Batch) -> None:
        with reading(self._engine).connect() as connection:
            if queries.unfinished(connection, batch.id):
                return
        try:
            write_manifest(self._engine, batch, self._settings)
        except (StorageError, OSError) as error:
            log.warning("manifest not written, trying again", batch=batch.id, error=str(error))
            return
        with self._engine.begin() as connection:
            if queries.move_batch(connection, batch.id, BatchStatus.COMPLETED):
                log.info("batch completed", batch=batch.id)


def share_window(
    batches: Sequence[Batch], in_flight: Mapping[str, int], settings: Settings, exhausted: Collection[str] = ()
) -> list[tuple[Batch, int]]:
    """How many more jobs each batch may queue: urgent batches first, those of equal priority filled to one level.

    The window is bounded in jobs, and in the bytes that the handoffs of all open `batches` may take; a unit always
    fits. Batches that do not run or are `exhausted` get nothing; the former keep no others waiting but for their bytes.
    """
    running = [batch for batch in batches if batch.status == BatchStatus.RUNNING]
    hungry = [batch for batch in running if batch.id not in exhausted]
    if not hungry:
        return []
    held = sum(in_flight.get(batch.id, 0) for batch in running)
    held_bytes = sum(in_flight.get(batch.id, 0) * batch.handoff_bytes for batch in batches)
    fitting = (settings.window_bytes - held_bytes) // max(batch.handoff_bytes for batch in hungry)
    room = max(min(settings.window_jobs - held, fitting), settings.unit_size - held)
    if room <= 0 or room < (held + room) // REFILL_SHARE:
        return []
    shares = []
    for priority in sorted({batch.priority for batch in hungry}, reverse=True):
        peers = [batch for batch in hungry if batch.priority == priority]
        level = -(-(room + sum(in_flight.get(batch.id, 0) for batch in peers)) // len(peers))
        for batch in peers:
            share = min(room, max(0, level - in_flight.get(batch.id, 0)))
            if share:
                shares.append((batch, share))
                room -= share
    return shares


def serve(settings: Settings, stop: threading.Event) -> None:
    """Dispatch and rescue until `stop` is set. A database or broker that is away is waited for."""
    assert settings.database_url is not None and settings.broker_url is not None
    engine = open_database(settings.database_url, relaxed=True)
    app = Celery("kontext", set_as_current=False)
    app.conf.update(broker_options(settings.broker_url))
    ring_all = _quiet_ringer(app)
    dispatcher = Dispatcher(engine, settings, ring_all)
    rescuer = Rescuer(engine, settings, ring_all)
    while not stop.is_set():
        try:
            dispatcher.tick()
            rescuer.tick()
        except (DBAPIError, BrokerError, RedisError, OSError) as error:
            log.warning("waiting for database or broker", error=str(error).partition("\n")[0])
            stop.wait(1)
        stop.wait(INTERVAL_S)
    app.close()
    engine.dispose()


def _quiet_ringer(app: Any) -> Callable[[Sequence[Bell]], None]:
    """Ring, and leave to the rescuer what the broker would not take: SQL holds the work."""

    def ring_all(bells: Sequence[Bell]) -> None:
        if not bells:
            return
        try:
            ring(app, bells)
        except (BrokerError, RedisError, OSError) as error:
            log.warning("bells not rung", bells=len(bells), error=str(error).partition("\n")[0])

    return ring_all
