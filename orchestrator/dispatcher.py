"""The dispatcher: pending jobs become queued ones, as many as the window holds, fair between batches.

Owns the window and the order of batches, and sees that what was asked of them is done. It is the only Celery client of
the control plane. Refuses to remember anything: any number of dispatchers may run, and each may be killed between two
statements.
"""

import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import structlog
from celery import Celery
from kombu.exceptions import OperationalError as BrokerError
from redis.exceptions import RedisError
from sqlalchemy import Engine

from orchestrator.closing import WRITERS, Closer
from orchestrator.control import break_off, cancel_unread, enforce, fail_abandoned
from orchestrator.deliverer import LANES, Deliverer
from orchestrator.pruner import Pruner
from orchestrator.rescuer import Rescuer
from orchestrator.scheduler import THREADS, Scheduler
from orchestrator.settings import Settings
from orchestrator.state import patience, queries
from orchestrator.state.database import DATABASE_AWAY, open_database, reading, take_turn
from orchestrator.state.messages import Bell, bells_needed, broker_options, ring
from orchestrator.state.queries import AGING_S, Batch
from orchestrator.state.transitions import BatchStatus, Stage

INTERVAL_S = 0.25
# Refilling by single jobs would ring a bell for each; by a quarter of the window, units stay full.
REFILL_SHARE = 4
# What one tick gives to cancelling or expiring the jobs of one batch: others are not kept waiting.
ENFORCE_S = 0.2
BREAKER_INTERVAL_S = 1.0
# How often rows are looked for that no catalogue stands behind any more.
UNREAD_INTERVAL_S = 5.0
STOP_S = 10.0
# One for each thread of the process: none waits for another's connection.
POOL_SIZE = 1 + WRITERS + THREADS + LANES
log = structlog.get_logger("dispatcher")


class Dispatcher:
    """One tick fills the window; `ring` is told the bells after the commit."""

    def __init__(self, engine: Engine, settings: Settings, ring: Callable[[Sequence[Bell]], None]) -> None:
        self._engine, self._settings, self._ring = engine, settings, ring
        self._closer = Closer(engine, settings)
        self._next_break_s = self._next_unread_s = 0.0

    def tick(self) -> int:
        """Do what was asked of the batches, queue what fits, close what has ended; gives the number of jobs queued."""
        with reading(self._engine).connect() as connection:
            batches = queries.open_batches(connection)
        self._closer.tell_decisions()
        self._cancel_unread()
        if not batches:
            return 0
        with reading(self._engine).connect() as connection:
            now_s = queries.read_clock(connection)
            in_flight, waiting = dict(queries.in_flight(connection)), queries.backing_off(connection)
        for batch in batches:
            enforce(self._engine, batch, now_s, ENFORCE_S)
        self._break_off(batches)
        queued = self._fill(batches, in_flight, waiting, now_s)
        for batch in batches:
            if batch.status in queries.ENDS and not in_flight.get(batch.id):
                self._close(batch)
        return queued

    def wait(self, timeout_s: float | None = None) -> None:
        """Wait for the manifests that are being written."""
        self._closer.wait(timeout_s)

    def _fill(
        self, batches: Sequence[Batch], in_flight: dict[str, int], waiting: Mapping[str, int], now_s: float
    ) -> int:
        queued, exhausted = 0, set[str]()
        # Again until the window is full: what a batch has no jobs for is room for the others.
        while shares := share_window(batches, in_flight, self._settings, exhausted, now_s, waiting):
            for batch, share in shares:
                count = self._dispatch(batch, share, sum(in_flight.values()))
                in_flight[batch.id] = in_flight.get(batch.id, 0) + count
                queued += count
                if count < share:
                    exhausted.add(batch.id)
        return queued

    def _cancel_unread(self) -> None:
        if time.monotonic() < self._next_unread_s:
            return
        self._next_unread_s = time.monotonic() + UNREAD_INTERVAL_S
        for batch_id in fail_abandoned(self._engine):
            log.warning("batch failed, nobody stores its rows", batch=batch_id)
        cancelled = cancel_unread(self._engine, ENFORCE_S)
        if cancelled:
            log.info("jobs of unreadable catalogues cancelled", jobs=cancelled)

    def _break_off(self, batches: Sequence[Batch]) -> None:
        began_s = time.monotonic()
        if began_s < self._next_break_s:
            return
        for batch in batches:
            reason = break_off(self._engine, batch)
            if reason is not None:
                log.warning("batch paused", batch=batch.id, reason=reason)
        ended_s = time.monotonic()
        self._next_break_s = ended_s + max(BREAKER_INTERVAL_S, 10 * (ended_s - began_s))

    def _dispatch(self, batch: Batch, limit: int, held: int) -> int:
        """Queue up to `limit` jobs and ring for them; none where others have filled the window beyond `held`."""
        with self._engine.begin() as connection:
            take_turn(connection, "fill the window")
            if sum(queries.in_flight(connection).values()) > held:
                return 0
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
            unfinished = queries.unfinished(connection, batch.id)
        if not unfinished:
            self._closer.begin(batch)


