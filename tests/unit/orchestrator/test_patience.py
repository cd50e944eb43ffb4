"""The watch over connections, without a server: what falls silent, and what ends meanwhile by itself."""

import pytest
from sqlalchemy import create_engine

from orchestrator.state import patience
from tests.waiting import wait_until


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
    wait_until(lambda: "first" in ended, "the silent one is hung up")
    watch._begin("third")
    wait_until(lambda: "third" in ended, "it is still watched")
    engine.dispose()
