"""What a worker process works with: the model, the stores, the handoffs, threads for waiting.

Owns what is kept between units: batches, recipes, text embeds, open stores. Refuses to know the stages.
"""

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import structlog
from PIL import Image
from sqlalchemy import Engine
from torch import Tensor

from kontext_model.canvas import Canvas
from kontext_model.lora_file import LoraPin
from kontext_model.revision import Defaults
from kontext_model.text import CutPromptWarning, TextEmbeds
from orchestrator.settings import Settings
from orchestrator.state import queries
from orchestrator.state.database import single
from orchestrator.state.queries import Batch, Claimed
from orchestrator.storage import open_store
from orchestrator.storage.loras import fetch_lora
from workers.decoder import Decoders
from workers.handoff import Handoffs
from workers.ledger import Ledger

if TYPE_CHECKING:
    from kontext_model.lora import Lora
    from kontext_model.preview import OnPreview

NETWORK_LANES, DISK_LANES = 8, 2
"""Calls at once. Networks are waited for; threads that copy from and to a disk stand in each other's way."""
log = structlog.get_logger("bench")
Recipe = Mapping[str, Any]
Result = TypeVar("Result")


class Editor(Protocol):
    """The model as the stages see it; `kontext_model.KontextEditor` is one."""

    @property
    def defaults(self) -> Defaults: ...
    @property
    def revision(self) -> str: ...
    @property
    def draws_previews(self) -> bool: ...
    def encode_text(self, texts: Sequence[str]) -> TextEmbeds: ...
    def encode_images(self, images: Sequence[Image.Image], canvas: Canvas, fit: str = ...) -> Tensor: ...
    def sample(
        self, condition: Tensor, text: TextEmbeds, canvas: Canvas, seeds: Sequence[int], steps: int, guidance: float,
        true_cfg: float = ..., negative: TextEmbeds | None = ..., sampler: str = ...,
        on_step: Callable[[int, Tensor], bool | None] | None = ..., *, lora: "Lora | None" = ...,
        on_preview: "OnPreview | None" = ..., preview_every: int = ...,
    ) -> Tensor: ...  # fmt: skip
    def decode(self, tokens: Tensor, canvas: Canvas) -> list[Image.Image]: ...


class Bench:
    """The tools of one worker process."""

    def __init__(self, engine: Engine, settings: Settings, editor: Editor, handoffs: Handoffs) -> None:
        self.engine, self.settings, self.editor, self.handoffs = engine, settings, editor, handoffs
        self.threads = ThreadPoolExecutor(NETWORK_LANES, thread_name_prefix="io")
        self.store = lru_cache(64)(lambda uri: open_store(uri, settings))
        self.batch = lru_cache(256)(self._read_batch)
        self.recipe = lru_cache(256)(self._read_recipe)
        self.direct = single(engine)
        self.ledger = Ledger(engine)
        self.decoders = Decoders(settings.max_image_px)
        self._renewed: dict[str, float] = {}
        self._embeds: Callable[[str], TextEmbeds] = lru_cache(32)(self._take_embeds)

    def embeds(self, text: str) -> TextEmbeds | None:
        """A text's embeds, kept in this process; None when Redis has lost them."""
        try:
            return self._embeds(text)
        except KeyError:
            return None

    def keep_embeds(self, texts: Sequence[str], *, surely: bool) -> None:
        """See that texts have embeds in Redis for as long as their handoffs will live.

        Looks again after a quarter of their life, or at once when `surely`: a job came back because something was lost.
        """
        now, patience = time.monotonic(), self.settings.handoff_ttl_s / 4
        due = [text for text in texts if surely or now - self._renewed.get(text, -patience) >= patience]
        if due:
            for text in self.handoffs.renew_embeds(due):
                self.handoffs.put_embeds(text, self._encode_text(text))
            if len(self._renewed) > 10_000:
                self._renewed.clear()
            self._renewed |= dict.fromkeys(due, now)

    def lora(self, recipe: Recipe) -> "Lora | None":
        """The LoRA that a recipe names, its file on this machine. Raises LoraError, StorageError."""
        if "lora" not in recipe:
            return None
        from kontext_model.lora import Lora  # diffusers' loaders take seconds to import

        pin = LoraPin(recipe["lora"], recipe["lora_sha256"])
        return Lora(fetch_lora(pin, self.settings), pin.sha256, recipe["lora_scale"], pin.place)

    def each(
        self, function: Callable[[Claimed], Result], unit: Sequence[Claimed], lanes: int
    ) -> list[Result | Exception]:
        """Apply a function that waits to all jobs, to `lanes` of them at once; an error stands for its job only."""

        def attempt(job: Claimed) -> Result | Exception:
            try:
                return function(job)
            except Exception as error:
                return error

        if len(unit) <= 1:
            return [attempt(job) for job in unit]
        # A thread takes a lane of jobs: a future for every job costs more than what a local disk takes to read one.
        lanes = min(lanes, len(unit))
        done = self.threads.map(lambda first: [attempt(job) for job in unit[first::lanes]], range(lanes))
        ends = [iter(lane) for lane in done]
        return [next(ends[n % lanes]) for n in range(len(unit))]

    def _encode_text(self, text: str) -> TextEmbeds:
        # What the model warns of is logged here, so that it comes when a text is encoded, not with each of its jobs.
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", CutPromptWarning)
            embeds = self.editor.encode_text([text])
        for warning in caught:
            log.warning("text encoded with a warning", reason=str(warning.message))
        return embeds

    def _read_batch(self, batch_id: str) -> Batch:
        with self.direct.connect() as connection:
            batch = queries.read_batch(connection, batch_id)
        if batch is None:
            raise LookupError(f"batch {batch_id} does not exist")
        return batch

    def _read_recipe(self, recipe_id: str) -> Recipe:
        with self.direct.connect() as connection:
            recipe = queries.read_recipe(connection, recipe_id)
        if recipe is None:
            raise LookupError(f"recipe {recipe_id} does not exist")
        return recipe

    def _take_embeds(self, text: str) -> TextEmbeds:
        found = self.handoffs.take_embeds(text)
        if found is None:
            raise KeyError(text)  # not kept by the cache: the next call asks Redis again
        return found


def lanes_to(*places: str) -> int:
    """How many calls at once pay off with these paths and URIs."""
    return NETWORK_LANES if any("://" in place for place in places) else DISK_LANES


@contextmanager
def open_bench(engine: Engine, settings: Settings, editor: Editor, handoffs: Handoffs) -> Iterator[Bench]:
    """A bench whose threads and processes end with the block; what it learnt is told."""
    bench = Bench(engine, settings, editor, handoffs)
    try:
        yield bench
    finally:
        bench.threads.shutdown(cancel_futures=True)
        bench.decoders.close()
        bench.ledger.close()
