"""A photo of any kind as the pixels that a viewer shows: upright 8-bit sRGB.

Owns orientation, palettes, alpha on white, CMYK, 16 bits and colour profiles, for those who edit and those who train
alike. Imports little, so that a process that only decodes photos starts at once. Refuses to open files.
"""

import io
from contextlib import suppress
from functools import cache
from typing import Any

from PIL import Image, ImageCms, ImageOps

WHITE = (255, 255, 255)


class DepthError(ValueError):
    """Levels that have no known white: floating point, or whole numbers beyond 16 bits."""


def to_rgb(photo: Image.Image) -> Image.Image:
    """Upright 8-bit sRGB of a photo of any mode, a new picture that carries no profile or EXIF block any more.

    16 bits are scaled, as are the levels of a mode I picture, unless 8 bits hold them all. Damaged EXIF blocks, and
    profiles that are damaged or of other channels, are passed over. Raises DepthError for modes F and wider I.
    """
    profile = photo.info.get("icc_profile")
    photo = _make_8_bit(_turn_upright(photo))
    alpha = None
    if photo.has_transparency_data:
        photo = photo.convert("RGBA")
        alpha = photo.getchannel("A")
    elif photo.mode in {"P", "1", "HSV", "YCbCr"}:
        photo = photo.convert("RGB")
    rgb = _apply_profile(photo.convert("RGB") if alpha else photo, profile)
    if alpha:
        white = Image.new("RGB", rgb.size, WHITE)
        white.paste(rgb, mask=alpha)
        rgb = white
    rgb.info.clear()
    return rgb


def _turn_upright(photo: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(photo)
    except Exception:  # a damaged EXIF block says nothing about the pixels
        return photo.copy()


def _make_8_bit(photo: Image.Image) -> Image.Image:
    """Grey of more than 8 bits, scaled and not clipped; other modes have 8 bits already."""
    levels = 1 << 16
    if photo.mode in {"I", "F"}:
        low, high = map(float, photo.getextrema())  # type: ignore[arg-type]
        if photo.mode == "F" or low < 0 or high >= levels:
            raise DepthError("the image has 32 bits a channel; save it with 8 or 16")
        levels = 1 << 8 if high < 1 << 8 else levels
    elif not photo.mode.startswith("I;16"):
        return photo
    # Here, since a decoder that needs none of it starts in a third of the time.
    import numpy as np

    grey = np.asarray(photo).astype(np.uint32)
    return Image.fromarray((grey if levels == 1 << 8 else (grey + 128) // 257).astype(np.uint8))


def _apply_profile(photo: Image.Image, profile: bytes | None) -> Image.Image:
    """Convert to sRGB by the embedded profile; a damaged or unfitting one is passed over."""
    if photo.mode == "LAB":
        return _convert_profile(photo, ImageCms.createProfile("LAB"))
    if profile:
        with suppress(Exception):
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            if "srgb" not in ImageCms.getProfileDescription(source).lower() or photo.mode != "RGB":
                return _convert_profile(photo, source)
    return photo if photo.mode == "RGB" else photo.convert("RGB")


def _convert_profile(photo: Image.Image, source: Any) -> Image.Image:
    converted = ImageCms.profileToProfile(photo, source, _srgb(), outputMode="RGB")
    assert converted is not None
    return converted


@cache
def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
