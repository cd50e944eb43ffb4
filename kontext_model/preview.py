"""Small pictures of latents, without decoding them: one linear map from a latent's 16 channels to RGB.

Owns the map, which any VAE of the family teaches by itself, and its use while sampling. What is drawn is the estimate
x₀ = x − σ·v of a step, not the noisy x: it shows the picture from the first step on. Refuses detail: a pixel for each
8 × 8 of the canvas.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from kontext_model import image, latents
from kontext_model.canvas import Canvas
from kontext_model.photo import WHITE
from kontext_model.sampling import OnEstimate

OnPreview = Callable[[int, list[Image.Image]], None]
"""Called with the number of a step from 0 and a picture for each row."""

_CELLS = 32
"""Latent pixels on a side of the picture that teaches the map."""


@dataclass(frozen=True)
class Colours:
    """RGB levels from 0 to 1 of normalised latents z (…, 16): z @ weights (16, 3) + bias (3); float32 on the CPU."""

    weights: Tensor
    bias: Tensor


def fit_colours(vae: Any) -> Colours:
    """Learn the map from one encoding of a picture of known colours, by least squares."""
    lesson = _draw_lesson()
    encoded = image.encode(vae, lesson)[0].permute(1, 2, 0).reshape(-1, latents.CHANNELS).double().cpu().numpy()
    cells = np.asarray(lesson, dtype=np.float64).reshape(_CELLS, latents.VAE_FACTOR, _CELLS, latents.VAE_FACTOR, 3)
    known = np.concatenate([encoded, np.ones((len(encoded), 1))], axis=1)
    solution = np.linalg.lstsq(known, cells.mean(axis=(1, 3)).reshape(-1, 3) / 255, rcond=None)[0]
    fitted = torch.from_numpy(solution).float()
    return Colours(fitted[:-1], fitted[-1])


def draw(colours: Colours, tokens: Tensor, canvas: Canvas) -> list[Image.Image]:
    """A picture for each row of tokens (B, canvas.tokens, 64), an eighth of the canvas wide and high."""
    grids = latents.unpack(tokens, canvas).float().cpu().permute(0, 2, 3, 1)
    levels = (grids @ colours.weights + colours.bias).clamp(0, 1)
    return [Image.fromarray(each) for each in (levels * 255).round().to(torch.uint8).numpy()]


def draw_every(steps: int, colours: Colours, canvas: Canvas, on_preview: OnPreview) -> OnEstimate:
    """What `sampling.denoise` calls at each step, so that every `steps`-th one is drawn."""

    def show(step: int, x0: Tensor) -> None:
        if (step + 1) % steps == 0:
            on_preview(step, draw(colours, x0, canvas))

    return show


def _draw_lesson() -> Image.Image:
    """Discs of all sizes and colours over each other, whose edges and areas are like those of photographs.

    Flat patches would not do: they leave the channels that hold detail untaught, and edges then come out garish.
    """
    side_px = _CELLS * latents.VAE_FACTOR
    picture, generator = Image.new("RGB", (side_px, side_px), WHITE), np.random.default_rng(0)
    drawing = ImageDraw.Draw(picture)
    for _ in range(400):
        x, y = generator.uniform(0, side_px, 2)
        radius = np.exp(generator.uniform(np.log(4), np.log(64)))
        colour = tuple(int(level) for level in generator.integers(0, 256, 3))
        drawing.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
    return picture
