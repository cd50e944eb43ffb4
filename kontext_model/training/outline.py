"""Where a garment lies, told softly enough to learn from.

Owns the mask of pixels, the mask that a small network reads from latents, and the loss between a mask and the true one.
The network is fitted to a run's own targets, which must lie on plain grounds.
"""

import random
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from kontext_model import image
from kontext_model.latents import VAE_FACTOR
from kontext_model.training.autoencoder import LATENTS
from kontext_model.training.latent_cache import SAFETENSORS_ERRORS, encoder_digest, save_whole
from kontext_model.training.run_state import step_generator
from kontext_model.training.triples import TripleSource
from kontext_model.wardrobe.colour import TO_XYZ, WHITE, to_lab
from kontext_model.wardrobe.score import MASK_DELTA, enclose, find_garment, frame

SURE = 6.0
"""A pixel six ΔE2000 to either side of MASK_DELTA is as sure as one can be: more teaches nothing."""
PICTURES, AREA_PX = 480, 256 * 256
PASSES, BATCH, RATE, WARMUP = 24, 16, 2e-3, 50
NOISE = 0.5
"""The most noise on the latents that the reader is fitted to, so that it reads those of a transformer as well."""


def shape_loss(logits: Tensor, covered: Tensor) -> Tensor:
    """How far a mask is from the true one: (B, H, W) each, a scalar.

    Half the cross-entropy, and the share of both masks that is not common to them (Dice; Milletari et al., 2016), which
    a small garment's mask has as much of as a large one's.
    """
    covered = covered.to(logits.dtype)
    told = logits.sigmoid()
    common, both = (told * covered).sum((1, 2)), (told + covered).sum((1, 2))
    entropy = functional.binary_cross_entropy_with_logits(logits, covered)
    return 0.5 * entropy + (1 - 2 * common / (both + 1)).mean()


def tell_mask(pixels: Tensor, answer: Tensor) -> Tensor:
    """Logits of whether pixels are garment: how much more than MASK_DELTA they differ from the answer's ground, its
    border's median. Shapes: (B, 3, H, W) each, in -1..1 -> (B, H, W).

    The difference is ΔE2000 as it is near a grey, where a turn of hue is nothing.
    """
    with torch.no_grad():
        outside = torch.from_numpy(frame(*answer.shape[2:])).to(answer.device)
        ground = _lab(answer)[:, :, outside].median(dim=2).values[:, :, None, None]
    lab = _lab(pixels)
    lightness, *chroma = (lab - ground).unbind(1)
    mean = (lab[:, 0] + ground[:, 0]) / 2 - 50
    by_lightness = 1 + 0.015 * mean.square() / (20 + mean.square()).sqrt()
    by_chroma = 1 + 0.0225 * (_length(lab[:, 1:]) + _length(ground[:, 1:]))
    square = (lightness / by_lightness).square() + (
        (1.5 * chroma[0]).square() + chroma[1].square()
    ) / by_chroma.square()
    return ((square + 1e-6).sqrt() - MASK_DELTA).clamp(-SURE, SURE)


def _lab(pixels: Tensor) -> Tensor:
    """L*a*b* (B, 3, H, W) of pixels in -1..1, as `wardrobe.colour.to_lab`, with gradients."""
    values = (pixels.float() / 2 + 0.5).clamp(0, 1)
    linear = torch.where(values <= 0.04045, values / 12.92, ((values.clamp_min(0.04045) + 0.055) / 1.055) ** 2.4)
    to_xyz = torch.tensor(TO_XYZ / WHITE[:, None], dtype=torch.float32, device=pixels.device)
    xyz = torch.einsum("ij,bjhw->bihw", to_xyz, linear)
    x, y, z = torch.where(
        xyz > 216 / 24389, xyz.clamp_min(216 / 24389) ** (1 / 3), 24389 / 27 / 116 * xyz + 4 / 29
    ).unbind(1)
    return torch.stack((116 * y - 16, 500 * (x - y), 200 * (y - z)), dim=1)


def _length(vectors: Tensor) -> Tensor:
    return (vectors.square().sum(dim=1) + 1e-6).sqrt()


class _Residual(nn.Module):  # type: ignore[misc]
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(functional.silu(self.first(functional.silu(x))))


class OutlineReader(nn.Module):  # type: ignore[misc]
    """Reads the garment's mask from normalised latents: (B, 16, h, w) -> logits (B, 8·h, 8·w)."""

    def __init__(self, width: int = 96, blocks: int = 3) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(LATENTS, width, 3, padding=1),
            *(_Residual(width) for _ in range(blocks)),
            nn.SiLU(),
            nn.Conv2d(width, VAE_FACTOR**2, 1),
            nn.PixelShuffle(VAE_FACTOR),
        )

    def forward(self, latents: Tensor) -> Tensor:
        return self.layers(latents.contiguous(memory_format=torch.channels_last)).squeeze(1).float()


def fit_reader(
    vae: Any, source: TripleSource, fit: str, seed: int, folder: Path, report: Callable[[str], None] = print
) -> OutlineReader:
    """The reader of the source's first targets, frozen, on the VAE's device; kept in the folder once it is fitted.

    Raises TripleError.
    """
    kept = folder / f"outline-{encoder_digest(vae)[:12]}.safetensors"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        reader = OutlineReader()
    reader.to(vae.device, memory_format=torch.channels_last)
    try:
        reader.load_state_dict(load_file(kept))
    except SAFETENSORS_ERRORS:
        report(f"fitting the reader of outlines to {min(PICTURES, len(source))} targets")
        _fit(reader, _read_targets(vae, source, fit), seed)
        save_whole(reader.state_dict(), kept)
    reader.requires_grad_(False)
    return reader


def _read_targets(vae: Any, source: TripleSource, fit: str) -> list[tuple[Tensor, Tensor]]:
    """By canvas: normalised latents (n, 16, h, w) and their garments' masks (n, 8·h, 8·w)."""
    pairs = defaultdict(list)
    for index in range(min(PICTURES, len(source))):
        canvas = source.canvas(index, AREA_PX)
        target = image.fit(source.images(index, canvas)[1], canvas, fit)
        mask = torch.from_numpy(enclose(find_garment(to_lab(np.asarray(target)))))
        with torch.inference_mode():
            pairs[canvas].append((image.encode(vae, target)[0].float(), mask.to(vae.device)))
    return [
        (torch.stack([each for each, _ in rows]), torch.stack([mask for _, mask in rows])) for rows in pairs.values()
    ]


def _fit(reader: OutlineReader, targets: list[tuple[Tensor, Tensor]], seed: int) -> None:
    optimizer = torch.optim.AdamW(reader.parameters(), lr=RATE, weight_decay=0.01)
    counts = [len(masks) for _, masks in targets]
    steps = PASSES * -(-sum(counts) // BATCH)
    for step in range(steps):
        rng, noises = random.Random(f"{seed}/outline/{step}"), step_generator(seed, step)
        latents, masks = rng.choices(targets, counts)[0]
        rows = rng.sample(range(len(masks)), min(BATCH, len(masks)))
        level = NOISE * torch.rand(len(rows), 1, 1, 1, generator=noises)
        noise = level * torch.randn(latents[rows].shape, generator=noises)
        loss = shape_loss(reader(latents[rows] + noise.to(latents.device)), masks[rows])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(reader.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = RATE * min(1.0, (step + 1) / WARMUP) * (1 - step / steps)
        optimizer.step()
