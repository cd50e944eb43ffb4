"""Previews: one strip a job, stored once, and no concern of the job's."""

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from kontext_model.checkpoint import CheckpointError
from orchestrator.state.queries import Claimed
from orchestrator.storage import StorageError, open_store
from workers.previews import join, record


def claimed(job_id: int, custom_id: str) -> Claimed:
    return Claimed(job_id, "b", 1, 1, custom_id, "a.jpg", "r", 0, "16x16", 0, 0, 0, "f" * 64)


class Part:
    """A checkpoint that has the decode stage, or not."""

    def __init__(self, decodes: bool) -> None:
        self.decodes = decodes

    def check_stage(self, stage: str) -> None:
        if not self.decodes:
            raise CheckpointError("opened without it")


def bench(store: Any, every: int = 2, decodes: bool = True) -> Any:
    return SimpleNamespace(
        settings=SimpleNamespace(preview_every=every),
        editor=SimpleNamespace(checkpoint=Part(decodes)),
        batch=lambda _: SimpleNamespace(results_uri="results"),
        store=lambda _: store,
    )


def test_a_strip_is_stored_beside_the_result_once(tmp_path: Path, settings: Any) -> None:
    store = open_store(str(tmp_path), settings)
    jobs = [claimed(1, "shirts/7"), claimed(2, "8")]
    for colour in ("red", "blue"):  # the second is a later attempt's, which leaves the first one's
        recorder = record(bench(store), jobs)
        assert recorder is not None
        for step in range(3):
            recorder.note(step, [Image.new("RGB", (4, 6), colour) for _ in jobs])
        recorder.store()
    strip = Image.open(io.BytesIO(store.get(".previews/shirts/7.png")))
    assert (strip.size, strip.getpixel((11, 0))) == ((12, 6), (255, 0, 0))
    assert store.head(".previews/8.png") is not None


@pytest.mark.parametrize(("every", "decodes"), [(0, True), (2, False)])
def test_none_are_recorded_where_nobody_asks_or_the_worker_cannot_draw(every: int, decodes: bool) -> None:
    assert record(bench(None, every, decodes), [claimed(1, "a")]) is None


def test_a_full_store_costs_no_job() -> None:
    class Full:
        ignores_case = False

        def put(self, *_: Any, **__: Any) -> bool:
            raise StorageError("no room is left")

    recorder = record(bench(Full()), [claimed(1, "a")])
    assert recorder is not None
    recorder.note(0, [Image.new("RGB", (4, 4))])
    recorder.store()


def test_frames_stand_side_by_side() -> None:
    strip = join([Image.new("RGB", (2, 3), "red"), Image.new("RGB", (2, 3), "lime")])
    assert strip.size == (4, 3) and strip.getpixel((3, 2)) == (0, 255, 0)
