"""From the bytes of a photo to a checked RGB picture.

Owns what counts as a photo, of an animation its first frame; how it becomes sRGB is `kontext_model.photo`'s. Refuses
what is no raster image, what is cut off, and sizes that are too small, too long or too many pixels, the latter before
they are decoded.
"""

import io
import re
import warnings
from collections.abc import Callable, Mapping

from PIL import Image, UnidentifiedImageError

from kontext_model.photo import DepthError, to_rgb
from workers.source_error import SourceError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
MIN_SIDE_PX = 16
MAX_ASPECT = 8
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
            return to_rgb(photo)
    except SourceError:
        raise
    except DepthError as error:
        raise _refuse("image_unreadable", str(error)) from None
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
