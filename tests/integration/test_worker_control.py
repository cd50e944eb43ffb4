"""What a worker does when its batch is cancelled under its hands, and when its device has too little memory."""

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import torch
from PIL import Image
from sqlalchemy import Engine, update
from sqlalchemy.exc import OperationalError
from torch import Tensor

from orchestrator import control
from orchestrator.settings import Settings
from orchestrator.state import queries
from orchestrator.state.messages import Bell, handoff_key
from orchestrator.state.tables import jobs
from orchestrator.state.transitions import Stage
from tests.chaos.model import EchoEditor
from tests.integration.seeding import RECIPE, REVISION, Seeder
from workers import failures, stages
from workers.bench import open_bench
from workers.handoff import Handoffs
from workers.tasks import Worker

BODY = {
    "prompt": "x", "negative_prompt": None, "steps": 50, "guidance": 1.0, "true_cfg": 1.0, "width": None,
    "height": None, "fit": "pad", "sampler": "euler",
}  # fmt: skip


class Editor(EchoEditor):
    """Samples step by step; `on_sample` is told the size of the unit, `on_step` after each step."""

    revision = REVISION

    def __init__(self) -> None:
        self.units: list[int] = []
        self.steps = 0
        self.on_unit: Callable[[int], None] = lambda size: None
        self.on_step: Callable[[int], None] = lambda step: None

    def sample(self, condition: Tensor, *given: Any, **named: Any) -> Tensor:
        self.units.append(len(condition))
        self.on_unit(len(condition))
        still_wanted = given[-1]
        for step in range(BODY["steps"]):
            self.steps += 1
            self.on_step(step)
            if still_wanted(step, condition) is False:
                raise RuntimeError("stopped")
        return condition


@dataclasses.dataclass
class Shop:
    """A batch of photos, and a worker for it."""

    seed: Seeder
    editor: Editor
    worker: Worker

    def serve(self, stage: Stage) -> int:
        return self.worker.serve(Bell(stage, REVISION, RECIPE))


@pytest.fixture
def shop(engine: Engine, tmp_path: Path, valkey_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    monkeypatch.setattr(stages, "WATCH_INTERVAL_S", 0.0)
    for line in range(1, 9):
        Image.new("RGB", (64, 64), (line * 20, 0, 0)).save(tmp_path / f"{line}.jpg")
    seed = Seeder(engine)
    seed.queued(8, image_root=str(tmp_path), results_uri=str(tmp_path / "results"))
    seed.do(queries.add_recipes, {RECIPE: json.dumps(BODY)})
    settings = Settings(home=tmp_path / "home", unit_size=8)
    handoffs = Handoffs(redis.Redis.from_url(valkey_url), ttl_s=600, scope="test")
    editor = Editor()
    with open_bench(engine, settings, editor, handoffs) as bench:
        yield Shop(seed, editor, Worker("w", bench, frozenset(), lambda bells: None))
    handoffs._cache.close()


def test_a_cancelled_unit_stops_at_its_next_sampler_step(shop: Shop) -> None:
    shop.serve(Stage.ENCODE)

    def cancel(step: int) -> None:
        if step == 3:
            assert control.cancel(shop.seed.engine, "b").jobs == 8

    shop.editor.on_step = cancel
    assert shop.serve(Stage.SAMPLE) == 8
    assert shop.editor.steps == 4 and shop.editor.units == [8]  # neither to the end, nor again for each alone
    assert {(row["state"], row["attempt"], row["failures"]) for row in shop.seed.rows()} == {("cancelled", 1, 0)}


def test_a_unit_of_which_some_are_wanted_goes_on(shop: Shop) -> None:
    shop.serve(Stage.ENCODE)
    cancelled = shop.seed.rows()[0]["id"]

    def cancel(step: int) -> None:
        if step == 3:
            with shop.seed.engine.begin() as connection:
                connection.execute(update(jobs).where(jobs.c.id == cancelled).values(state="cancelled", attempt=1))

    shop.editor.on_step = cancel
    shop.serve(Stage.SAMPLE)
    assert shop.editor.steps == BODY["steps"]
    states = [(row["state"], row["stage"]) for row in shop.seed.rows()]
    assert states == [("cancelled", "sample")] + [("queued", "decode")] * 7
    left = handoff_key("b", cancelled, Stage.SAMPLE)
    assert not shop.worker.bench.handoffs._cache.exists(left), "nobody will ask for it"
    shop.worker.bench.handoffs._latest.clear()  # as if it fetched them
    assert shop.serve(Stage.DECODE) == 7


def test_a_database_that_cannot_be_asked_stops_no_sampling(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.serve(Stage.ENCODE)

    def hiccup(*_: Any) -> bool:
        raise OperationalError("SELECT", {}, Exception("the connection is lost"))

    monkeypatch.setattr(queries, "any_held", hiccup)
    assert shop.serve(Stage.SAMPLE) == 8
    assert shop.editor.steps == BODY["steps"] and shop.editor.units == [8]
    assert {(row["state"], row["stage"], row["failures"]) for row in shop.seed.rows()} == {("queued", "decode", 0)}


def test_a_job_that_failed_leaves_nothing_behind_that_is_deleted_under_its_retry(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(
        failures.POLICIES, failures.ErrorClass.INTERNAL, failures.Policy(tries=1, base_s=0.0, ceiling_s=0.0)
    )

    def break_down(size: int) -> None:
        raise ValueError("broken")

    shop.editor.on_unit = break_down
    shop.serve(Stage.ENCODE)
    keys = [handoff_key("b", row["id"], Stage.ENCODE) for row in shop.seed.rows()]
    cache = shop.worker.bench.handoffs._cache
    assert cache.exists(*keys) == 8
    shop.serve(Stage.SAMPLE)
    assert {row["state"] for row in shop.seed.rows()} == {"failed"} and cache.exists(*keys) == 0
    control.retry(shop.seed.engine, "b")
    shop.seed.do(queries.dispatch, "b", 8)
    shop.serve(Stage.ENCODE)
    assert cache.exists(*keys) == 8


def test_too_little_memory_is_met_by_smaller_units_until_they_fit(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        failures.POLICIES, failures.ErrorClass.CAPACITY, failures.Policy(tries=3, base_s=0.0, ceiling_s=0.0)
    )

    def allocate(size: int) -> None:
        if size > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")

    shop.editor.on_unit = allocate
    shop.serve(Stage.ENCODE)
    while shop.serve(Stage.SAMPLE):
        pass
    assert sorted(shop.editor.units, reverse=True) == [8, 4, 4, 2, 2, 2, 2]
    rows = shop.seed.rows()
    assert {(row["state"], row["stage"], row["failures"], row["unit_limit"]) for row in rows} == {
        ("queued", "decode", 0, None)
    }


def test_a_job_that_finds_too_little_memory_alone_fails_after_its_tries(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(
        failures.POLICIES, failures.ErrorClass.CAPACITY, failures.Policy(tries=2, base_s=0.0, ceiling_s=0.0)
    )

    def allocate(size: int) -> None:
        raise MemoryError

    shop.editor.on_unit = allocate
    shop.serve(Stage.ENCODE)
    while shop.serve(Stage.SAMPLE):
        pass
    assert sorted(shop.editor.units, reverse=True) == [8, 4, 4, 2, 2, 2, 2] + [1] * 16
    assert {(row["state"], row["code"], row["failures"]) for row in shop.seed.rows()} == {
        ("failed", "out_of_memory", 2)
    }
