"""The watchdog: a thread that ends a process which cannot go on, and says why.

Owns four limits: a step that takes longer than any should, a good end that takes too long, a database that leaves the
heartbeat without an answer, work that waits while no bell is heard. Refuses to touch jobs but at a good end that took
too long: they come back by the report of the process's death, or by its lease.
"""

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import NoReturn

import structlog

from orchestrator.settings import Settings
from workers.heartbeat import Heartbeat
from workers.listener import is_stopping, stop_process
from workers.shift import Shift

INTERVAL_S = 0.5
# Of a process that ended itself since it could not go on: its supervisor starts another.
STUCK = 70
log = structlog.get_logger("watchdog")


class Watchdog:
    """Looks twice a second from `start` to `stop`.

    `has_backlog`: whether SQL holds work that this worker should have heard of; asked only when it idles.
    `reconnect` cuts the connection to the broker, so that another is made; `broker_answers` asks by one of its own.
    `let_go` hands back what the process holds, when its good end takes too long.
    """

    def __init__(
        self,
        settings: Settings,
        shift: Shift,
        heartbeat: Heartbeat,
        *,
        has_backlog: Callable[[], bool],
        broker_answers: Callable[[], bool],
        reconnect: Callable[[], None],
        let_go: Callable[[], None],
    ) -> None:
        self._settings, self._shift, self._heartbeat = settings, shift, heartbeat
        self._has_backlog, self._broker_answers = has_backlog, broker_answers
        self._reconnect, self._let_go = reconnect, let_go
        self._ending = threading.Event()
        self._told_s: float | None = None
        self._looked_s = 0.0
        self._reconnected = False
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._ending.set()
        self._thread.join(timeout=5)

    def _run(self) -> None:
        while not self._ending.wait(INTERVAL_S):
            self.look()

    def look(self) -> None:
        """Check every limit once."""
        self._check_step()
        self._check_heartbeat()
        if is_stopping():
            self._check_end()
        else:
            self._check_hearing()

    def _check_step(self) -> None:
        step, took_s = self._shift.step, time.monotonic() - self._shift.since_s
        if step is not None and took_s > self._settings.stage_deadline_s:
            _end("a step passed KONTEXT_STAGE_DEADLINE_S: the process ends", step=step, seconds=round(took_s))

    def _check_heartbeat(self) -> None:
        """The lease has run out while a beat waited: others have the jobs, and this connection is of no more use."""
        if self._heartbeat.unanswered_s > self._settings.lease_s:
            _end("the database has not answered for KONTEXT_LEASE_S: the process ends")

    def _check_end(self) -> None:
        if self._told_s is None:
            self._told_s = time.monotonic()
        if time.monotonic() - self._told_s > self._settings.stop_s and not self._ending.is_set():
            log.warning("not stopped within KONTEXT_STOP_S: jobs are handed back as they are", step=self._shift.step)
            self._let_go()
            leave(0)

    def _check_hearing(self) -> None:
        """Work waits and no bell was heard for a while: first a new connection to the broker, then a new process."""
        patience_s, now_s = self._settings.watchdog_s, time.monotonic()
        if self._shift.step is not None or now_s - self._shift.since_s < patience_s:
            self._reconnected, self._looked_s = False, 0.0
            return
        if now_s - self._looked_s < patience_s:
            return
        self._looked_s = now_s
        if not self._has_backlog():
            self._reconnected = False
        elif not self._broker_answers():
            log.warning("work waits and the broker does not answer")
        elif not self._reconnected:
            log.warning("work waits and no bell is heard: the connection to the broker is made anew")
            self._reconnected = True
            self._reconnect()
        else:
            log.error("work waits and still no bell is heard: the process ends, to be started anew")
            stop_process()
            self._reconnect()  # Celery takes leave of the broker, by a connection that may never answer


def _end(reason: str, **facts: object) -> None:
    """Say why and where, then end at once: a hung kernel or socket answers no signal."""
    log.error(reason, **facts)
    faulthandler.dump_traceback(all_threads=True)
    leave(STUCK)


def leave(status: int) -> NoReturn:
    """End the process at once: to take Celery and torch apart lasts seconds, more when the broker is silent."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
