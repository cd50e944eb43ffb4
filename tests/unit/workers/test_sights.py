"""Sights: photos from the web are kept small, once, and are no concern of the job's."""

import io

import structlog
from PIL import Image

from tests.unit.workers.benches import Full, claim
from workers.bench import Bench
from workers.sights import keep_sights

WEB = claim(1, "7", "https://images.example.com/7.jpg?token=S3cret")
DIGESTS = {WEB: "5" * 64}


def test_a_photo_of_the_web_is_kept_small_and_once(bench: Bench) -> None:
    own = claim(2, "8", "photos/8.jpg")
    digests = {**DIGESTS, own: "6" * 64}
    for colour in ("teal", "red"):
        keep_sights(bench, {job: Image.new("RGB", (2560, 320), colour) for job in (WEB, own)}, digests)
    store = bench.store(bench.batch("b").results_uri)
    kept = Image.open(io.BytesIO(store.get(f".sights/{'5' * 64}.webp"))).convert("RGB")
    red, green, _ = kept.getpixel((9, 9))  # type: ignore[misc]
    assert kept.size == (1280, 160) and green > red, "it was teal first"
    assert store.head(f".sights/{'6' * 64}.webp") is None, "what lies in a store is shown from there"


def test_a_full_store_costs_no_job(bench: Bench) -> None:
    bench.store = lambda _: Full()  # type: ignore[assignment,return-value]
    with structlog.testing.capture_logs() as logs:
        keep_sights(bench, {WEB: Image.new("RGB", (40, 40))}, DIGESTS)
    assert [(entry["job"], entry["error"]) for entry in logs] == [(1, "no room is left")]
