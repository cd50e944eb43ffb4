"""`python -m tests.browser.gallery FOLDER`: a picture of every page in both themes, for docs.

Sets the scene, then walks through it. A desktop picture shows a page and theme from its top, as far as is worth it;
phone ones stand side by side, one picture a theme. With `--stay` the site stands until its standard input ends.
"""

import io
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from orchestrator.local_stack import ensure_stack, stop_stack
from orchestrator.settings import Settings
from tests.browser.scene import Scene, set_scene
from tests.browser.site import FLAGS, await_true, open_site

DESKTOP, PHONE = {"width": 1200, "height": 800}, {"width": 390, "height": 844}
MOST_PX, USUAL_PX = {"job": 1900, "batch": 1600}, 1450
PHONE_PX, GAP_PX = 300, 24
COLOURS, EXACT = 256, 56
GROUNDS = {"light": "#dededa", "dark": "#2e2e2e"}
ON_PHONE = ("overview", "batch", "sheet", "job", "schedules")
WHOLE = ("Array.from(document.images).filter(i => i.getBoundingClientRect().top < innerHeight)"
         ".every(i => i.complete) && !document.querySelector('.htmx-request')")  # fmt: skip
WORKERS = ("encode,sample,decode", "encode,decode")


def main(folder: str, *flags: str) -> None:
    """Set the scene and take all pictures."""
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="kontext-gallery-") as name:
        empty = Settings(home=Path(name) / "stack")
        try:
            with open_site(ensure_stack(empty), Path(name), WORKERS, unit_size=4) as site:
                scene = set_scene(site)
                print(site.url, site.key, scene, flush=True)
                photograph(site.url, site.key, scene, target)
                if "--stay" in flags:
                    sys.stdin.read()
        finally:
            stop_stack(empty)


def photograph(url: str, key: str, scene: Scene, target: Path) -> None:
    """Walk through the site at both themes, on a desk and on a phone."""
    pages = {
        "overview": "/", "batches": "/batches", "batch": f"/batches/{scene.running}",
        "sheet": f"/batches/{scene.decided}/sheet", "job": f"/jobs/{scene.job}", "new": f"/new/{scene.draft}",
        "schedules": "/schedules", "workers": "/workers", "presets": "/presets", "keys": "/keys", "audit": "/audit",
    }  # fmt: skip
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=list(FLAGS))
        for theme in GROUNDS:
            page = enter(chromium, url, key, theme, DESKTOP, target / f"sign-in-{theme}.png")
            for name, path in pages.items():
                store(take(page, url + path, MOST_PX.get(name, USUAL_PX)), target / f"{name}-{theme}.png")
            phone = enter(chromium, url, key, theme, PHONE)
            small = [take(phone, url + pages[name], PHONE["height"]) for name in ON_PHONE]
            store(beside(small, GROUNDS[theme]), target / f"phone-{theme}.png")
        chromium.close()


def enter(
    chromium: Browser, url: str, key: str, theme: str, viewport: dict[str, int], door: Path | None = None
) -> Page:  # fmt: skip
    """A page that is signed in; the one that asks for a key is pictured on the way."""
    context = chromium.new_context(viewport=viewport, color_scheme=theme, timezone_id="Asia/Shanghai")  # type: ignore[arg-type]
    page = context.new_page()
    page.goto(f"{url}/sign-in")
    if door is not None:
        store(read(page.screenshot(clip={"x": 0, "y": 0, "width": viewport["width"], "height": 640})), door)
    page.get_by_label("API key").fill(key)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url(f"{url}/")
    return page


def take(page: Page, url: str, most_px: int) -> Image.Image:
    """A picture of a page from its top, once all that it shows is there."""
    page.goto(url)
    await_true(lambda: page.evaluate(WHOLE), f"all of {url} is there")
    high = page.evaluate("document.querySelector('main').scrollHeight")
    size = page.viewport_size
    assert size is not None
    page.set_viewport_size({"width": size["width"], "height": max(size["height"], min(high, most_px))})
    await_true(lambda: page.evaluate(WHOLE), f"all of {url} is there")
    page.wait_for_timeout(300)
    picture = read(page.screenshot())
    page.set_viewport_size(size)
    return picture


def read(data: bytes) -> Image.Image:
    """A screenshot as a picture."""
    return Image.open(io.BytesIO(data)).convert("RGB")


def store(picture: Image.Image, path: Path) -> None:
    """Store it in few colours, which keeps letters sharp: those that cover most of it exactly, the rest nearly."""
    pixels = np.asarray(picture).reshape(-1, 3)
    colours, places, counts = np.unique(pixels, axis=0, return_inverse=True, return_counts=True)
    exact = colours[np.argsort(-counts)[:EXACT]]
    near = picture.quantize(COLOURS - EXACT, Image.Quantize.MAXCOVERAGE, kmeans=1, dither=Image.Dither.NONE)
    palette = np.concatenate([exact, np.reshape(near.getpalette() or [], (-1, 3))])[:COLOURS].astype(np.int32)
    nearest = [np.argmin(((palette - colour.astype(np.int32)) ** 2).sum(axis=1)) for colour in colours]
    few = np.asarray(nearest, dtype=np.uint8)[places.reshape(-1)].reshape(picture.height, picture.width)
    stored = Image.fromarray(few, "P")
    stored.putpalette(palette.astype(np.uint8).tobytes())
    stored.save(path, optimize=True)


def beside(pictures: list[Image.Image], ground: str) -> Image.Image:
    """Pictures of a phone side by side."""
    height_px = round(PHONE["height"] * PHONE_PX / PHONE["width"])
    sheet = Image.new("RGB", (len(pictures) * (PHONE_PX + GAP_PX) + GAP_PX, height_px + 2 * GAP_PX), ground)
    for number, picture in enumerate(pictures):
        small = picture.resize((PHONE_PX, height_px), Image.Resampling.LANCZOS)
        sheet.paste(small, (GAP_PX + number * (PHONE_PX + GAP_PX), GAP_PX))
    return sheet


if __name__ == "__main__":
    main(*sys.argv[1:])
