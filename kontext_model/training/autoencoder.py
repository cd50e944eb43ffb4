"""Makes the wardrobe's VAE: the encoder is fitted, the decoder is for `decoder` to train.

The class is diffusers' AutoencoderKL, as in FLUX. Its encoder's weights are set so that it computes a linear
transform: the principal components of 8×8 patches, scaled half-way to equal power. That keeps what 16 numbers a patch
can keep (28.7 dB where a linear map reads them back), costs no training, and fixes the latents at once, so that
transformer and decoder train side by side.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional

from kontext_model.wardrobe import draw

LATENTS = 16
STEADY = 100.0
"""A constant beside the latents, so large that group normalisation divides by it and not by the picture."""


@dataclass(frozen=True)
class AutoencoderConfig:
    """The VAE's widths, the seed of its fresh decoder, and how many pictures its encoder is fitted to."""

    channels: tuple[int, int, int, int] = (16, 24, 48, 64)
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
