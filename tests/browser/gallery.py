"""`python -m tests.browser.gallery URL KEY BATCH JOB DRAFT FOLDER`: a picture of every page in both themes, for docs.

DRAFT is the path of a draft, as `/new/…`. Desktop pictures are one a page and theme; phone ones stand side by side, one
picture a theme.
"""

import io
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from tests.browser.conftest import FLAGS

DESKTOP, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
SHOWN_PX, PHONE_PX, GAP_PX = 1120, 260, 20
QUALITY = 80
GROUNDS = {"light": "#e4e4e0", "dark": "#2a2a2a"}


def main(url: str, key: str, batch: str, job: str, draft: str, folder: str) -> None:
    """Take them all."""
    pages = {
        "overview": "/", "batches": "/batches", "batch": f"/batches/{batch}", "sheet": f"/batches/{batch}/sheet",
        "job": f"/jobs/{job}", "new": draft, "schedules": "/schedules", "workers": "/workers", "presets": "/presets",
        "keys": "/keys", "audit": "/audit",
    }  # fmt: skip
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=list(FLAGS))
        for theme in GROUNDS:
            page = enter(chromium, url, key, theme, DESKTOP, target / f"sign-in-{theme}.webp")
            for name, path in pages.items():
                save(take(page, url + path), target / f"{name}-{theme}.webp", SHOWN_PX)
            phone = enter(chromium, url, key, theme, PHONE, None)
            beside([take(phone, url + path) for path in pages.values()], GROUNDS[theme], target / f"phone-{theme}.webp")
        chromium.close()


def enter(
    chromium: Browser, url: str, key: str, theme: str, viewport: dict[str, int], door: Path | None
) -> Page:  # fmt: skip
    """A page that is signed in; the one that asks for a key is pictured on the way."""
    context = chromium.new_context(viewport=viewport, color_scheme=theme, timezone_id="Asia/Shanghai")  # type: ignore[arg-type]
    page = context.new_page()
    page.goto(f"{url}/sign-in")
    if door is not None:
        save(Image.open(io.BytesIO(page.screenshot())), door, SHOWN_PX)
    page.get_by_label("API key").fill(key)
    page.get_by_role("button", name="Sign in").click()
    return page


def take(page: Page, url: str) -> Image.Image:
    """A picture of a page once all of its own pictures are there."""
    page.goto(url)
    page.wait_for_load_state("load")
    page.wait_for_timeout(700)
    page.wait_for_function("Array.from(document.images).filter(i => i.getBoundingClientRect().top < innerHeight)"
                           ".every(i => i.complete)")  # fmt: skip
    return Image.open(io.BytesIO(page.screenshot())).convert("RGB")


def save(picture: Image.Image, path: Path, width_px: int) -> None:
    """Store it, so wide."""
    picture.resize((width_px, round(picture.height * width_px / picture.width)), Image.Resampling.LANCZOS).save(
        path, "WEBP", quality=QUALITY, method=6
    )


def beside(pictures: list[Image.Image], ground: str, path: Path) -> None:
    """Store pictures side by side, in two rows."""
    height_px = round(PHONE["height"] * PHONE_PX / PHONE["width"])
    columns = -(-len(pictures) // 2)
    sheet = Image.new(
        "RGB", (columns * (PHONE_PX + GAP_PX) + GAP_PX, 2 * (height_px + GAP_PX) + GAP_PX), ground
    )  # fmt: skip
    for number, picture in enumerate(pictures):
        row, column = divmod(number, columns)
        small = picture.resize((PHONE_PX, height_px), Image.Resampling.LANCZOS)
        sheet.paste(small, (GAP_PX + column * (PHONE_PX + GAP_PX), GAP_PX + row * (height_px + GAP_PX)))
    sheet.save(path, "WEBP", quality=QUALITY, method=6)


if __name__ == "__main__":
    main(*sys.argv[1:])
