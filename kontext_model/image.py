"""Photos to latents and back.

Owns how a photo of any size becomes the canvas's RGB pixels, and the VAE's normalisation. Refuses to open files. The
VAE takes one picture at a time: on every device as fast as a batch, in constant memory, and a picture's pixels never
depend on its neighbours.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from kontext_model.acceleration import execution_device
from kontext_model.canvas import Canvas
from kontext_model.photo import WHITE, to_rgb


def fit(photo: Image.Image, canvas: Canvas, mode: str = "pad") -> Image.Image:
    """The photo as RGB of exactly the canvas's size.

    Its aspect within 2 % of the canvas's, it is resized straight. Otherwise `pad` keeps all of it, centred on white;
    `crop` fills the canvas and loses the excess on both sides alike; `stretch` distorts. Raises ValueError for another
    mode.
    """
    if mode not in FITS:
        raise ValueError(f"fit must be one of {', '.join(FITS)}, not {mode!r}")
    photo = to_rgb(photo)
    return (FITS[mode] if canvas.needs_padding(*photo.size) else _stretch)(photo, canvas)


def encode(vae: Any, picture: Image.Image) -> Tensor:
    """Normalised latents of an RGB picture: (1, 16, height / 8, width / 8), in the VAE's dtype and on its device.

    The mode of the posterior, not a draw from it. Source: diffusers FluxKontextPipeline._encode_vae_image.
    """
    return encode_levels(vae, torch.from_numpy(np.array(picture)).unsqueeze(0))


def encode_levels(vae: Any, levels: Tensor) -> Tensor:
    """As `encode`, of RGB values: uint8 (B, H, W, 3) -> (B, 16, H / 8, W / 8)."""
    pixels = levels.to(execution_device(vae)).permute(0, 3, 1, 2).float() / 255.0
    posterior = vae.encode((2.0 * pixels - 1.0).to(vae.dtype)).latent_dist
    return (posterior.mode() - vae.config.shift_factor) * vae.config.scaling_factor


def decode(vae: Any, latents: Tensor) -> Image.Image:
    """The RGB picture of one picture's normalised latents (1, 16, height / 8, width / 8).

    Raises FloatingPointError when the VAE makes NaN or infinity of them, as in float16. Source: FluxKontextPipeline and
    diffusers VaeImageProcessor.postprocess.
    """
    pixels = decode_pixels(vae, latents)
    if not torch.isfinite(pixels).all():
        raise FloatingPointError("the decoded pixels hold NaN or infinity; decode in bfloat16 or float32")
    levels = (pixels * 0.5 + 0.5).clamp(0, 1)[0].permute(1, 2, 0).float().cpu().numpy()
    return Image.fromarray((levels * 255).round().astype(np.uint8))


def decode_pixels(vae: Any, latents: Tensor) -> Tensor:
    """What the VAE makes of normalised latents (1, 16, H, W): (1, 3, 8·H, 8·W), about −1 to 1, on its device."""
    latents = latents.to(execution_device(vae), vae.dtype, memory_format=torch.channels_last)
    return vae.decode(latents / vae.config.scaling_factor + vae.config.shift_factor, return_dict=False)[0]


def _stretch(photo: Image.Image, canvas: Canvas) -> Image.Image:
    size = (canvas.width_px, canvas.height_px)
    return photo if photo.size == size else photo.resize(size, Image.Resampling.LANCZOS)


def _pad(photo: Image.Image, canvas: Canvas) -> Image.Image:
    scale = min(canvas.width_px / photo.width, canvas.height_px / photo.height)
    size = (max(1, round(photo.width * scale)), max(1, round(photo.height * scale)))
    padded = Image.new("RGB", (canvas.width_px, canvas.height_px), WHITE)
    corner = ((canvas.width_px - size[0]) // 2, (canvas.height_px - size[1]) // 2)
    padded.paste(photo.resize(size, Image.Resampling.LANCZOS), corner)
    return padded


def _crop(photo: Image.Image, canvas: Canvas) -> Image.Image:
    return ImageOps.fit(photo, (canvas.width_px, canvas.height_px), Image.Resampling.LANCZOS)


FITS: Mapping[str, Callable[[Image.Image, Canvas], Image.Image]] = MappingProxyType(
    {"pad": _pad, "crop": _crop, "stretch": _stretch}
)
