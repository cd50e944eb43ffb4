"""A site that runs: servers, dispatcher, workers and pages as processes, as on a laptop."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.access.keys import create_key
from orchestrator.access.scopes import Scope
from orchestrator.settings import Settings
from orchestrator.state.database import open_database, reading
from tests.waiting import PATIENCE_S, wait_until

FLAGS = ("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync")  # fmt: skip
"""What headless Chromium is started with."""


@dataclass
class Site:
    """A site that runs, and what is asked of its database beside the browser."""

    url: str
    settings: Settings
    folder: Path
    key: str

    def ask(self, query: Callable[..., Any], *given: Any, **named: Any) -> Any:
        """The answer of one query."""
        assert self.settings.database_url is not None
        engine = open_database(self.settings.database_url)
        try:
            with reading(engine).connect() as connection:
                return query(connection, *given, **named)
        finally:
            engine.dispose()


@contextmanager
def open_site(
    stack: Settings, folder: Path, workers: Sequence[str] = ("encode,sample,decode",), **given: Any
) -> Iterator[Site]:
    """A site on SQLite below a folder, with a worker for each of these sets of stages, until the context ends."""
    settings = stack.model_copy(
        update={
            "home": folder / "home", "database_url": f"sqlite:///{folder / 'state.db'}",
            "results_uri": f"s3://kontext-local/{folder.name}", "unit_size": 2, "threads": 1, "heartbeat_s": 0.5,
            "preview_every": 1, **given,
        }
    )  # fmt: skip
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("KONTEXT_")}
    environment = inherited | settings.environment() | {"PYTHONWARNINGS": "ignore"}

    def start(*arguments: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "orchestrator.cli", *arguments]
        with (folder / f"{arguments[0]}.log").open("ab") as log:
            return subprocess.Popen(command, env=environment, stdout=log, stderr=log)

    assert start("db", "upgrade").wait(PATIENCE_S) == 0
    commands = [("dispatch",), ("serve", "--port", "0"), *(("worker", "--stages", stages) for stages in workers)]
    processes = [start(*command) for command in commands]
    try:
        log = folder / "serve.log"
        await_true(lambda: "http://" in log.read_text(), "the site serves")
        found = re.search(r"http://\S+", log.read_text())
        assert found is not None
        engine = open_database(str(settings.database_url))
        key = create_key(engine, "anna", Scope.ADMIN).secret
        engine.dispose()
        yield Site(found[0], settings, folder, key)
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            try:
                process.wait(PATIENCE_S)
            finally:
                process.kill()


def await_true(condition: Callable[[], bool], what: str, patience_s: float = PATIENCE_S) -> None:
    """Wait until something is so."""
    wait_until(condition, what, patience_s, 0.1)
