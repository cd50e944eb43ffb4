"""Validation pictures: a fixed set edited with the averaged weights, laid out as condition | result | target."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from kontext_model import image, latents, sampling
from kontext_model.text import TextEmbeds

if TYPE_CHECKING:
    from kontext_model.training.trainer import Trainer

GAP_PX = 6


def draw_grid(trainer: "Trainer") -> Path:
    """Edit the validation set as the current phase trains: its canvas area, as much of the prompts as it reads.

    Gives the PNG, named by the step.
    """
    config = trainer.config
    source = trainer.validation
    phase, _ = config.phase_at(max(0, trainer.step - 1))
    rows: list[tuple[Image.Image, ...]] = []
    errors: list[float] = []
    with trainer.average.applied(trainer.model), torch.inference_mode():
        for index in range(len(source)):
            canvas = source.canvas(index, phase.area_px)
            condition, target = (image.fit(each, canvas, config.data.fit) for each in source.images(index, canvas))
            embeds = trainer.batches.embeds.read(source.prompts(index)[0]).cut(phase.text_length)
            result = _edit(trainer, embeds, condition, canvas, index)
            errors.append(psnr(result, target))
            rows.append((condition, result, target))
    path = trainer.out / "grids" / f"step-{trainer.step:06d}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    lay_out(rows).save(path)
    trainer.report(f"step {trainer.step}  validation {np.mean(errors):.2f} dB  {path}")
    return path


def _edit(trainer: "Trainer", embeds: TextEmbeds, condition: Image.Image, canvas: Any, seed: int) -> Image.Image:
    device, dtype = trainer.device, trainer.checkpoint.dtype
    packed = latents.pack(image.encode(trainer.vae, condition)).to(device, dtype)
    noise = latents.pack(latents.draw_noise(seed, canvas)).to(device, dtype)
    tokens = sampling.denoise(
        trainer.model,
        trainer.checkpoint.scheduler.config,
        noise,
        packed,
        embeds.to(device, dtype),
        canvas,
        trainer.config.validation.steps,
        [sum(trainer.config.guidance) / len(trainer.config.guidance)],
    )
    return image.decode(trainer.vae, latents.unpack(tokens, canvas))


def psnr(one: Image.Image, other: Image.Image) -> float:
    """Peak signal-to-noise ratio of two RGB pictures of one size, in decibels."""
    error = float(np.mean((np.asarray(one, np.float64) - np.asarray(other, np.float64)) ** 2))
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


def lay_out(rows: list[tuple[Image.Image, ...]], across: int = 2) -> Image.Image:
    """Rows of pictures on one sheet, `across` of them side by side."""
    width = max(sum(picture.width + GAP_PX for picture in row) for row in rows) + GAP_PX
    height = max(picture.height for row in rows for picture in row) + GAP_PX
    down = -(-len(rows) // across)
    sheet = Image.new("RGB", (width * across, height * down + GAP_PX), (112, 116, 124))
    for number, row in enumerate(rows):
        x, y = (number % across) * width + GAP_PX, (number // across) * height + GAP_PX
        for picture in row:
            sheet.paste(picture, (x, y))
            x += picture.width + GAP_PX
    return sheet
