"""Small pictures while sampling."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from kontext_model import KontextEditor, latents, preview
from kontext_model.canvas import Canvas
from kontext_model.revision import CheckpointError
from kontext_model.sampling import SAMPLERS, denoise
from kontext_model.text import TextEmbeds

Draw = Callable[..., Image.Image]


class LinearVae:
    """Its latents are the mean colours of the four quarters of 8 × 8 pixels, mixed into 16 channels."""

    device, dtype = torch.device("cpu"), torch.float32
    config = SimpleNamespace(shift_factor=0.1, scaling_factor=0.4)
    mixing = torch.randn(16, 12, generator=torch.Generator().manual_seed(0))

    def encode(self, pixels: Tensor) -> Any:
        means = torch.nn.functional.pixel_unshuffle(torch.nn.functional.avg_pool2d(pixels, 4), 2)
        mixed = torch.einsum("oc,bchw->bohw", self.mixing, means) + 0.3
        return SimpleNamespace(latent_dist=SimpleNamespace(mode=lambda: mixed))


def _encode(vae: Any, photo: Image.Image) -> Tensor:
    from kontext_model import image

    return latents.pack(image.encode(vae, photo))


def test_a_vae_that_keeps_the_colours_is_previewed_exactly(draw_photo: Draw) -> None:
    vae, canvas = LinearVae(), Canvas(128, 64)
    photos = [draw_photo(128, 64, number) for number in range(2)]
    pictures = preview.draw(preview.fit_colours(vae), torch.cat([_encode(vae, each) for each in photos]), canvas)
    for picture, photo in zip(pictures, photos, strict=True):
        assert picture.size == (16, 8) and picture.mode == "RGB"
        expected = np.asarray(photo, dtype=float).reshape(8, 8, 16, 8, 3).mean(axis=(1, 3))
        assert np.abs(np.asarray(picture, dtype=float) - expected).max() <= 1


def test_latents_out_of_range_are_drawn_as_the_nearest_colour() -> None:
    colours = preview.fit_colours(LinearVae())
    picture = np.asarray(preview.draw(colours, torch.full((1, 16, 64), 1e6), Canvas(64, 64))[0])
    assert set(np.unique(picture)) <= {0, 255}


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_last_preview_is_the_result_and_every_kth_step_is_shown(editor: KontextEditor, sampler: str) -> None:
    canvas, shown = Canvas(64, 48), []
    condition, text = torch.zeros(2, canvas.tokens, 64), editor.encode_text(["a"])
    tokens = editor.sample(
        condition,
        text,
        canvas,
        [0, 1],
        6,
        2.5,
        sampler=sampler,
        on_preview=lambda *told: shown.append(told),
        preview_every=2,
    )
    assert [step for step, _ in shown] == [1, 3, 5]
    for found, expected in zip(shown[-1][1], preview.draw(editor.colours, tokens, canvas), strict=True):
        assert found.size == (8, 6)
        assert np.abs(np.asarray(found, dtype=int) - np.asarray(expected, dtype=int)).max() <= 1
    assert np.asarray(shown[0][1][0]).std() > 1
    assert torch.equal(tokens, editor.sample(condition, text, canvas, [0, 1], 6, 2.5, sampler=sampler))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_an_estimate_shows_the_picture_in_the_noise(editor: KontextEditor, sampler: str) -> None:
    """With a perfect network of one picture, the very first estimate is that picture."""
    canvas, told = Canvas(64, 64), []
    noise, picture = torch.randn(2, 1, 16, 64, generator=torch.Generator().manual_seed(0))

    class Transformer:
        config = SimpleNamespace(guidance_embeds=False)

        def __call__(self, hidden_states: Tensor, timestep: Tensor, **_: Any) -> tuple[Tensor]:
            v = (hidden_states[:, :16] - picture) / timestep.view(-1, 1, 1)
            return (torch.cat((v, v), dim=1),)

    text = TextEmbeds(torch.zeros(1, 8), torch.zeros(1, 4, 8))
    denoise(
        Transformer(), editor.checkpoint.scheduler.config, noise, torch.zeros_like(noise), text, canvas, 5, [1.0],
        sampler=sampler, on_estimate=lambda step, x0: told.append((step, x0)),
    )  # fmt: skip
    assert [step for step, _ in told] == list(range(5))
    assert all(torch.allclose(x0, picture, atol=1e-4) for _, x0 in told)


def test_what_a_preview_needs(editor: KontextEditor, tiny_folder: Path) -> None:
    canvas, text = Canvas(32, 32), editor.encode_text(["a"])
    asked: list[Any] = [torch.zeros(1, 4, 64), text, canvas, [0], 1, 2.5]
    with pytest.raises(ValueError, match="preview_every must be at least 1, not 0"):
        editor.sample(*asked, on_preview=lambda *_: None, preview_every=0)
    blind = KontextEditor.open(tiny_folder, parts=frozenset({"sample"}))
    with pytest.raises(CheckpointError, match="'decode'"):
        blind.sample(*asked, on_preview=lambda *_: None)
    assert blind.sample(*asked).shape == (1, 4, 64)
