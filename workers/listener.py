"""The listener: Celery's solo worker in this process, hearing the bells of its stages.

Owns the connection to the broker, how it is cut so that a new one is made, and how bells are rung for others. The solo
pool is the process: nothing forks beside a GPU context. Refuses messages that are no bells.
"""

import os
import signal
import socket
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import structlog
from celery import Celery
from celery.platforms import SecurityWarning
from celery.worker import state
from celery.worker.request import Request
from kombu import Queue

from orchestrator.settings import Settings
from orchestrator.state.messages import TASK, Bell, broker_options, queue_names, ring
from orchestrator.state.transitions import Stage

log = structlog.get_logger("worker")


class HeardBell(Request):  # type: ignore[misc]
    """A bell leaves Redis as it is heard (`no_ack`): there is nothing to acknowledge, and no round trip for it."""

    def acknowledge(self) -> None:
        self.acknowledged = True


class Listener:
    """With `queue_order_strategy="priority"` queues are heard in the order they are listed in: first all that hold
    bells for recovered jobs, then from the last stage to the first, so that finished pictures leave before new ones
    enter.
    """

    def __init__(self, settings: Settings, stages: Sequence[Stage], revision: str, name: str) -> None:
        self._app = Celery("kontext", set_as_current=False)
        self._app.conf.update(broker_options(settings.broker_url or ""))
        order = [stage for stage in reversed(Stage) if stage in stages]
        recovered, usual = zip(*(queue_names(stage, revision) for stage in order), strict=True)
        self._app.conf.task_queues = [Queue(name, no_ack=True) for name in (*recovered, *usual)]
        self._hostname = f"{name}@{socket.gethostname()}"
        self._worker: Any = None

    def listen(self, answer: Callable[[Bell], object]) -> int:
        """Answer bells until told to stop; gives Celery's exit status."""

        @self._app.task(name=TASK, ignore_result=True, Request=HeardBell)  # type: ignore[untyped-decorator]
        def work(**kwargs: str) -> None:
            try:
                bell = Bell.parse(kwargs)
            except ValueError as error:
                log.warning("message dropped", error=str(error))
                return
            try:
                answer(bell)
            except Exception as error:
                # Its jobs are still marked as ours: stopping hands them back, or lets the lease do it.
                log.error("unit not committed, stopping", error=repr(error)[:300])
                stop_process()

        # Celery warns root against pickles, which this app does not accept.
        warnings.simplefilter("ignore", SecurityWarning)
        self._worker = self._app.Worker(
            pool="solo",
            concurrency=1,
            hostname=self._hostname,
            loglevel="WARNING",
            without_gossip=True,
            without_mingle=True,
            without_heartbeat=True,
            quiet=True,
        )
        try:
            self._worker.start()
        except SystemExit as stop:
            return int(stop.code or 0)
        return int(self._worker.exitcode or 0)

    def reconnect(self) -> None:
        """Cut the connection that bells come by, from another thread: Celery notices at once and makes a new one."""
        connection = getattr(getattr(self._worker, "consumer", None), "connection", None)
        for opened in _sockets(connection):
            with suppress(OSError):
                opened.shutdown(socket.SHUT_RDWR)

    def ring(self, bells: Sequence[Bell]) -> None:
        """Ring for others. What the broker does not take is left to the rescuer: SQL holds the work."""
        if not bells:
            return
        try:
            ring(self._app, bells)
        except ConnectionError as error:
            log.warning("bells not rung", bells=len(bells), error=str(error).partition("\n")[0])


def is_stopping() -> bool:
    """Whether this process was told to stop."""
    return state.should_stop is not None or state.should_terminate is not None


def stop_process() -> None:
    """Tell this process to stop in good order, from any thread."""
    os.kill(os.getpid(), signal.SIGTERM)


def _sockets(connection: Any) -> Iterator[socket.socket]:
    """The sockets that a broker connection has open, without opening one: hence attributes that exist already."""
    for channel in list(getattr(getattr(connection, "transport", None), "channels", None) or ()):
        for name in ("client", "subclient"):
            client = vars(channel).get(name)
            opened = getattr(getattr(client, "connection", None), "_sock", None)
            if opened is not None:
                yield opened
