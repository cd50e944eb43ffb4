"""The shift: what the worker process is at now, written by its main thread, read by heartbeat and watchdog.

Owns the answer to "does this process hold jobs?". Refuses to know what SQL says of it.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Engine, event


class Shift:
    """`step` is claim, a stage or commit; None while the main thread waits for a bell. It stands since `since_s`.

    `doubtful`: the database went away. It may have come back without its last commits, and may then count jobs as ours
    that nobody holds; they are to be handed back as soon as we hold none.
    """

    def __init__(self) -> None:
        self.step: str | None = None
        self.since_s = time.monotonic()
        self.doubtful = False
        self._busy = threading.Lock()

    def begin(self, step: str) -> None:
        """Another step begins."""
        self.since_s, self.step = time.monotonic(), step

    @contextmanager
    def answering(self) -> Iterator[None]:
        """The main thread answers a bell: it may hold jobs."""
        with self._busy:
            try:
                yield
            finally:
                self.since_s, self.step = time.monotonic(), None

    @contextmanager
    def at_rest(self) -> Iterator[bool]:
        """Whether the main thread holds no jobs; if so, it claims none before the block ends."""
        free = self._busy.acquire(blocking=False)
        try:
            yield free
        finally:
            if free:
                self._busy.release()

    def watch(self, engine: Engine) -> None:
        """Take note when the database goes away."""

        @event.listens_for(engine, "handle_error")
        def note(context: Any) -> None:
            if context.is_disconnect:
                self.doubtful = True
