"""Makes the wardrobe's VAE: the encoder is fitted, the decoder trained.

The class is diffusers' AutoencoderKL, as in FLUX. Its encoder's weights are set so that it computes a linear
transform: the principal components of 8×8 patches, scaled half-way to equal power. That keeps what 16 numbers a patch
can keep (28.7 dB where a linear map reads them back), costs no training, and fixes the latents at once, so that
transformer and decoder train side by side.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional

from kontext_model.training.run_state import Average, copy_weights, load_state, save_state, step_generator
from kontext_model.training.schedule import learning_rate
from kontext_model.wardrobe import draw

POOL = 48
"""Picture pairs kept to cut crops from; each step replaces one."""
LATENTS = 16
STEADY = 100.0
"""A constant beside the latents, so large that group normalisation divides by it and not by the picture."""


@dataclass(frozen=True)
class AutoencoderConfig:
    """The VAE and its run. `crop_px` is the side of a crop; `jitter` is noise on the latents, which makes the decoder
    forgive small errors of the transformer."""

    channels: tuple[int, int, int, int] = (16, 24, 48, 64)
    steps: int = 3000
    batch: int = 8
    crop_px: int = 64
    rate: float = 2e-3
    warmup: int = 60
    jitter: float = 0.06
    decay: float = 0.997
    seed: int = 1
    fit_samples: int = 96


def make_autoencoder(config: AutoencoderConfig) -> Any:
    """A VAE of FLUX's shape (8×, 16 channels) with these widths, convolutions only, encoder fitted, decoder fresh.

    Raises ValueError when a width is too small for the fitted encoder.
    """
    if any(width < least or width % 8 for width, least in zip(config.channels, (16, 24, 16, 64), strict=True)):
        raise ValueError(f"channels must be multiples of 8 from 16, 24, 16 and 64 on, not {config.channels}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        vae = AutoencoderKL(
            down_block_types=["DownEncoderBlock2D"] * 4,
            up_block_types=["UpDecoderBlock2D"] * 4,
            block_out_channels=list(config.channels),
            layers_per_block=1,
            latent_channels=LATENTS,
            norm_num_groups=8,
            sample_size=256,
            use_quant_conv=False,
            use_post_quant_conv=False,
            mid_block_add_attention=False,
        )
    pictures = torch.from_numpy(_draw_pictures(config)).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        fit_encoder(vae, pictures)
    return vae


def _draw_pictures(config: AutoencoderConfig) -> Any:
    samples = [draw(5_000_000 + number, 256) for number in range(config.fit_samples)]
    return np.stack([np.asarray(each) for sample in samples for each in (sample.photo, sample.target)])


def fit_encoder(vae: Any, pictures: Tensor) -> None:
    """Set the encoder to the principal components of these pictures' 8×8 patches: (N, 3, H, W) in -1..1.

    Three strided convolutions fold 2×2 blocks into channels, keeping the 12, 24 and 16 strongest components. Residual
    branches are zero. Before the last convolution each latent z stands beside −z, since silu(z) − silu(−z) = z.
    """
    encoder = vae.encoder
    for block in encoder.modules():
        if hasattr(block, "conv2") and hasattr(block, "norm2"):
            block.conv2.weight.zero_()
            block.conv2.bias.zero_()
    _set_identity(encoder.conv_in)
    features = pictures
    for level, kept in enumerate((12, 24, LATENTS)):
        down = encoder.down_blocks[level]
        shortcut = down.resnets[0].conv_shortcut
        if shortcut is not None:
            _set_identity(shortcut)
        folded = functional.pixel_unshuffle(features, 2)
        flat = folded.permute(0, 2, 3, 1).reshape(-1, folded.shape[1]).double()
        mean = flat.mean(dim=0)
        basis, deviation = _components(flat - mean, kept)
        if level == 2:
            basis = basis / deviation.sqrt()
            basis = basis * (kept / ((flat - mean) @ basis).square().sum(dim=1).mean()).sqrt()
        features = torch.einsum("nchw,ck->nkhw", folded, basis.float()) - (mean @ basis).float().view(1, -1, 1, 1)
        _set_folding(down.downsamplers[0].conv, basis.float(), -(mean @ basis).float())
    _set_pairs(encoder)
    vae.register_to_config(shift_factor=0.0, scaling_factor=1.0)


def _components(centred: Tensor, kept: int) -> tuple[Tensor, Tensor]:
    """The strongest principal axes (C, kept) with a fixed sign, and their deviations."""
    power, axes = torch.linalg.eigh(centred.T @ centred / len(centred))
    axes, power = axes.flip(1)[:, :kept], power.flip(0)[:kept]
    return axes * axes.gather(0, axes.abs().argmax(dim=0, keepdim=True)).sign(), power.clamp_min(1e-9).sqrt()


def _set_identity(conv: Any) -> None:
    conv.weight.zero_()
    conv.bias.zero_()
    middle = conv.kernel_size[0] // 2
    for channel in range(min(conv.in_channels, conv.out_channels)):
        conv.weight[channel, channel, middle, middle] = 1.0


def _set_folding(conv: Any, basis: Tensor, bias: Tensor) -> None:
    """Make a strided 3×3 convolution (padded right and below) take 2×2 blocks to `basis`'s components."""
    conv.weight.zero_()
    conv.bias.zero_()
    inputs, kept = basis.shape[0] // 4, basis.shape[1]
    conv.weight[:kept, :inputs, :2, :2] = basis.T.reshape(kept, inputs, 2, 2)
    conv.bias[:kept] = bias


