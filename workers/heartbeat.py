"""The heartbeat: a thread that renews the worker's lease in SQL while the process computes.

Owns the lease. A worker that was declared dead claims no more and stops: its jobs belong to others.
"""

import threading
import time

import psutil
import structlog
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from orchestrator.state import queries
from workers.listener import stop_process
from workers.shift import Shift

log = structlog.get_logger("heartbeat")


class Heartbeat:
    """Beats every `interval_s` from `start` to `stop`."""

    def __init__(self, engine: Engine, worker_id: str, interval_s: float, shift: Shift) -> None:
        self._engine, self._worker_id, self._interval_s, self._shift = engine, worker_id, interval_s, shift
        self._ending = threading.Event()
        self._asked_s: float | None = None
        self.dead = False
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._ending.set()
        self._thread.join(timeout=5)

    @property
    def unanswered_s(self) -> float:
        """How long the database has let the beat at hand wait; 0 between beats."""
        asked_s = self._asked_s
        return 0.0 if asked_s is None else time.monotonic() - asked_s

    def _run(self) -> None:
        process = psutil.Process()
        while not self._ending.wait(self._interval_s):
            self._asked_s = time.monotonic()
            try:
                self.dead = not self._beat(process.memory_info().rss)
            except DBAPIError as error:
                log.warning("no heartbeat", error=str(error.orig).partition("\n")[0])
            finally:
                self._asked_s = None
            if self.dead:
                log.warning("declared dead, stopping", worker=self._worker_id)
                stop_process()
                return

    def _beat(self, rss_bytes: int) -> bool:
        with self._engine.begin() as connection:
            alive = queries.beat(connection, self._worker_id, rss_bytes=rss_bytes)
        if alive and self._shift.doubtful:
            with self._shift.at_rest() as resting:
                if resting:
                    hand_back_doubtful(self._engine, self._worker_id, self._shift)
        return alive


def hand_back_doubtful(engine: Engine, worker_id: str, shift: Shift) -> None:
    """Hand back what a database that went away counts as ours, while we hold nothing."""
    shift.doubtful = False
    try:
        with engine.begin() as connection:
            returned = queries.hand_back(connection, worker_id)
    except DBAPIError:
        shift.doubtful = True
        raise
    if returned:
        log.warning("the database had forgotten commits, jobs are handed back", jobs=len(returned))
