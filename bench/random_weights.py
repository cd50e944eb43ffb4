"""The models that compute in an edit, with random weights made on the device, and what both sides are given to edit.

Owns the numbers that keep random weights finite, and the count of FLOPs. Refuses files: a size is its configurations.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from kontext_model import latents, sampling
from kontext_model.canvas import Canvas
from kontext_model.checkpoint import silence
from kontext_model.revision import Defaults
from kontext_model.text import TextEmbeds
from kontext_model.trace.published import SCHEDULER, TRANSFORMER, VAE

SEED = 0


@dataclass(frozen=True)
class Size:
    """The configurations of transformer and VAE, and the tokens of a text."""

    transformer: Mapping[str, Any]
    vae: Mapping[str, Any]
    text_length: int


PUBLISHED = Size(TRANSFORMER, VAE, Defaults.text_length)


@dataclass(frozen=True)
class Subject:
    """What is edited and by which models: the same objects for every case."""

    transformer: Any
    vae: Any
    scheduler: Any
    photo: Image.Image
    text: TextEmbeds
    canvas: Canvas
    device: torch.device
    dtype: torch.dtype


def count_flops(size: Size, canvas: Canvas) -> int:
    """FLOPs of one call of the transformer, counted as `kontext-model trace` counts them, on the meta device."""
    with torch.device("meta"):
        transformer = FluxTransformer2DModel(**size.transformer)
        text = _draw_text(size)
        tokens = torch.empty(1, canvas.tokens, latents.TOKEN_CHANNELS)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        sampling.denoise(transformer, SCHEDULER, tokens, tokens, text, canvas, 1, [Defaults.guidance])
    return int(counter.get_total_flops())


def build_subject(size: Size, canvas: Canvas, device: torch.device, dtype: torch.dtype) -> Subject:
    """Models with random weights; photo and embeddings are noise."""
    with torch.device("meta"):
        models = (FluxTransformer2DModel(**size.transformer), AutoencoderKL(**size.vae))
    for model in models:
        with silence():
            model.to(dtype)
        _fill(model.to_empty(device=device).eval().requires_grad_(False))
    levels = np.random.default_rng(SEED).integers(0, 256, (canvas.height_px, canvas.width_px, 3), dtype=np.uint8)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        text = _draw_text(size).to(device, dtype)
    scheduler = FlowMatchEulerDiscreteScheduler(**SCHEDULER)
    return Subject(*models, scheduler, Image.fromarray(levels), text, canvas, device, dtype)


def _draw_text(size: Size) -> TextEmbeds:
    pooled, sequence = size.transformer["pooled_projection_dim"], size.transformer["joint_attention_dim"]
    return TextEmbeds(torch.randn(1, pooled), torch.randn(1, size.text_length, sequence))


def _fill(model: Any) -> None:
    """Weights that leave what passes through them about as large as it was, so that nothing overflows."""
    if any(True for _ in model.buffers()):
        raise RuntimeError(f"{type(model).__name__} has buffers, which are no weights: give them their values here")
    generator = torch.Generator(model.device).manual_seed(SEED)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.zero_()
        elif parameter.ndim == 1:  # of a norm
            parameter.fill_(1.0)
        else:
            parameter.normal_(std=parameter[0].numel() ** -0.5, generator=generator)
