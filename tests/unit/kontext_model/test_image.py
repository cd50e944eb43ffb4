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


def test_a_vae_that_overflows_draws_no_black_picture(editor: KontextEditor) -> None:
    latents = torch.randn(1, 16, 4, 4, generator=torch.Generator().manual_seed(0)) * 1e37
    assert torch.isfinite(latents).all()
    with pytest.raises(FloatingPointError, match="the decoded pixels hold NaN or infinity; decode in bfloat16"):
        image.decode(editor.checkpoint.vae, latents)
