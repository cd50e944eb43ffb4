"""The watch over connections, without a server: what falls silent, and what ends meanwhile by itself."""

import time
from collections.abc import Callable

import pytest
from sqlalchemy import create_engine

from orchestrator.state import patience


def _await(holds: Callable[[], bool]) -> bool:
    until_s = time.monotonic() + 5
    while not holds() and time.monotonic() < until_s:
        time.sleep(0.01)
    return holds()


def test_a_silent_connection_that_ends_by_itself_does_not_end_the_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A collection of garbage ends it, while the watch hangs up another."""
    engine = create_engine("sqlite://")
    watch = patience._Watch(engine, 0.2)
    ended: list[str] = []

    def hang_up(connection: str) -> None:
        ended.append(connection)
        watch._end("second")

    monkeypatch.setattr(patience, "_hang_up", hang_up)
    for connection in ("first", "second"):
        watch._begin(connection)
    assert _await(lambda: "first" in ended)
    watch._begin("third")
    assert _await(lambda: "third" in ended), "it is still watched"
    engine.dispose()
