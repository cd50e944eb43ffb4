"""The heartbeat: a thread that renews the worker's lease in SQL while the process computes.

Owns the lease and nothing else. A worker that was declared dead stops: its jobs belong to others.
"""

import os
import signal
import threading

import psutil
import structlog
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from orchestrator.state import queries

log = structlog.get_logger("heartbeat")


class Heartbeat:
    """Beats every `interval_s` from `start` to `stop`."""

    def __init__(self, engine: Engine, worker_id: str, interval_s: float) -> None:
        self._engine, self._worker_id, self._interval_s = engine, worker_id, interval_s
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join(timeout=5)

    def _run(self) -> None:
        process = psutil.Process()
        while not self._stopping.wait(self._interval_s):
            try:
                with self._engine.begin() as connection:
                    alive = queries.beat(connection, self._worker_id, rss_bytes=process.memory_info().rss)
            except DBAPIError as error:
                log.warning("no heartbeat", error=str(error.orig).partition("\n")[0])
                continue
            if not alive:
                log.warning("declared dead, stopping", worker=self._worker_id)
                os.kill(os.getpid(), signal.SIGTERM)
                return
