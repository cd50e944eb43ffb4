"""Previews: one strip a job, stored once, and no concern of the job's."""

import io
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import structlog
from PIL import Image
from sqlalchemy import create_engine

from orchestrator.settings import Settings
from orchestrator.state.queries import Claimed
from orchestrator.storage import StorageError
from workers.bench import Bench, open_bench
from workers.previews import join, record


def claimed(job_id: int, custom_id: str) -> Claimed:
    return Claimed(job_id, "b", 1, 1, custom_id, "a.jpg", "r", 0, "16x16", 0, 0, 0, "f" * 64)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """A bench of a worker that can draw, whose batch keeps its results in a folder."""
    editor: Any = SimpleNamespace(draws_previews=True)
    handoffs: Any = None
    with open_bench(create_engine("sqlite://"), Settings(home=tmp_path, preview_every=2), editor, handoffs) as opened:
        batch: Any = SimpleNamespace(results_uri=str(tmp_path / "results"))
        opened.batch = lambda _: batch  # type: ignore[assignment]
        yield opened


def test_a_strip_is_stored_beside_the_result_once(bench: Bench) -> None:
    jobs = [claimed(1, "shirts/7"), claimed(2, "8")]
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
    assert record(given, [claimed(1, "a")]) is None


def test_a_full_store_costs_no_job(bench: Bench) -> None:
    class Full:
        ignores_case = False

        def put(self, *_: Any, **__: Any) -> bool:
            raise StorageError("no room is left")

    bench.store = lambda _: Full()  # type: ignore[assignment,return-value]
    recorder = record(bench, [claimed(1, "a")])
    assert recorder is not None
    recorder.note(0, [Image.new("RGB", (4, 4))])
    with structlog.testing.capture_logs() as logs:
        recorder.store()
    assert [(entry["job"], entry["error"]) for entry in logs] == [(1, "no room is left")]


def test_frames_stand_side_by_side() -> None:
    strip = join([Image.new("RGB", (2, 3), "red"), Image.new("RGB", (2, 3), "lime")])
    assert strip.size == (4, 3) and strip.getpixel((3, 2)) == (0, 255, 0)