def share_window(
    batches: Sequence[Batch],
    in_flight: Mapping[str, int],
    settings: Settings,
    exhausted: Collection[str] = (),
    now_s: float = 0.0,
    waiting: Mapping[str, int] = MappingProxyType({}),
) -> list[tuple[Batch, int]]:
    """How many more jobs each batch may queue: urgent batches first, those of equal rank filled to one level.

    The window is bounded in jobs, and in the bytes that the handoffs of all open `batches` may take; a unit always
    fits. It is refilled by quarters, or by units for a batch of the highest rank that has less than a unit in flight.
    Batches that do not run or are `exhausted` get nothing; the former keep no others waiting but for their bytes. Nor
    do the jobs of `in_flight` that are `waiting` for their next try, whose own batch gets no second window meanwhile.
    `now_s` is the database's clock.
    """
    running = [batch for batch in batches if batch.status == BatchStatus.RUNNING]
    hungry = [batch for batch in running if batch.id not in exhausted]
    if not hungry:
        return []
    held = sum(in_flight.get(batch.id, 0) for batch in running)
    busy = held - sum(waiting.get(batch.id, 0) for batch in running)
    held_bytes = sum(in_flight.get(batch.id, 0) * batch.handoff_bytes for batch in batches)
    fitting = (settings.window_bytes - held_bytes) // max(batch.handoff_bytes for batch in hungry)
    room = max(min(settings.window_jobs - busy, fitting), settings.unit_size - held)
    ranks = {batch.id: rank(batch, now_s) for batch in hungry}
    starving = any(
        in_flight.get(batch.id, 0) < settings.unit_size and ranks[batch.id] == max(ranks.values()) for batch in hungry
    )
    least = (busy + room) // REFILL_SHARE
    if room <= 0 or room < (min(settings.unit_size, least) if starving else least):
        return []
    shares = []
    for level in sorted(set(ranks.values()), reverse=True):
        peers = [batch for batch in hungry if ranks[batch.id] == level]
        height = -(-(room + sum(in_flight.get(batch.id, 0) for batch in peers)) // len(peers))
        for batch in peers:
            own = in_flight.get(batch.id, 0)
            most = settings.window_jobs - own if batch.id in waiting else room
            share = min(room, most, height - own)
            if share > 0:
                shares.append((batch, share))
                room -= share
    return shares


def rank(batch: Batch, now_s: float) -> int:
    """A batch's priority, a point more for each `AGING_S` it has waited: the urgent go first, nobody starves."""
    known = [at_s for at_s in (batch.started_at, batch.dispatched_at, batch.resumed_at) if at_s is not None]
    waited_s = now_s - max(known, default=now_s)
    return batch.priority + int(max(0.0, waited_s) // AGING_S)


def serve(settings: Settings, stop: threading.Event) -> None:
    """Dispatch, rescue, fire schedules and tell webhooks until `stop` is set.

    A database or broker that is away is waited for; one that says nothing is given up and asked anew.
    """
    assert settings.database_url is not None and settings.broker_url is not None
    engine = open_database(settings.database_url, pool_size=POOL_SIZE, relaxed=True)
    patience.watch(engine)
    app = Celery("kontext", set_as_current=False)
    app.conf.update(broker_options(settings.broker_url))
    ring_all = _quiet_ringer(app)
    dispatcher = Dispatcher(engine, settings, ring_all)
    rescuer = Rescuer(engine, settings, ring_all)
    scheduler, deliverer, pruner = Scheduler(engine, settings), Deliverer(engine, settings), Pruner(engine)
    while not stop.is_set():
        try:
            dispatcher.tick()
            scheduler.tick()
            deliverer.tick()
            rescuer.tick()
            pruner.tick()
        except (*DATABASE_AWAY, BrokerError, RedisError, OSError) as error:
            log.warning("waiting for database or broker", error=str(error).partition("\n")[0])
            stop.wait(1)
        stop.wait(INTERVAL_S)
    until_s = time.monotonic() + STOP_S  # one for all: whoever stops us waits not much longer
    for end in (scheduler.stop, deliverer.stop, dispatcher.wait):
        end(max(0.0, until_s - time.monotonic()))
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
