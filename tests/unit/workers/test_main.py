"""The call of a worker process: what it is named where nobody names it, and how a wrong one ends."""

import pytest

from orchestrator.checkpoints import PACKAGED
from workers import __main__ as program
from workers import app, watchdog


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DATABASE_URL", "BROKER_URL", "CACHE_URL"):
        monkeypatch.setenv(f"KONTEXT_{name}", "sqlite:///never-opened.db" if name == "DATABASE_URL" else "redis://h")
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    monkeypatch.setenv("KONTEXT_CHECKPOINT", "/never/opened")
    monkeypatch.setattr(program, "configure_logs", lambda settings: None)
    monkeypatch.setattr("sys.argv", ["workers"])


def test_a_worker_that_nobody_names_has_a_name_that_never_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even by a process of the same id on a host of the same name, as after the restart of a container."""
    names: list[str] = []
    monkeypatch.setattr(app, "serve", lambda settings, stages, name: names.append(name))
    monkeypatch.setattr(watchdog, "leave", lambda status: None)
    for _ in range(2):
        program.main()
    assert len(set(names)) == 2


@pytest.mark.parametrize("device", ["cuda:99", "toaster"])
def test_a_device_that_is_not_there_is_one_line_and_status_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], device: str
) -> None:
    monkeypatch.setenv("KONTEXT_CHECKPOINT", str(PACKAGED))
    monkeypatch.setenv("KONTEXT_DEVICE", device)
    assert program.main() == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1 and told[0].startswith(f"kontext worker: device '{device}' cannot be used here: ")