def _set_pairs(encoder: Any) -> None:
    last, out = encoder.down_blocks[3].resnets[0].conv_shortcut, encoder.conv_out
    for conv in (last, out):
        conv.weight.zero_()
        conv.bias.zero_()
    width = last.out_channels // 8
    for latent in range(LATENTS):
        # A group holds two latents as (z, −z) and is filled up with ±STEADY: mean 0, deviation all but constant.
        at = (latent // 2) * width + 2 * (latent % 2)
        last.weight[at, latent], last.weight[at + 1, latent] = 1.0, -1.0
        deviation = STEADY * ((width - 4) / width) ** 0.5
        out.weight[latent, at, 1, 1], out.weight[latent, at + 1, 1, 1] = deviation, -deviation
    for channel in range(last.out_channels):
        if channel % width >= 4:
            last.bias[channel] = STEADY if channel % 2 else -STEADY
    encoder.conv_norm_out.weight.fill_(1.0)
    encoder.conv_norm_out.bias.zero_()
    out.bias[LATENTS:] = -12.0


def reconstruction_loss(restored: Tensor, pixels: Tensor) -> Tensor:
    """Absolute and squared error, and the gradients' absolute error, which keeps edges sharp; (B, 3, H, W) each."""
    error = restored - pixels
    edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    return error.abs().mean() + 2 * error.square().mean() + 0.5 * edges


def train_decoder(
    folder: Path,
    config: AutoencoderConfig,
    report: Callable[[str], None] = print,
    save_every_s: float = 60.0,
    until: int | None = None,
) -> Any:
    """Train to the end or to step `until`, from where the folder's state ends.

    Gives the VAE with the averaged decoder.
    """
    vae = make_autoencoder(config).train()
    vae.encoder.requires_grad_(False)
    optimizer = torch.optim.AdamW(vae.decoder.parameters(), lr=config.rate, betas=(0.9, 0.98), weight_decay=1e-4)
    average = Average(vae, config.decay)
    start, stop = load_state(folder, vae, average, optimizer), min(until or config.steps, config.steps)
    crops = cut_crops(config, start)
    saved_s, began_s, running = time.monotonic(), time.monotonic(), 0.0
    for step in range(start, stop):
        pixels, generator = next(crops), step_generator(config.seed, step)
        with torch.no_grad():
            latents = vae.encoder(pixels)[:, :LATENTS]
            level = torch.rand((len(latents), 1, 1, 1), generator=generator) * config.jitter
            latents = latents + level * torch.randn(latents.shape, generator=generator)
        restored = vae.decoder(latents)
        loss = reconstruction_loss(restored, pixels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.decoder.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate("cosine", config.rate, step, config.steps, config.warmup)
        optimizer.step()
        average.update(vae, step)
        decibels = 10 * torch.log10(4 / functional.mse_loss(restored.detach(), pixels)).item()
        running = decibels if step == start else 0.97 * running + 0.03 * decibels
        if step % 20 == 19:
            pace_s = (time.monotonic() - began_s) / (step + 1 - start)
            report(
                f"decoder step {step + 1}/{config.steps}  loss {loss.item():.4f}  {running:.2f} dB"
                f"  {pace_s:.2f} s/step  {pace_s * (config.steps - step - 1) / 60:.1f} min left"
            )
        if time.monotonic() - saved_s > save_every_s or step + 1 == stop:
            save_state(folder, step + 1, vae, average, optimizer)
            saved_s = time.monotonic()
    copy_weights(vae, average.shadow)
    return vae.eval()


def cut_crops(config: AutoencoderConfig, start: int) -> Iterator[Tensor]:
    """Batches of crops (B, 3, crop, crop) in -1..1 from step `start` on: half of photos, half of answers.

    The pool of a step depends on the step alone, so that a resumed run sees the same crops.
    """
    pool = [_draw_pair(config.seed, number) for number in range(start, start + POOL)]
    for step in range(start, config.steps):
        rng = Random(f"{config.seed}/crops/{step}")
        crops = [
            _crop(rng, rng.choice(pool)[number % 2], config.crop_px, number % 2 == 1) for number in range(config.batch)
        ]
        yield torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0).contiguous()
        pool = [*pool[1:], _draw_pair(config.seed, step + POOL)]


def _draw_pair(seed: int, number: int) -> tuple[Any, Any]:
    sample = draw(10_000_000 * seed + number, (256, 256, 192)[number % 3], None if number % 4 else "flat-lay")
    return np.asarray(sample.photo), np.asarray(sample.target)


def _crop(rng: Random, picture: Any, side: int, central: bool) -> Any:
    reach = picture.shape[0] - side
    # The garment stands in the middle of an answer; its white border needs few examples.
    low, high = (reach * 0.15, reach * 0.85) if central else (0, reach)
    top, left = round(rng.uniform(low, high)), round(rng.uniform(low, high))
    return picture[top : top + side, left : left + side]
