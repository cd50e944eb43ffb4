"""The pruner: what only grows and nobody asks for any more is forgotten after a month.

Owns how long deliveries and ended workers are kept. Refuses to forget anything that still holds or waits for something.
Any number may run.
"""

import time

from sqlalchemy import Engine

from orchestrator.state import queries

KEPT_S = 30 * 86_400.0
INTERVAL_S = 3_600.0
ROWS = 10_000


class Pruner:
    """`tick` does its work at most once an hour, however often it is called; where much is left, once a call."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._next_s = 0.0

    def tick(self) -> None:
        """Forget what is old, so many rows of a table at most."""
        if time.monotonic() < self._next_s:
            return
        left = False
        for prune in (queries.prune_deliveries, queries.prune_workers):
            with self._engine.begin() as connection:
                left |= prune(connection, KEPT_S, ROWS) == ROWS
        self._next_s = time.monotonic() + (0.0 if left else INTERVAL_S)
