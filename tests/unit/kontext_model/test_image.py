"""Photos to the canvas's pixels, to latents and back."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from kontext_model import KontextEditor, image
from kontext_model.canvas import Canvas

RED, WHITE = (200, 30, 30), (255, 255, 255)


def test_a_photo_of_the_canvas_aspect_is_resized_straight() -> None:
    fitted = image.fit(Image.new("RGB", (101, 100), RED), Canvas(64, 64), "pad")
    assert fitted.size == (64, 64) and fitted.getcolors() == [(64 * 64, RED)]


def test_pad_keeps_the_whole_photo_on_white() -> None:
    fitted = np.asarray(image.fit(Image.new("RGB", (100, 200), RED), Canvas(64, 64), "pad"))
    assert (fitted[:, 16:48] == RED).all()
    assert (fitted[:, :16] == WHITE).all() and (fitted[:, 48:] == WHITE).all()


def test_crop_fills_the_canvas_from_the_middle() -> None:
    photo = Image.new("RGB", (300, 100), WHITE)
    photo.paste(RED, (100, 0, 200, 100))
    fitted = image.fit(photo, Canvas(64, 64), "crop")
    assert fitted.getpixel((32, 32)) == RED and fitted.getpixel((4, 32)) == RED and fitted.getpixel((60, 32)) == RED


def test_stretch_distorts() -> None:
    assert image.fit(Image.new("RGB", (300, 100), RED), Canvas(64, 64), "stretch").getcolors() == [(64 * 64, RED)]


@pytest.mark.parametrize("mode", ["pad", "crop", "stretch"])
@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (3, 2), (777, 333)])
def test_any_size_fits(mode: str, size: tuple[int, int]) -> None:
    fitted = image.fit(Image.new("RGB", size, RED), Canvas(96, 48), mode)
    assert fitted.size == (96, 48) and fitted.mode == "RGB"
    assert max(count for count, colour in fitted.getcolors() or [] if colour != WHITE) > 0


def test_another_fit_is_an_error() -> None:
    with pytest.raises(ValueError, match="fit must be one of pad, crop, stretch, not 'squeeze'"):
        image.fit(Image.new("RGB", (8, 8)), Canvas(16, 16), "squeeze")


def test_every_mode_becomes_the_rgb_that_a_viewer_shows() -> None:
    red = Image.new("RGB", (8, 8), RED)
    assert image.to_rgb(red) is red or image.to_rgb(red).getpixel((0, 0)) == RED
    assert image.to_rgb(red.convert("P")).getpixel((0, 0)) == red.convert("P").convert("RGB").getpixel((0, 0))
    assert image.to_rgb(Image.new("L", (8, 8), 77)).getpixel((0, 0)) == (77, 77, 77)
    assert image.to_rgb(Image.new("1", (8, 8), 1)).getpixel((0, 0)) == WHITE
    assert image.to_rgb(Image.new("CMYK", (8, 8), (0, 0, 0, 0))).getpixel((0, 0)) == WHITE
    assert image.to_rgb(Image.new("RGBA", (8, 8), (0, 0, 0, 0))).getpixel((0, 0)) == WHITE
    assert image.to_rgb(Image.new("RGBA", (8, 8), (0, 0, 0, 128))).getpixel((0, 0)) == (127, 127, 127)
    assert image.to_rgb(Image.new("LA", (8, 8), (0, 0))).getpixel((0, 0)) == WHITE
    palette = Image.new("P", (8, 8), 0)
    palette.putpalette([10, 20, 30])
    palette.info["transparency"] = 0
    assert image.to_rgb(palette).getpixel((0, 0)) == WHITE


@pytest.mark.parametrize("mode", ["I;16", "I"])
def test_sixteen_bits_are_scaled_not_clipped(mode: str) -> None:
    levels = np.array([[0, 257, 32896, 65535]], dtype=np.uint16 if mode == "I;16" else np.int32)
    photo = Image.fromarray(levels)
    assert photo.mode == mode
    assert [image.to_rgb(photo).getpixel((x, 0)) for x in range(4)] == [(v, v, v) for v in (0, 1, 128, 255)]


def test_the_cameras_rotation_is_applied() -> None:
    photo = Image.new("RGB", (40, 20), WHITE)
    photo.paste(RED, (0, 0, 20, 20))
    photo.getexif()[0x0112] = 6  # to be turned a quarter clockwise
    upright = image.to_rgb(photo)
    assert upright.size == (20, 40) and upright.getpixel((10, 5)) == RED and upright.getpixel((10, 35)) == WHITE


def test_latents_are_those_of_the_pipeline(
    editor: KontextEditor, pipeline: Any, draw_photo: Callable[..., Image.Image]
) -> None:
    photo = draw_photo(96, 64)
    pixels = pipeline.image_processor.preprocess(photo, 64, 96)
    with torch.no_grad():
        expected = pipeline._encode_vae_image(pixels, generator=None)
    found = image.encode(editor.checkpoint.vae, photo)
    assert found.shape == (1, 16, 8, 12)
    assert (found - expected).abs().max() <= 1e-5


def test_decoding_is_that_of_the_pipeline(editor: KontextEditor, pipeline: Any) -> None:
    latents = torch.randn(1, 16, 8, 12, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        pixels = pipeline.vae.decode(latents / 0.3611 + 0.1159, return_dict=False)[0]
    expected = np.asarray(pipeline.image_processor.postprocess(pixels)[0], dtype=int)
    found = image.decode(editor.checkpoint.vae, latents)
    assert found.size == (96, 64) and found.mode == "RGB"
    assert abs(np.asarray(found, dtype=int) - expected).max() <= 1
