"""A day at the dashboard, by a real browser: sign in, make a batch, watch it, mend it, decide, plan the night."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from orchestrator.state import queries
from orchestrator.storage import open_store
from orchestrator.submission import inputs_uri
from tests.browser.conftest import Visitor
from tests.browser.site import Site, await_true

PHONE = {"width": 390, "height": 844}
SETTLED = "document.querySelectorAll('.htmx-request').length === 0"


@pytest.fixture(scope="module")
def batch_id(site: Site) -> list[str]:
    """Filled by the test that makes the batch; those after it go on with it."""
    return []


def pages(batch_id: str, job_id: int) -> tuple[str, ...]:
    return ("/", "/batches", f"/batches/{batch_id}", f"/batches/{batch_id}/sheet", f"/jobs/{job_id}", "/new",
            "/schedules", "/workers", "/presets", "/keys", "/audit")  # fmt: skip


def first_job(site: Site, batch_id: str) -> int:
    return int(site.ask(queries.list_jobs, batch_id, limit=1).jobs[0]["id"])


def sent_key(photo: Path) -> str:
    """Where a photo lies once it was dropped."""
    return f"{hashlib.sha256(photo.read_bytes()).hexdigest()}.jpg"


def test_only_a_key_opens_the_door(visitor: Visitor) -> None:
    page = visitor.open()
    page.goto("/batches?status=open")
    page.get_by_label("API key").fill("kx_guess")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("alert")).to_contain_text("not valid")
    visitor.complaints.clear()  # of the 401, which is right
    page.get_by_label("API key").fill(visitor.site.key)
    page.get_by_role("button", name="Sign in").click()
    expect(page).to_have_url(f"{visitor.site.url}/batches?status=open")
    page.get_by_role("button", name="Sign out").first.click()
    expect(page.get_by_label("API key")).to_be_visible()


def test_a_dropped_catalogue_is_watched_to_its_end_without_a_reload(
    visitor: Visitor, site: Site, photos: list[Path], batch_id: list[str]
) -> None:
    page = visitor.enter("/new")
    page.get_by_label("choose them").set_input_files(photos)
    expect(page.get_by_text("5 files: spring.csv")).to_be_visible()
    page.get_by_role("button", name="Go on").click()
    expect(page.get_by_role("button", name="Start 4 jobs")).to_be_enabled()
    page.get_by_label("Prompt", exact=True).select_option("SKU")  # by mistake, and back
    page.get_by_label("Prompt", exact=True).select_option("–")
    expect(page).to_have_url(re.compile(r"column\.image=Photo.*column\.custom_id=SKU"))
    sent = open_store(inputs_uri(site.settings), site.settings)
    sent.delete(sent_key(photos[4]))  # lost behind the pages' back
    page.add_init_script(
        """window.seenAt = {};
        new MutationObserver(() => {
            const told = document.querySelector("#live")?.textContent.match(/(\\d) of 4 ended/);
            if (told) window.seenAt[told[1]] ??= Date.now() / 1000;
        }).observe(document, { childList: true, subtree: true });"""
    )
    page.get_by_role("button", name="Start 4 jobs").click()
    page.wait_for_url("**/batches/*")
    batch_id.append(page.url.rpartition("/")[2])
    page.evaluate("window.unbroken = true")
    expect(page.get_by_text("4 of 4 ended")).to_be_visible()
    expect(page.locator("#live .badge.completed")).to_be_visible()
    expect(page).to_have_title(re.compile("^completed: spring.csv"))
    expect(page.locator("#jobs img[alt='Result of sku-0']")).to_be_visible()
    assert page.evaluate("window.unbroken"), "the page was never loaded again"
    ended = sorted(job["ended_at"] for job in site.ask(queries.list_jobs, batch_id[0], limit=9).jobs)
    seen = page.evaluate("window.seenAt")
    assert min(seen[str(n)] - at for n, at in enumerate(ended, 1) if str(n) in seen) < 1.0, "live within a second"
    assert seen["4"] - ended[-1] < 10.0, "to the end, where machines stall a while"


def test_a_failure_is_opened_and_its_group_retried(
    visitor: Visitor, site: Site, batch_id: list[str], photos: list[Path]
) -> None:
    page = visitor.enter(f"/batches/{batch_id[0]}")
    page.get_by_role("link", name="image_missing").click()
    expect(page).to_have_url(re.compile("state=failed&code=image_missing"))
    page.get_by_role("link", name="sku-3").last.click()
    expect(page.get_by_text("image_missing").first).to_be_visible()
    expect(page.get_by_role("heading", name="Log", exact=True)).to_be_visible()
    open_store(inputs_uri(site.settings), site.settings).put(sent_key(photos[4]), photos[4].read_bytes())
    page.go_back()
    page.get_by_role("button", name="Retry 1").click()
    expect(page.get_by_text("1 job to be tried again")).to_be_visible()
    expect(page.locator("#live").get_by_text("4 succeeded")).to_be_visible()
    expect(page.get_by_role("heading", name="Why jobs failed")).to_have_count(0)


def test_pictures_are_decided_on_with_keys_alone(visitor: Visitor, site: Site, batch_id: list[str]) -> None:
    page = visitor.enter(f"/batches/{batch_id[0]}/sheet")
    expect(page.locator("[data-frame]")).to_have_count(4)
    for key in ("j", "a", "r", "j", "k", "g"):  # approve the first, reject the second, another take of the third
        page.keyboard.press(key)
        page.wait_for_timeout(60)
    expect(page.locator(".frame.approved")).to_have_count(1)
    expect(page.locator(".frame.rejected")).to_have_count(1)
    expect(page.locator("[data-frame]")).to_have_count(5)
    expect(page.locator("[data-count=approved]")).to_have_text("1")
    expect(page.locator("[data-count=all]")).to_have_text("5")
    expect(page.locator(".frame", has_text="take 2").locator("img")).to_have_count(2)

    def decided() -> list[tuple[int, int, str | None]]:
        rows = site.ask(queries.list_jobs, batch_id[0], limit=9).jobs
        return [(row["line"], row["take"], row["decision"]) for row in rows]

    other = visitor.enter(f"/batches/{batch_id[0]}/sheet")
    other.locator("[data-frame]").last.get_by_role("button", name="Approve").click()
    expect(page.locator(".frame.approved")).to_have_count(2)  # what others decide is seen, too
    expect(page.locator("[data-count=approved]")).to_have_text("2")
    other.locator("[data-frame]").last.get_by_role("button", name="Approve").click()
    expect(page.locator("[data-count=approved]")).to_have_text("1")
    assert decided() == [(2, 1, "approved"), (3, 1, "rejected"), (4, 1, None), (4, 2, None), (5, 1, None)]
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Takes of this row")).to_be_visible()

    def told() -> object:
        batch = site.ask(queries.read_batch, batch_id[0])
        if batch.manifest_uri is None or batch.decisions > batch.decisions_told:
            return None
        data = open_store(batch.results_uri, site.settings).get("manifest.jsonl")
        return [json.loads(line)["approved_take"] for line in data.decode().splitlines()]

    await_true(lambda: told() == [1, None, None, None, None], "the manifest names the approved take")


def test_a_job_shows_how_it_came_to_be_and_its_slider_moves_by_keys(
    visitor: Visitor, site: Site, batch_id: list[str]
) -> None:
    page = visitor.enter(f"/jobs/{first_job(site, batch_id[0])}")
    expect(page.get_by_role("heading", name="While it was denoised")).to_be_visible()
    slider = page.get_by_role("slider")
    slider.focus()
    before = page.locator(".compare .edge").bounding_box()
    assert before is not None
    for _ in range(10):
        page.keyboard.press("ArrowRight")

    def moved() -> bool:
        after = page.locator(".compare .edge").bounding_box()
        return after is not None and after["x"] > before["x"] + 20

    await_true(moved, "the slider moves")


def test_a_selection_is_kept_while_the_page_is_live(visitor: Visitor, batch_id: list[str]) -> None:
    page = visitor.enter(f"/batches/{batch_id[0]}")
    page.get_by_label("Select sku-0", exact=True).check()
    expect(page.get_by_text("1 selected")).to_be_visible()
    page.evaluate("htmx.trigger(document.querySelector('#jobs'), 'refresh')")
    page.wait_for_timeout(400)
    expect(page.get_by_label("Select sku-0", exact=True)).to_be_checked()
    page.get_by_role("button", name="Reject").click()
    expect(page.get_by_text("1 picture rejected")).to_be_visible()


def test_what_was_done_is_said_though_parts_are_fetched_before_the_answer_is_followed(
    visitor: Visitor, batch_id: list[str]
) -> None:
    page = visitor.enter(f"/batches/{batch_id[0]}")
    page.get_by_label("Select sku-0", exact=True).check()
    page.evaluate("setInterval(() => htmx.trigger(document.querySelector('#live'), 'refresh'), 100)")
    devtools = page.context.new_cdp_session(page)
    devtools.send("Fetch.enable", {"patterns": [{"urlPattern": "*/bulk", "requestStage": "Response"}]})
    answers: list[dict[str, Any]] = []
    devtools.on("Fetch.requestPaused", lambda answer: answers.append(answer))
    page.evaluate(  # the hasty press a button twice
        """() => {
            const button = document.querySelector("button[value=approve]");
            button.addEventListener("click", () => setTimeout(() => button.click(), 50), { once: true });
        }"""
    )
    with page.expect_request(lambda request: bool(answers) and "part=live" in request.url) as live:
        page.get_by_role("button", name="Approve").click(no_wait_after=True)
    assert live.value.response() is not None, "fetched while the form's answer is on the way"
    page.wait_for_timeout(300)
    assert len(answers) == 1, "it was sent once"
    devtools.send("Fetch.continueRequest", {"requestId": answers[0]["requestId"]})
    expect(page.get_by_text("1 picture approved")).to_be_visible()


def test_a_tab_that_nobody_sees_gives_its_connection_back(visitor: Visitor, batch_id: list[str]) -> None:
    page = visitor.enter("/batches")
    with page.expect_request("**/live?batch=*"):
        page.goto(f"/batches/{batch_id[0]}")
    seen = "hidden => { Object.defineProperty(document, 'hidden', { value: hidden, configurable: true }); \
        document.dispatchEvent(new Event('visibilitychange')); }"
    with page.expect_event("requestfailed", lambda request: "/live?" in request.url):
        page.evaluate(seen, True)
    with page.expect_request("**/live?batch=*"):
        page.evaluate(seen, False)
    expect(page.locator("[data-live-state]")).to_have_text("live")


def test_a_schedule_is_made_and_fires(visitor: Visitor, site: Site, photos: list[Path]) -> None:
    page = visitor.enter("/schedules")
    catalogue = site.folder / "night.csv"
    catalogue.write_text(f"image\n{photos[1].name}\n")
    for label, text in (("Name", "nightly"), ("When", "0 2 * *"), ("Catalogue", str(catalogue))):
        page.get_by_label(label, exact=True).fill(text)
    page.get_by_role("button", name="Make the schedule").click()
    expect(page.get_by_role("alert")).to_contain_text("expected five fields")
    visitor.complaints.clear()  # of the 422, which is right
    page.get_by_label("When", exact=True).fill("0 2 * * *")
    page.get_by_role("button", name="Make the schedule").click()
    expect(page.get_by_text("nightly fires next at")).to_be_visible()
    page.get_by_role("button", name="Run now").click()
    runs = page.locator("section", has=page.get_by_role("heading", name="Past runs"))
    expect(runs.locator(".badge.completed")).to_be_visible()
    expect(runs.get_by_text("1 reused")).to_be_visible()


def test_dark_mode_is_chosen_and_kept(visitor: Visitor) -> None:
    page = visitor.enter("/batches")
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(ground)
    with page.expect_response("**/theme"):
        page.get_by_role("button", name="Dark").first.click()
    assert page.evaluate(ground) != light
    page.reload()
    assert page.evaluate(ground) != light
    assert visitor.enter("/batches", color_scheme="dark").evaluate(ground) != light, "as the system is"


def test_pages_fit_a_phone_and_its_menu_opens(visitor: Visitor, site: Site, batch_id: list[str]) -> None:
    page = visitor.enter("/", viewport=PHONE)
    for path in pages(batch_id[0], first_job(site, batch_id[0])):
        page.goto(path)
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide <= PHONE["width"], f"{path} is {wide} px wide"
    page.get_by_text("Menu").click()
    page.get_by_role("link", name="Workers").last.click()
    expect(page.get_by_role("heading", name="Alive")).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_page_shuts_anybody_out(visitor: Visitor, site: Site, batch_id: list[str], scheme: str) -> None:
    page = visitor.enter("/", color_scheme=scheme)
    found = {}
    for path in pages(batch_id[0], first_job(site, batch_id[0])):
        page.goto(path)
        found |= serious(page, path)
    assert found == {}


def test_pages_are_legible_without_scripts(visitor: Visitor, batch_id: list[str]) -> None:
    page = visitor.enter(f"/batches/{batch_id[0]}", java_script_enabled=False)
    expect(page.get_by_role("link", name="sku-0").last).to_be_visible()
    page.get_by_role("link", name=re.compile("^Succeeded")).click()
    expect(page).to_have_url(re.compile("state=succeeded"))
    page.get_by_label("all that match").check()
    page.get_by_role("button", name="Approve").click()
    expect(page.get_by_role("status")).to_contain_text("approved")


def serious(page: Page, path: str) -> dict[str, str]:
    """What axe-core holds against a page, beyond what is minor."""
    results = Axe().run(page, options={"resultTypes": ["violations"]}).response
    return {
        f"{path} {found['id']}": "; ".join(node["html"][:160] for node in found["nodes"][:3])
        for found in results["violations"]
        if found["impact"] in ("serious", "critical")
    }
