"""Patience with a database: a connection whose server says nothing for too long is ended.

Owns the watch over a PostgreSQL engine's connections. Keep-alive notices a host that is gone; this notices one that
takes every byte and answers none, behind a broken proxy or a frozen server. Whoever waits gets the error of a lost
connection, and tries again by a new one. Refuses to tell slow from silent: the limit is above any statement's time.
"""

import os
import socket
import threading
import time
from contextlib import suppress
from typing import Any

import structlog
from sqlalchemy import Engine, event

LIMIT_S = 60.0
log = structlog.get_logger("database")


def watch(engine: Engine, limit_s: float = LIMIT_S) -> None:
    """End connections of this engine that wait longer than `limit_s` for an answer. Does nothing for SQLite."""
    if engine.dialect.name == "postgresql":
        _Watch(engine, limit_s)


class _Watch:
    """Which connections wait for an answer, and since when."""

    def __init__(self, engine: Engine, limit_s: float) -> None:
        self._limit_s = limit_s
        self._asked_s: dict[Any, float] = {}
        # Re-entrant: a collection of garbage may close a forgotten connection in the midst of any of this.
        self._lock = threading.RLock()
        self._thread: threading.Thread | None = None
        pool: Any = engine.pool
        dialect: Any = engine.dialect
        # Pinging a pooled connection before it is used has no event at all.
        self._ping = dialect.do_ping
        dialect.do_ping = self._watch_ping
        # What a new connection is asked at first is seen by no other event.
        event.listen(pool, "connect", lambda connection, _: self._begin(connection), insert=True)
        event.listen(pool, "checkout", lambda connection, *_: self._end(connection))
        event.listen(pool, "checkin", lambda connection, _: self._end(connection))
        event.listen(pool, "close", lambda connection, _: self._end(connection))
        event.listen(pool, "invalidate", lambda connection, *_: self._end(connection))
        event.listen(engine, "before_cursor_execute", lambda asked, *_: self._begin(_driver(asked)))
        event.listen(engine, "after_cursor_execute", lambda asked, *_: self._end(_driver(asked)))
        for word in ("commit", "rollback"):
            event.listen(engine, word, lambda asked: None if asked.invalidated else self._begin(_driver(asked)))

    def _watch_ping(self, connection: Any) -> bool:
        self._begin(connection)
        try:
            return bool(self._ping(connection))
        finally:
            self._end(connection)

    def _begin(self, connection: Any) -> None:
        with self._lock:
            self._asked_s[connection] = time.monotonic()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="patience", daemon=True)
                self._thread.start()

    def _end(self, connection: Any) -> None:
        with self._lock:
            self._asked_s.pop(connection, None)

    def _run(self) -> None:
        while True:
            time.sleep(self._limit_s / 4)
            with self._lock:
                if not self._asked_s:
                    self._thread = None
                    return
                late_s = time.monotonic() - self._limit_s
                silent = [connection for connection, asked_s in self._asked_s.copy().items() if asked_s < late_s]
                for connection in silent:
                    self._end(connection)
                    _hang_up(connection)
            if silent:
                log.warning("the database says nothing, hanging up", connections=len(silent), seconds=self._limit_s)


def _driver(asked: Any) -> Any:
    return asked.connection.dbapi_connection


def _hang_up(connection: Any) -> None:
    """Shut the connection's socket: whoever waits on it reads its end."""
    # Where it has just been closed, that is as good.
    with suppress(Exception), socket.socket(fileno=os.dup(connection.fileno())) as line:
        line.shutdown(socket.SHUT_RDWR)
