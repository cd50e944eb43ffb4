"""Photos of every kind become upright 8-bit sRGB; what is no usable photo is refused by code."""

import io
import struct
import subprocess
import sys
import threading
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from kontext_model.canvas import Canvas
from kontext_model.training.triples import Row, RowSource
from orchestrator.settings import Settings
from workers.photo import open_photo
from workers.source_error import SourceError

MAX_PX = Settings().max_image_px
RED, GREEN = (200, 30, 40), (20, 180, 60)


@pytest.fixture
def photo() -> Image.Image:
    """Left red, right green, wider than high."""
    picture = Image.new("RGB", (96, 64), RED)
    picture.paste(GREEN, (48, 0, 96, 64))
    return picture


def encode(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def refuse(data: bytes, max_px: int = MAX_PX) -> SourceError:
    with pytest.raises(SourceError) as caught:
        open_photo(data, max_px)
    assert caught.value.error_class == "input"
    return caught.value


def check(data: bytes, size: tuple[int, int] = (96, 64), tolerance: int = 3) -> Image.Image:
    """Opens it and sees that it is the photo of the fixture."""
    read = open_photo(data, MAX_PX)
    assert (read.mode, read.size) == ("RGB", size)
    np.testing.assert_allclose(read.getpixel((8, 32)), RED, atol=tolerance)
    np.testing.assert_allclose(read.getpixel((88, 32)), GREEN, atol=tolerance)
    return read


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"])
def test_the_raster_formats_are_read(photo: Image.Image, kind: str) -> None:
    check(encode(photo, kind), tolerance=6)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_an_exif_rotated_photo_is_turned_upright(photo: Image.Image, kind: str, orientation: int) -> None:
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = photo.transpose(undo[orientation]) if orientation in undo else photo
    read = check(encode(turned, kind, exif=exif), tolerance=6)
    assert read.getexif().get(0x0112, 1) == 1


def test_a_damaged_exif_block_is_passed_over(photo: Image.Image) -> None:
    check(encode(photo, "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff"), tolerance=6)


def test_cmyk_is_converted(photo: Image.Image) -> None:
    for kind in ("JPEG", "TIFF"):
        check(encode(photo.convert("CMYK"), kind), tolerance=6)


def test_a_palette_is_resolved(photo: Image.Image) -> None:
    for kind in ("PNG", "GIF", "BMP"):
        check(encode(photo.quantize(4), kind))


def test_alpha_is_laid_on_white(photo: Image.Image) -> None:
    for mode in ("RGBA", "LA"):
        clear = photo.convert(mode)
        clear.putalpha(Image.new("L", photo.size, 0))
        assert open_photo(encode(clear), MAX_PX).getcolors() == [(96 * 64, (255, 255, 255))]
    half = photo.convert("RGBA")
    half.putalpha(Image.new("L", photo.size, 128))
    read = open_photo(encode(half), MAX_PX)
    np.testing.assert_allclose(read.getpixel((0, 0)), [(v * 128 + 255 * 127) / 255 for v in RED], atol=1)


def test_a_transparent_colour_is_laid_on_white(photo: Image.Image) -> None:
    read = open_photo(encode(photo, transparency=RED), MAX_PX)
    assert read.getpixel((0, 0)) == (255, 255, 255)
    assert read.getpixel((90, 0)) == GREEN
    palette = photo.quantize(4)
    read = open_photo(encode(palette, transparency=palette.getpixel((0, 0))), MAX_PX)
    assert read.getpixel((0, 0)) == (255, 255, 255)
    assert read.getpixel((90, 0)) == GREEN


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_and_not_clipped(kind: str) -> None:
    ramp = np.linspace(0, 65535, 256).astype(np.uint16)[None].repeat(32, 0)
    read = open_photo(encode(Image.fromarray(ramp), kind), MAX_PX)
    np.testing.assert_array_equal(np.asarray(read)[0, :, 1], np.arange(256))


def test_16_bit_colour_is_scaled_and_not_clipped() -> None:
    ramp = np.linspace(0, 65535, 256).astype(">u2")
    rows = b"".join(b"\0" + np.stack([ramp, ramp[::-1], ramp], -1).tobytes() for _ in range(32))
    read = open_photo(png(256, 32, 16, 2, rows), MAX_PX)
    expected = np.stack([np.arange(256), np.arange(255, -1, -1), np.arange(256)], -1)
    np.testing.assert_allclose(np.asarray(read)[0], expected, atol=1)


def test_1_bit_and_grey_are_read() -> None:
    for mode in ("1", "L"):
        assert open_photo(encode(Image.new(mode, (32, 32), 255)), MAX_PX).getcolors() == [(1024, (255, 255, 255))]


def test_the_first_frame_of_an_animation_is_taken(photo: Image.Image) -> None:
    others = [Image.new("RGB", photo.size, (0, 0, shade)) for shade in (10, 200)]
    for kind in ("GIF", "WEBP", "PNG", "TIFF"):
        check(encode(photo, kind, save_all=True, append_images=others), tolerance=8)


def test_a_colour_profile_is_applied() -> None:
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
    swapped = ImageCms.ImageCmsProfile(io.BytesIO(swapped_primaries()))
    assert "srgb" not in ImageCms.getProfileDescription(swapped).lower()
    picture = Image.new("RGB", (32, 32), (255, 0, 0))
    read = open_photo(encode(picture, icc_profile=swapped.tobytes()), MAX_PX)
    assert read.getpixel((0, 0))[1] > 200  # type: ignore[index]
    assert read.getpixel((0, 0))[0] < 60  # type: ignore[index]
    for unfitting in (lab.tobytes(), b"no profile"):
        assert open_photo(encode(picture, icc_profile=unfitting), MAX_PX).getpixel((0, 0)) == (255, 0, 0)


def test_a_model_is_trained_on_the_colours_that_it_is_fed(photo: Image.Image, tmp_path: Path) -> None:
    clear = photo.convert("RGBA")
    clear.putalpha(Image.new("L", photo.size, 100))
    for data in (
        encode(photo, icc_profile=swapped_primaries()),
        encode(clear, icc_profile=swapped_primaries()),
        encode(photo, "JPEG", exif=b"Exif\0\0no TIFF here"),
        encode(photo.convert("CMYK"), "TIFF"),
        encode(Image.fromarray(np.arange(6144, dtype=np.uint16).reshape(64, 96) * 10)),
    ):
        path = tmp_path / "photo"
        path.write_bytes(data)
        trained, _ = RowSource((Row(path, "flat", path, "row 1"),)).images(0, Canvas(96, 64))
        np.testing.assert_array_equal(np.asarray(trained), np.asarray(open_photo(data, MAX_PX)))


def test_more_than_16_bits_are_refused() -> None:
    for levels in (np.full((32, 32), 0.5, np.float32), np.full((32, 32), 1 << 16, np.int32)):
        error = refuse(encode(Image.fromarray(levels), "TIFF"))
        assert error.code == "image_unreadable"
        assert str(error).endswith("the image has 32 bits a channel; save it with 8 or 16")


def test_a_decoder_starts_without_the_models_libraries() -> None:
    code = "import sys, workers.decoder; print(*sorted({'numpy', 'torch', 'diffusers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"


def test_an_empty_file_is_said() -> None:
    assert refuse(b"").code == "image_empty"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF"])
@pytest.mark.parametrize("part", [0.3, 0.6, 0.9])
def test_a_truncated_file_is_said(kind: str, part: float) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8))
    data = encode(noise, kind)
    error = refuse(data[: int(len(data) * part)])
    assert error.code in {"image_truncated"} or (kind == "TIFF" and error.code == "image_unreadable")
    assert "upload it again" in str(error) or kind == "TIFF"


