"""The call of a worker process: what it is named where nobody names it."""

import pytest

from workers import __main__ as program
from workers import app, watchdog


def test_a_worker_that_nobody_names_has_a_name_that_never_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even by a process of the same id on a host of the same name, as after the restart of a container."""
    for name in ("DATABASE_URL", "BROKER_URL", "CACHE_URL"):
        monkeypatch.setenv(f"KONTEXT_{name}", "sqlite:///never-opened.db" if name == "DATABASE_URL" else "redis://h")
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    monkeypatch.setenv("KONTEXT_CHECKPOINT", "/never/opened")
    monkeypatch.setattr(program, "configure_logs", lambda settings: None)
    monkeypatch.setattr("sys.argv", ["workers"])
    names: list[str] = []
    monkeypatch.setattr(app, "serve", lambda settings, stages, name: names.append(name))
    monkeypatch.setattr(watchdog, "leave", lambda status: None)
    for _ in range(2):
        program.main()
    assert len(set(names)) == 2
