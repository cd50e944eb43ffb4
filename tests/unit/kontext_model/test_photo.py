"""Photos of every kind become the upright 8-bit sRGB that a viewer shows; files are `workers.photo`'s."""

import numpy as np
import pytest
from PIL import Image, ImageCms

from kontext_model.photo import DepthError, to_rgb

RED, WHITE = (200, 30, 30), (255, 255, 255)


def test_every_mode_becomes_the_rgb_that_a_viewer_shows() -> None:
    red = Image.new("RGB", (8, 8), RED)
    assert to_rgb(red) is red or to_rgb(red).getpixel((0, 0)) == RED
    assert to_rgb(red.convert("P")).getpixel((0, 0)) == red.convert("P").convert("RGB").getpixel((0, 0))
    assert to_rgb(Image.new("L", (8, 8), 77)).getpixel((0, 0)) == (77, 77, 77)
    assert to_rgb(Image.new("1", (8, 8), 1)).getpixel((0, 0)) == WHITE
    assert to_rgb(Image.new("CMYK", (8, 8), (0, 0, 0, 0))).getpixel((0, 0)) == WHITE
    assert to_rgb(Image.new("RGBA", (8, 8), (0, 0, 0, 0))).getpixel((0, 0)) == WHITE
    assert to_rgb(Image.new("RGBA", (8, 8), (0, 0, 0, 128))).getpixel((0, 0)) == (127, 127, 127)
    assert to_rgb(Image.new("LA", (8, 8), (0, 0))).getpixel((0, 0)) == WHITE
    palette = Image.new("P", (8, 8), 0)
    palette.putpalette([10, 20, 30])
    palette.info["transparency"] = 0
    assert to_rgb(palette).getpixel((0, 0)) == WHITE


@pytest.mark.parametrize("mode", ["I;16", "I"])
def test_sixteen_bits_are_scaled_not_clipped(mode: str) -> None:
    levels = np.array([[0, 257, 32896, 65535]], dtype=np.uint16 if mode == "I;16" else np.int32)
    photo = Image.fromarray(levels)
    assert photo.mode == mode
    assert [to_rgb(photo).getpixel((x, 0)) for x in range(4)] == [(v, v, v) for v in (0, 1, 128, 255)]


def test_the_cameras_rotation_is_applied() -> None:
    photo = Image.new("RGB", (40, 20), WHITE)
    photo.paste(RED, (0, 0, 20, 20))
    photo.getexif()[0x0112] = 6  # to be turned a quarter clockwise
    upright = to_rgb(photo)
    assert upright.size == (20, 40) and upright.getpixel((10, 5)) == RED and upright.getpixel((10, 35)) == WHITE


def test_what_the_caller_gave_is_left_alone() -> None:
    for exif in (b"", b"Exif\0\0no TIFF here"):
        photo = Image.new("RGB", (8, 8), RED)
        photo.info["exif"] = exif
        found = to_rgb(photo)
        assert found.getcolors() == [(64, RED)] and not found.info and photo.info == {"exif": exif}


def test_whole_numbers_that_fit_8_bits_are_8_bits() -> None:
    """As converting to mode I, and many a tool's TIFF, leaves them; scaled, they would all be black."""
    assert to_rgb(Image.new("L", (8, 8), 77).convert("I")).getpixel((0, 0)) == (77, 77, 77)
    dark = Image.fromarray(np.full((8, 8), 77, dtype=np.uint16))
    assert dark.mode == "I;16" and to_rgb(dark).getpixel((0, 0)) == (0, 0, 0), "there the mode says how many bits"


@pytest.mark.parametrize("levels", [np.float32(0.5), np.float32(200.0), np.int32(-1), np.int32(1 << 16)])
def test_levels_without_a_known_white_are_refused(levels: np.generic) -> None:
    with pytest.raises(DepthError, match="32 bits a channel; save it with 8 or 16"):
        to_rgb(Image.fromarray(np.full((8, 8), levels)))


def test_lab_is_converted() -> None:
    red = Image.new("RGB", (8, 8), RED)
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    photo = ImageCms.profileToProfile(red, srgb, lab, outputMode="LAB")
    assert photo is not None and photo.mode == "LAB"
    np.testing.assert_allclose(to_rgb(photo).getpixel((0, 0)), RED, atol=3)
