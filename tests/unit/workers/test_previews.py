"""Previews: one strip a job, stored once, and no concern of the job's."""

import io
from types import SimpleNamespace
from typing import Any

import pytest
import structlog
from PIL import Image

from orchestrator.settings import Settings
from tests.unit.workers.benches import Full, claim
from workers.bench import Bench
from workers.previews import join, record


def test_a_strip_is_stored_beside_the_result_once(bench: Bench) -> None:
    jobs = [claim(1, "shirts/7"), claim(2, "8")]
    for colour in ("red", "blue"):  # the second is a later attempt's, which leaves the first one's
        recorder = record(bench, jobs)
        assert recorder is not None
        for step in range(3):
            recorder.note(step, [Image.new("RGB", (4, 6), colour) for _ in jobs])
        recorder.store()
    store = bench.store(bench.batch("b").results_uri)
    strip = Image.open(io.BytesIO(store.get(".previews/shirts/7.png")))
    assert (strip.size, strip.getpixel((11, 0))) == ((12, 6), (255, 0, 0))
    assert store.head(".previews/8.png") is not None


@pytest.mark.parametrize(("every", "draws"), [(0, True), (2, False)])
def test_none_are_recorded_where_nobody_asks_or_the_worker_cannot_draw(every: int, draws: bool) -> None:
    given: Any = SimpleNamespace(settings=Settings(preview_every=every), editor=SimpleNamespace(draws_previews=draws))
    assert record(given, [claim(1, "a")]) is None


def test_a_full_store_costs_no_job(bench: Bench) -> None:
    bench.store = lambda _: Full()  # type: ignore[assignment,return-value]
    recorder = record(bench, [claim(1, "a")])
    assert recorder is not None
    recorder.note(0, [Image.new("RGB", (4, 4))])
    with structlog.testing.capture_logs() as logs:
        recorder.store()
    assert [(entry["job"], entry["error"]) for entry in logs] == [(1, "no room is left")]


def test_frames_stand_side_by_side() -> None:
    strip = join([Image.new("RGB", (2, 3), "red"), Image.new("RGB", (2, 3), "lime")])
    assert strip.size == (4, 3) and strip.getpixel((3, 2)) == (0, 255, 0)
