"""What a step trains on: triples of one canvas, chosen by (seed, step, part) alone.

Owns which triples, prompts and guidance a step sees, and which rows of it this process takes. However many processes
share a run, the run is the same. Refuses to encode: latents and embeds come from their caches.
"""

from collections import defaultdict
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor

from kontext_model import latents, text
from kontext_model.canvas import Canvas
from kontext_model.text import TextEmbeds
from kontext_model.training.config import Phase, TrainingConfig
from kontext_model.training.embed_cache import EmbedCache
from kontext_model.training.latent_cache import LatentCache
from kontext_model.training.triples import TripleSource

Buckets = dict[Canvas, list[int]]
"""Triples by the canvas they have at some area."""


@dataclass(frozen=True)
class Batch:
    """Rows of a batch of `size` triples of one canvas: those that `rows` picks, B of them.

    Clean target and condition are tokens (B, S, 64); then text rows and guidance (B,).
    """

    size: int
    rows: slice
    canvas: Canvas
    target: Tensor
    condition: Tensor
    embeds: TextEmbeds
    guidance: Tensor


@dataclass(frozen=True)
class Batches:
    """Draws batches for process `number` of `processes`, on its device."""

    config: TrainingConfig
    source: TripleSource
    buckets: dict[int, Buckets]
    latents: LatentCache
    embeds: EmbedCache
    device: torch.device
    number: int = 0
    processes: int = 1

    def draw(self, phase: Phase, step: int, part: int) -> Batch:
        """This process's rows of an optimizer step's accumulation part."""
        config = self.config
        rng = Random(f"{config.seed}/{step}/{part}")
        buckets = self.buckets[phase.area_px]
        canvas = rng.choices(list(buckets), [len(members) for members in buckets.values()])[0]
        members = buckets[canvas]
        chosen = (
            rng.sample(members, phase.batch) if len(members) >= phase.batch else rng.choices(members, k=phase.batch)
        )
        prompts = [
            "" if rng.random() < config.prompt_dropout else rng.choice(self.source.prompts(index)) for index in chosen
        ]
        guidance = [rng.uniform(config.guidance[0], config.guidance[-1]) for _ in chosen]
        rows = slice(self.number, None, self.processes)
        pairs = [self.latents.read(self.source, index, canvas) for index in chosen[rows]]
        condition, target = (latents.pack(torch.stack(each).float()) for each in zip(*pairs, strict=True))
        embeds = text.join([self.embeds.read(prompt).cut(phase.text_length) for prompt in prompts[rows]])
        return Batch(
            phase.batch,
            rows,
            canvas,
            target.to(self.device),
            condition.to(self.device),
            embeds.to(self.device, embeds.sequence.dtype),
            torch.tensor(guidance[rows], device=self.device),
        )


def sort_into_buckets(source: TripleSource, area_px: int) -> Buckets:
    """The triples by the canvas they have at that area, canvases in the order of their first triple."""
    buckets: Buckets = defaultdict(list)
    for index in range(len(source)):
        buckets[source.canvas(index, area_px)].append(index)
    return dict(buckets)
