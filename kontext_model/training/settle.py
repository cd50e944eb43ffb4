"""Teaches the decoder what the transformer draws, which is never quite what the encoder would have given.

Owns the last stage of the wardrobe's checkpoint: a set of pictures whose latents the finished transformer drew, and the
decoder's course on them. Where the transformer hesitates between two outlines it draws their mean, a halo; the decoder
learns to decide.
"""

import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor

from kontext_model import latents, text
from kontext_model.canvas import Canvas
from kontext_model.editor import KontextEditor
from kontext_model.text import CutPromptWarning
from kontext_model.training.decoder import Course, Lesson, as_pixels, encode_jittered, teach
from kontext_model.training.discriminator import Adversary
from kontext_model.training.run_state import step_generator
from kontext_model.training.schedule import learning_rate
from kontext_model.training.supply import BLOCK, Drawings, draw_ahead, drawers_watched, encode_drawn
from kontext_model.training.triples import WardrobeSource

Answers = dict[Canvas, tuple[Tensor, Tensor]]
"""By canvas: what the decoder is given, float16 (n, 16, H/8, W/8), and what shall come of it, uint8 (n, H, W, 3)."""


@dataclass(frozen=True)
class SettleConfig:
    """`count` pictures are drawn, in whole blocks; every `true_every`-th step sees latents of the encoder instead.

    `adversary` is the discriminator that the decoder answers to as well; None for none. `outline` is the weight of the
    loss of the garment's mask.
    """

    count: int = 6000
    steps: int = 3000
    batch: int = 16
    rate: float = 4e-4
    warmup: int = 40
    square: float = 1.0
    adversary: Adversary | None = field(default_factory=lambda: Adversary(0.08))
    outline: float = 1.0
    true_every: int = 4
    jitter: float = 0.35
    decay: float = 0.995
    seed: int = 5
    first_seed: int = 40_000_000


@drawers_watched()
def settle_decoder(
    folder: Path,
    editor: KontextEditor,
    config: SettleConfig,
    drawers: int = 0,
    report: Callable[[str], None] = print,
    until: int | None = None,
) -> Any:
    """Teach the decoder of a checkpoint that draws, from where the folder's state ends; gives the VAE.

    `drawers` processes draw the photos. Raises CheckpointError when a stage of the checkpoint is not open,
    LostProcessError.
    """
    vae = editor.checkpoint.vae

    def lessons(start: int) -> Iterator[Lesson]:  # asked for none where the decoder has settled
        report(f"{config.count:,} pictures are drawn for the decoder")
        answers = draw_answers(editor, config, drawers)
        for step in range(start, config.steps):
            drawn, levels = _choose(answers, config, step)
            pixels = as_pixels(levels)
            if step % config.true_every == 0:
                yield encode_jittered(vae, pixels, config.jitter, step_generator(config.seed, step)), pixels
            else:
                yield drawn.float(), pixels

    def rate(step: int) -> float:
        return learning_rate("cosine", config.rate, step, config.steps, config.warmup)

    course = Course(config.steps, lessons, rate, config.decay, config.square, config.adversary, config.outline)
    return teach(vae, course, folder, report, until=until)


def draw_answers(editor: KontextEditor, config: SettleConfig, drawers: int = 0) -> Answers:
    """Edit wardrobe photos as a job would, up to the decoder. The same seeds give the same."""
    checkpoint, device = editor.checkpoint, editor.checkpoint.device
    source, area_px = WardrobeSource(0, config.first_seed), editor.defaults.area_px
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CutPromptWarning)  # the transformer was trained on the longest wording cut
        embeds = {prompt: editor.encode_text([prompt]) for prompt in source.wordings()}
    blocks = ((index, area_px) for index in range(0, config.count, BLOCK))
    made: dict[Canvas, list[tuple[Tensor, Tensor]]] = defaultdict(list)
    for block in draw_ahead(Drawings(config.first_seed), blocks, drawers):
        for each in block:
            condition = latents.pack(encode_drawn(checkpoint.vae, each.levels[:, :1]).squeeze(1).float())
            prompts = [Random(f"{config.seed}/{index}").choice(source.prompts(index)) for index in each.indices]
            tokens = editor.sample(
                condition,
                text.join([embeds[prompt] for prompt in prompts]),
                each.canvas,
                each.indices,
                editor.defaults.steps,
                editor.defaults.guidance,
            )
            grids = latents.unpack(tokens, each.canvas)
            given = grids / checkpoint.vae.config.scaling_factor + checkpoint.vae.config.shift_factor
            made[each.canvas].append((given.half(), each.levels[:, 1].to(device)))
    return {
        canvas: (torch.cat([drawn for drawn, _ in parts]), torch.cat([levels for _, levels in parts]))
        for canvas, parts in made.items()
    }


def _choose(answers: Answers, config: SettleConfig, step: int) -> tuple[Tensor, Tensor]:
    """The step's rows, of one canvas."""
    rng = Random(f"{config.seed}/{step}")
    canvas = rng.choices(list(answers), [len(levels) for _, levels in answers.values()])[0]
    drawn, levels = answers[canvas]
    rows = rng.sample(range(len(levels)), min(config.batch, len(levels)))
    return drawn[rows], levels[rows]