@pytest.mark.parametrize(
    ("data", "looks"),
    [
        (b"<!DOCTYPE html><p>404", "an HTML page"),
        (b"\xef\xbb\xbf  <html>", "an HTML page"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "an SVG drawing"),
        (b"%PDF-1.7\n", "a PDF"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n", "a PostScript file"),
        (b"PK\x03\x04....", "a ZIP archive"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "a HEIC photo"),
        (b"\0\0\0\x18ftypavif\0\0\0\0", "an AVIF photo"),
        (b"\0\0\0\x18ftypisom\0\0\0\0", "a video"),
        (b'{"error": 1}', "JSON text"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        (b"hello", "text"),
        (b"\x01\x02\x03\xff", "no image (it begins with 01 02 03 ff)"),
    ],
)
def test_what_is_no_image_is_named(data: bytes, looks: str) -> None:
    error = refuse(data)
    assert error.code == "image_unreadable"
    assert f"looks like {looks}, not one of JPEG, PNG" in str(error)


def test_a_damaged_image_is_said(photo: Image.Image) -> None:
    data = bytearray(encode(photo))
    start = data.index(b"IDAT") + 8
    data[start : start + 20] = b"\xff" * 20
    assert refuse(bytes(data)).code == "image_unreadable"


@pytest.mark.parametrize(
    ("size", "code"),
    [
        ((1, 1), "image_too_small"),
        ((15, 40), "image_too_small"),
        ((1, 5000), "image_aspect"),
        ((5000, 1), "image_aspect"),
        ((16, 129), "image_aspect"),
    ],
)
def test_a_photo_too_small_or_too_long_is_refused(size: tuple[int, int], code: str) -> None:
    error = refuse(encode(Image.new("RGB", size)))
    assert error.code == code
    assert f"{size[0]}×{size[1]}" in str(error)


def test_the_smallest_and_the_longest_are_taken() -> None:
    assert open_photo(encode(Image.new("RGB", (16, 128))), MAX_PX).size == (16, 128)


def test_too_many_pixels_are_refused_before_they_are_decoded() -> None:
    small = 5000
    assert refuse(encode(Image.new("RGB", (100, 51))), small).code == "image_too_many_pixels"
    assert open_photo(encode(Image.new("RGB", (100, 50))), small).size == (100, 50)
    for side in (9_000, 12_000, 60_000):  # above our limit, above Pillow's warning, above its error
        error = refuse(png(side, side, 8, 2, b""))
        assert error.code == "image_too_many_pixels"
        assert "64,000,000 pixels" in str(error)


def test_a_text_chunk_that_explodes_is_refused(photo: Image.Image) -> None:
    data = encode(photo)
    bomb = zlib.compress(b"x" * (80 << 20), 9)
    cut = data.index(b"IDAT") - 4
    assert refuse(data[:cut] + chunk(b"zTXt", b"k\0\0" + bomb) + data[cut:]).code == "image_unreadable"


def test_no_warning_leaks_from_many_threads(photo: Image.Image) -> None:
    odd = encode(photo.quantize(4), transparency=bytes(4)) + b"trailing"
    big = png(10_000, 10_000, 8, 2, b"")
    roomy = 400_000_000
    start = threading.Barrier(8)

    def work(number: int) -> None:
        start.wait()
        for _ in range(5):
            if number % 2:
                open_photo(odd, MAX_PX)
            else:
                with pytest.raises(SourceError):
                    open_photo(big, roomy)

    with warnings.catch_warnings(record=True) as caught, ThreadPoolExecutor(8) as threads:
        warnings.simplefilter("always")
        list(threads.map(work, range(8)))
    assert caught == []


@pytest.mark.parametrize("seed", range(60))
def test_random_damage_gives_a_picture_or_a_source_error(photo: Image.Image, seed: int) -> None:
    kinds: tuple[tuple[str, dict[str, Any]], ...] = (
        ("JPEG", {}),
        ("PNG", {}),
        ("WEBP", {}),
        ("BMP", {}),
        ("GIF", {}),
        ("TIFF", {}),
    )
    kind, options = kinds[seed % len(kinds)]
    random = np.random.default_rng(seed)
    data = bytearray(encode(photo, kind, **options))
    for position in random.integers(0, len(data), 8):
        data[position] = random.integers(0, 256)
    try:
        assert open_photo(bytes(data), MAX_PX).mode == "RGB"
    except SourceError as error:
        assert error.error_class == "input"


Mutate = Callable[[bytes], bytes]


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width_px: int, height_px: int, bits: int, colour: int, rows: bytes) -> bytes:
    """A PNG by hand, for headers that no encoder writes."""
    header = struct.pack(">IIBBBBB", width_px, height_px, bits, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def swapped_primaries() -> bytes:
    """sRGB's profile with the red and green primaries exchanged, so that its effect is plain to see."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = profile.replace(b"rXYZ", b"tXYZ").replace(b"gXYZ", b"rXYZ").replace(b"tXYZ", b"gXYZ")
    return swapped.replace("sRGB".encode("utf-16-be"), "swap".encode("utf-16-be"))
