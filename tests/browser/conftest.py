"""The real thing for a real browser: a site that runs, and headless Chromium."""

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, expect, sync_playwright

from kontext_model.checkpoint_maker import make_checkpoint
from kontext_model.wardrobe import draw
from orchestrator.settings import Settings
from tests.browser.site import FLAGS, Site, open_site

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PATIENCE_MS = 60_000
expect.set_options(timeout=PATIENCE_MS)


@pytest.fixture(scope="session")
def site(stack: Settings) -> Iterator[Site]:
    """Dispatcher, scheduler, one worker of a tiny checkpoint, and the site."""
    with tempfile.TemporaryDirectory(prefix="kontext-site-") as name:
        checkpoint = make_checkpoint(Path(name) / "checkpoint", size="tiny")
        with open_site(stack, Path(name), checkpoint=str(checkpoint)) as opened:
            yield opened


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
        context.set_default_timeout(PATIENCE_MS)
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
    """Four drawn photos, and a catalogue of a shop's own making."""
    found = []
    for number in range(4):
        path = site.folder / f"look-{number}.jpg"
        draw(number, (96, 96), "flat-lay").photo.save(path, "JPEG", quality=85)
        found.append(path)
    table = site.folder / "spring.csv"
    table.write_text("Photo,SKU\n" + "".join(f"{path.name},sku-{n}\n" for n, path in enumerate(found)))
    return [table, *found]
