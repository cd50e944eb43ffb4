"""From the bytes of a photo to a checked RGB picture.

Owns what counts as a photo and how every kind of it becomes 8-bit sRGB: orientation, palettes, alpha on white, CMYK,
16 bits, colour profiles, the first frame of an animation. Refuses what is no raster image, what is cut off, and sizes
that are too small, too long or too many pixels, the latter before they are decoded.
"""

import io
import re
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from typing import Any

from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from workers.source_error import SourceError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
MIN_SIDE_PX = 16
MAX_ASPECT = 8
WHITE = (255, 255, 255)
_PILLOW = r"PIL\."
# What bytes that are no photo look like, told by how they begin.
_LOOKS: tuple[tuple[bytes, str], ...] = (
    (b"<!doctype html", "an HTML page"),
    (b"<html", "an HTML page"),
    (b"<svg", "an SVG drawing"),
    (b"<?xml", "an XML or SVG file"),
    (b"%pdf", "a PDF"),
    (b"%!ps", "a PostScript file"),
    (b"\xc5\xd0\xd3\xc6", "an EPS file"),
    (b"pk\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"8bps", "a Photoshop file"),
    (b"{", "JSON text"),
    (b"version https://git-lfs", "a Git LFS pointer"),
)
_BRANDS = {b"heic": "a HEIC photo", b"heix": "a HEIC photo", b"mif1": "a HEIF photo", b"avif": "an AVIF photo"}
# Whether the end of a file is missing, by its format.
_CUT: Mapping[bytes, Callable[[bytes], bool]] = {
    b"\xff\xd8": lambda data: b"\xff\xd9" not in data[-4096:],
    b"\x89PNG": lambda data: b"IEND" not in data[-4096:],
    b"GIF8": lambda data: not data.rstrip(b"\0").endswith(b";"),
    b"RIFF": lambda data: int.from_bytes(data[4:8], "little") + 8 > len(data),
    b"BM": lambda data: int.from_bytes(data[2:6], "little") > len(data),
}


def open_photo(data: bytes, max_px: int) -> Image.Image:
    """Decode a photo whole: mode RGB, sRGB, upright, alpha on white. Safe to call from several threads.

    Sides are at least 16 px, one at most 8 times the other, width times height at most `max_px`.
    Raises SourceError of class input: `image_empty`, `image_unreadable`, `image_truncated`, `image_too_small`,
    `image_aspect`, `image_too_many_pixels`.
    """
    if not data:
        raise _refuse("image_empty", "the file is empty (0 bytes)")
    _quieten_pillow()
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as photo:
            _check_size(photo.width, photo.height, max_px)
            photo.load()
            return _make_rgb(_turn_upright(photo))
    except SourceError:
        raise
    except Image.DecompressionBombError:
        raise _refuse("image_too_many_pixels", _too_many("", max_px)) from None
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise a dozen kinds
        raise _explain(data, error) from error


def _check_size(width_px: int, height_px: int, max_px: int) -> None:
    size = f"{width_px}×{height_px}"
    if width_px * height_px > max_px:
        raise _refuse("image_too_many_pixels", _too_many(f"{size} is ", max_px))
    if max(width_px, height_px) > MAX_ASPECT * min(width_px, height_px):
        raise _refuse("image_aspect", f"{size} is longer than {MAX_ASPECT}:1; crop it nearer to its subject")
    if min(width_px, height_px) < MIN_SIDE_PX:
        raise _refuse("image_too_small", f"{size} is too small; each side needs at least {MIN_SIDE_PX} pixels")


def _too_many(size: str, max_px: int) -> str:
    return f"{size}more than the {max_px:,} pixels allowed (KONTEXT_MAX_IMAGE_PX); scale it down"


def _turn_upright(photo: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(photo)
    except Exception:  # a damaged EXIF block says nothing about the pixels
        return photo


def _make_rgb(photo: Image.Image) -> Image.Image:
    profile = photo.info.get("icc_profile")
    photo = _make_8_bit(photo)
    alpha = None
    if photo.mode in {"LA", "La", "PA", "RGBA", "RGBa"} or "transparency" in photo.info:
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


def _make_8_bit(photo: Image.Image) -> Image.Image:
    """Grey of 16 bits or more, scaled and not clipped; other modes have 8 bits already."""
    if photo.mode == "F" or (photo.mode == "I" and not _fits_16_bits(photo)):
        raise _refuse("image_unreadable", "the image has 32 bits a channel; save it with 8 or 16")
    if photo.mode == "I" or photo.mode.startswith("I;16"):
        # Here, since a decoder that needs none of it starts in a third of the time.
        import numpy as np

        grey = np.asarray(photo).astype(np.uint32)
        scaled = Image.fromarray(((grey + 128) // 257).astype(np.uint8))
        scaled.info["icc_profile"] = photo.info.get("icc_profile")
        return scaled
    return photo


def _fits_16_bits(photo: Image.Image) -> bool:
    low, high = photo.getextrema()
    return int(low) >= 0 and int(high) < 1 << 16  # type: ignore[arg-type]


def _apply_profile(photo: Image.Image, profile: bytes | None) -> Image.Image:
    """Convert to sRGB by the embedded profile; a damaged or unfitting one is passed over."""
    if photo.mode == "LAB":
        lab = ImageCms.createProfile("LAB")
        return _convert_profile(photo, lab)
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


def _explain(data: bytes, error: Exception) -> SourceError:
    cut = next((is_cut(data) for start, is_cut in _CUT.items() if data.startswith(start)), False)
    if cut or "truncated" in str(error).lower():
        return _refuse("image_truncated", f"the image ends too early ({len(data):,} bytes); upload it again")
    if isinstance(error, UnidentifiedImageError):
        return _refuse("image_unreadable", f"the file looks like {_describe(data)}, not one of {', '.join(FORMATS)}")
    return _refuse("image_unreadable", f"the image is damaged: {error}")


def _describe(data: bytes) -> str:
    start = data[:64].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    known = next((look for mark, look in _LOOKS if start.startswith(mark)), None)
    if data[4:8] == b"ftyp":
        known = _BRANDS.get(data[8:12], "a video")
    elif known is None and data[:256].isascii() and b"\0" not in data[:256]:
        known = "text"
    return known or f"no image (it begins with {data[:8].hex(' ')})"


def _quieten_pillow() -> None:
    """Keep Pillow's warnings about odd files off the log: what matters of them is an error here.

    Idempotent, rather than a context manager, which threads would restore in the wrong order.
    """
    modules = [entry[3] for entry in list(warnings.filters)]
    if not any(isinstance(module, re.Pattern) and module.pattern == _PILLOW for module in modules):
        warnings.filterwarnings("ignore", module=_PILLOW)


def _refuse(code: str, message: str) -> SourceError:
    return SourceError(code, "input", message)
