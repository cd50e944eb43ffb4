"""The real thing for a real browser: servers, dispatcher, worker and site as processes, and headless Chromium."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, expect, sync_playwright

from kontext_model.checkpoint_maker import make_checkpoint
from kontext_model.wardrobe import draw
from orchestrator.access.keys import create_key
from orchestrator.access.scopes import Scope
from orchestrator.settings import Settings
from orchestrator.state.database import open_database, reading

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync")  # fmt: skip
PATIENCE_S = 60.0
expect.set_options(timeout=20_000)


@dataclass
class Site:
    """A site that runs, and what tests ask of its database beside the browser."""

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


@pytest.fixture(scope="session")
def site(stack: Settings) -> Iterator[Site]:
    """Dispatcher, scheduler, one worker of a tiny checkpoint, and the site, on SQLite as on a laptop."""
    with tempfile.TemporaryDirectory(prefix="kontext-site-") as name:
        folder = Path(name)
        settings = stack.model_copy(
            update={
                "home": folder / "home", "database_url": f"sqlite:///{folder / 'state.db'}",
                "results_uri": f"s3://kontext-local/{folder.name}", "unit_size": 2, "threads": 1, "heartbeat_s": 0.5,
                "preview_every": 1,
                "checkpoint": str(make_checkpoint(folder / "checkpoint", size="tiny")),
            }
        )  # fmt: skip
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("KONTEXT_")}
        environment = inherited | settings.environment() | {"PYTHONWARNINGS": "ignore"}

        def start(*arguments: str) -> subprocess.Popen[bytes]:
            command = [sys.executable, "-m", "orchestrator.cli", *arguments]
            with (folder / f"{arguments[0]}.log").open("ab") as log:
                return subprocess.Popen(command, env=environment, stdout=log, stderr=log)

        assert start("db", "upgrade").wait(PATIENCE_S) == 0
        commands = (("dispatch",), ("worker", "--stages", "encode,sample,decode"), ("serve", "--port", "0"))
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
                    process.wait(30)
                finally:
                    process.kill()


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """Debian's own, which `make test` installs where it can."""
    if CHROMIUM is None:
        pytest.skip("no chromium is installed: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield browser
        browser.close()


@dataclass
class Visitor:
    """Opens browsers that are signed in, and keeps what their consoles complain of."""

    chromium: Browser
    site: Site
    complaints: list[str] = field(default_factory=list)
    contexts: list[BrowserContext] = field(default_factory=list)

    def enter(self, path: str = "/", **given: Any) -> Page:
        """A new browser at a page, signed in."""
        page = self.open(**given)
        page.goto(f"{self.site.url}/sign-in?next={path}")
        page.get_by_label("API key").fill(self.site.key)
        page.get_by_role("button", name="Sign in").click()
        page.wait_for_url(f"{self.site.url}{path}")
        return page

    def open(self, **given: Any) -> Page:
        """A new browser that nobody knows."""
        options = {"viewport": {"width": 1280, "height": 860}, "base_url": self.site.url, **given}
        context = self.chromium.new_context(**options)
        context.set_default_timeout(20_000)
        self.contexts.append(context)
        page = context.new_page()
        page.on("console", self._note)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        return page

    def _note(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(f"{message.text} at {message.location}")


@pytest.fixture
def visitor(chromium: Browser, site: Site) -> Iterator[Visitor]:
    """Fails a test whose pages complain on the console."""
    visitor = Visitor(chromium, site)
    yield visitor
    for context in visitor.contexts:
        context.close()
    assert visitor.complaints == []


@pytest.fixture(scope="session")
def photos(site: Site) -> list[Path]:
    """Four drawn photos, one of them broken, and a catalogue of a shop's own making."""
    found = []
    for number in range(4):
        path = site.folder / f"look-{number}.jpg"
        draw(number, (96, 96), "flat-lay").photo.save(path, "JPEG", quality=85)
        found.append(path)
    found[3].write_bytes(found[3].read_bytes()[:700])
    table = site.folder / "spring.csv"
    table.write_text("Photo,SKU\n" + "".join(f"{path.name},sku-{n}\n" for n, path in enumerate(found)))
    return [table, *found]


def await_true(condition: Callable[[], bool], what: str) -> None:
    """Wait until something is so."""
    until_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < until_s, f"never happened: {what}"
        time.sleep(0.1)
