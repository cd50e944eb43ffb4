"""A shop for tests: photos, a batch of them, and one worker in this process, with a model that only counts."""

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import redis
import torch
from PIL import Image
from sqlalchemy import Engine
from torch import Tensor

from kontext_model.canvas import Canvas
from kontext_model.revision import Defaults
from kontext_model.text import TextEmbeds
from orchestrator.settings import Settings
from orchestrator.state import queries
from orchestrator.state.bulk import insert_jobs
from orchestrator.state.messages import Bell
from orchestrator.state.transitions import Stage
from tests.integration.seeding import REVISION, Seeder, job_row
from workers.bench import open_bench
from workers.handoff import Handoffs
from workers.tasks import Worker

RECIPE = {
    "prompt": "x", "negative_prompt": None, "true_cfg": 1.0, "steps": 1, "guidance": 1.0, "sampler": "euler",
    "fit": "pad", "width": None, "height": None,
}  # fmt: skip
DEFAULTS = Defaults(area_px=256 * 256, text_length=16, steps=1, guidance=1.0)


@dataclass
class CountingEditor:
    """A model that draws plain pictures and counts what it was asked for."""

    draw: Callable[[tuple[int, int]], Image.Image] = lambda size: Image.new("RGB", size, "grey")
    calls: dict[str, int] = field(default_factory=lambda: {"encode": 0, "sample": 0, "decode": 0})
    revision: str = REVISION
    defaults: Defaults = DEFAULTS
    draws_previews: bool = False

    def encode_text(self, texts: Sequence[str]) -> TextEmbeds:
        return TextEmbeds(torch.zeros(len(texts), 8), torch.zeros(len(texts), 16, 8))

    def encode_images(self, images: Sequence[Image.Image], canvas: Canvas, fit: str = "pad") -> Tensor:
        self.calls["encode"] += len(images)
        return torch.zeros(len(images), canvas.tokens, 64)

    def sample(self, condition: Tensor, *_: Any, **__: Any) -> Tensor:
        self.calls["sample"] += len(condition)
        return condition

    def decode(self, tokens: Tensor, canvas: Canvas) -> list[Image.Image]:
        self.calls["decode"] += len(tokens)
        return [self.draw((canvas.width_px, canvas.height_px)) for _ in tokens]


@dataclass
class Shop:
    """Makes batches in a database and works them off."""

    engine: Engine
    settings: Settings
    cache_url: str
    editor: CountingEditor = field(default_factory=CountingEditor)

    def submit(self, batch_id: str, images: Sequence[str], image_root: str, *, prompt: str = "x", **given: Any) -> None:
        """A running batch of these images, whose jobs wait for encode."""
        given = {"results_uri": f"{self.settings.results_uri}/{batch_id}", "numerics": self.settings.numerics, **given}
        Seeder(self.engine).batch(batch_id, image_root=image_root, **given)
        with self.engine.begin() as connection:
            queries.add_recipes(connection, {prompt: json.dumps({**RECIPE, "prompt": prompt})})
            rows = [job_row(batch_id, line, prompt, image=image) for line, image in enumerate(images, start=1)]
            assert insert_jobs(connection, rows) == []
            queries.dispatch(connection, batch_id, len(rows))

    def work(self) -> dict[str, int]:
        """One worker, until nothing is queued that may run now; gives what the model was asked for, image by image."""
        self.editor.calls = dict.fromkeys(self.editor.calls, 0)
        with redis.Redis.from_url(self.cache_url) as cache:
            handoffs = Handoffs(cache, ttl_s=600, scope="test")
            with open_bench(self.engine, self.settings, self.editor, handoffs) as bench:
                worker = Worker("w", bench, frozenset(Stage), lambda bells: None)
                while any(worker.serve(Bell(stage, REVISION, "")) for stage in Stage):
                    pass
        return self.editor.calls

    def rows(self, batch_id: str) -> list[dict[str, Any]]:
        return [dict(row) for row in queries.stream_jobs(self.engine, batch_id)]


def photo(colour: str, size: tuple[int, int] = (64, 64)) -> bytes:
    """A JPEG of one colour."""
    stream = io.BytesIO()
    Image.new("RGB", size, colour).save(stream, "JPEG")
    return stream.getvalue()
