"""The latents as the transformer sees them: packing, positions and noise.

Owns the layout between the VAE's grid and the transformer's tokens. Pure functions of their arguments; refuses to know
a checkpoint.
"""

import torch
from torch import Tensor

from kontext_model.canvas import Canvas

CHANNELS = 16
TOKEN_CHANNELS = 64
VAE_FACTOR = 8

GENERATED = 0
"""The kind (first position id) of the tokens being denoised."""
CONDITION = 1
"""The kind of the reference photo's tokens."""


def pack(latents: Tensor) -> Tensor:
    """Fold 2×2 latent patches into tokens.

    Shapes: (B, 16, H, W), H and W even -> (B, H/2 * W/2, 64).
    Raises ValueError when H or W is odd.
    Source: FLUX.1 Kontext; equal to diffusers FluxKontextPipeline._pack_latents.
    """
    batch, channels, height, width = latents.shape
    if height % 2 or width % 2:
        raise ValueError(f"latents of {height}x{width} cannot be packed: both sides must be even")
    patches = latents.reshape(batch, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return patches.reshape(batch, (height // 2) * (width // 2), channels * 4)


def unpack(tokens: Tensor, canvas: Canvas) -> Tensor:
    """Unfold tokens into the VAE's grid; the inverse of `pack`.

    Shapes: (B, canvas.tokens, 64) -> (B, 16, canvas height / 8, canvas width / 8).
    Raises ValueError when the tokens are not the canvas's.
    Source: equal to diffusers FluxKontextPipeline._unpack_latents.
    """
    batch, count, channels = tokens.shape
    if count != canvas.tokens:
        raise ValueError(f"a canvas of {canvas} has {canvas.tokens} tokens, not {count}")
    rows, columns = canvas.height_px // (2 * VAE_FACTOR), canvas.width_px // (2 * VAE_FACTOR)
    patches = tokens.reshape(batch, rows, columns, channels // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return patches.reshape(batch, channels // 4, rows * 2, columns * 2)


def position_ids(canvas: Canvas, kind: int) -> Tensor:
    """(kind, y, x) of every token, row by row: float32 (canvas.tokens, 3), shared by the batch."""
    rows, columns = canvas.height_px // (2 * VAE_FACTOR), canvas.width_px // (2 * VAE_FACTOR)
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return torch.stack((torch.full_like(y, kind), y, x), dim=-1).reshape(-1, 3).float()


def draw_noise(seed: int, canvas: Canvas) -> Tensor:
    """The starting noise of one picture: float32 (1, 16, canvas height / 8, canvas width / 8) on the CPU.

    Drawn unpacked from a CPU generator of its own, so that the same seed gives the same noise on any device and in any
    batch. Drawing it packed would give other pictures.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    shape = (1, CHANNELS, canvas.height_px // VAE_FACTOR, canvas.width_px // VAE_FACTOR)
    return torch.randn(shape, generator=generator, device="cpu", dtype=torch.float32)
