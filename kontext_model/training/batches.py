"""What a step trains on: triples of one canvas, chosen by (seed, step, part) alone.

Owns which of the triples on offer, prompts and guidance a step sees, and which rows of it this process takes. However
many processes share a run, the run is the same. Refuses to encode: that is the supply's and the embed cache's.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from random import Random

import torch
from torch import Tensor

from kontext_model import latents, text
from kontext_model.canvas import Canvas
from kontext_model.text import TextEmbeds
from kontext_model.training.config import Phase, TrainingConfig
from kontext_model.training.embed_cache import EmbedCache
from kontext_model.training.supply import Buckets, Supply
from kontext_model.training.triples import TripleSource

EMBEDS_AT_HAND = 32
"""Prompts whose embeds stay on the device."""


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


class Batches:
    """Draws batches for process `number` of `processes`, on its device.

    `supplies` are of phases whose triples are not and are drawn anew.
    """

    def __init__(
        self,
        config: TrainingConfig,
        source: TripleSource,
        supplies: Mapping[bool, Supply],
        embeds: EmbedCache,
        device: torch.device,
        number: int = 0,
        processes: int = 1,
    ) -> None:
        self.config, self.source, self.supplies, self.embeds, self.device = config, source, supplies, embeds, device
        self.rows = slice(number, None, processes)
        self._read_embeds = lru_cache(EMBEDS_AT_HAND)(lambda prompt: _place(embeds.read(prompt), device))

    def draw(self, phase: Phase, step: int, part: int) -> Batch:
        """This process's rows of an optimizer step's accumulation part."""
        config = self.config
        rng = Random(f"{config.seed}/{step}/{part}")
        supply = self.supplies[phase.fresh > 0]
        buckets = supply.offer(step)
        canvas = rng.choices(list(buckets), [len(members) for members in buckets.values()])[0]
        members = buckets[canvas]
        chosen = (
            rng.sample(members, phase.batch) if len(members) >= phase.batch else rng.choices(members, k=phase.batch)
        )
        prompts = [
            "" if rng.random() < config.prompt_dropout else rng.choice(self.source.prompts(index)) for index in chosen
        ]
        guidance = [rng.uniform(config.guidance[0], config.guidance[-1]) for _ in chosen]
        condition, target = (latents.pack(each.float()) for each in supply.read(chosen[self.rows], canvas).unbind(1))
        return Batch(
            phase.batch,
            self.rows,
            canvas,
            target,
            condition,
            text.join([self._read_embeds(prompt).cut(phase.text_length) for prompt in prompts[self.rows]]),
            torch.tensor(guidance[self.rows], device=self.device),
        )


def _place(embeds: TextEmbeds, device: torch.device) -> TextEmbeds:
    return embeds.to(device, embeds.sequence.dtype)


def sort_into_buckets(source: TripleSource, area_px: int) -> Buckets:
    """The triples by the canvas they have at that area, canvases in the order of their first triple."""
    buckets: Buckets = defaultdict(list)
    for index in range(len(source)):
        buckets[source.canvas(index, area_px)].append(index)
    return dict(buckets)
