"""The garment's mask as pixels and latents tell it, and what losses make of it."""

from collections.abc import Iterator
from itertools import repeat
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from kontext_model import image, wardrobe
from kontext_model.canvas import Canvas
from kontext_model.checkpoint import open_checkpoint
from kontext_model.training import outline
from kontext_model.training.decoder import Course, as_pixels, teach
from kontext_model.training.outline import OutlineReader, fit_reader, shape_loss, tell_mask
from kontext_model.training.triples import WardrobeSource
from kontext_model.wardrobe import draw
from kontext_model.wardrobe.colour import to_lab
from kontext_model.wardrobe.score import enclose, find_garment, overlap

SHIPPED = Path(str(wardrobe.__file__)).parent / "checkpoint"


def _pixels(seed: int) -> Tensor:
    return as_pixels(torch.from_numpy(np.array(draw(seed, 128).target))[None])


@pytest.mark.parametrize("seed", [3, 4, 5, 6])
def test_pixels_tell_the_mask_that_the_score_finds(seed: int) -> None:
    pixels = _pixels(seed)
    found = find_garment(to_lab(np.asarray(draw(seed, 128).target)))
    told = (tell_mask(pixels, pixels) > 0)[0].numpy()
    assert 0.1 < found.mean() < 0.9 and (told != found).mean() < 0.001


def test_a_halo_learns_to_vanish_and_a_hole_to_close() -> None:
    answer = torch.ones(1, 3, 32, 32)
    answer[:, :, 8:24, 8:24] = -0.5
    drawn = answer.clone()
    drawn[:, :, 4:8, 8:24] = 0.9  # beside the garment, less than white
    drawn[:, :, 12:16, 12:16] = 0.98  # in the garment, all but white
    drawn.requires_grad_(True)
    loss = shape_loss(tell_mask(drawn, answer), tell_mask(answer, answer) > 0)
    loss.backward()
    assert (drawn.grad[:, :, 4:8, 8:24].sum(1) < 0).all(), "brighter"
    assert (drawn.grad[:, :, 12:16, 12:16].sum(1) > 0).all(), "darker"
    assert not drawn.grad[:, :, 9:11, 9:11].any(), "sure enough"
    assert loss > 2 * shape_loss(tell_mask(answer, answer), tell_mask(answer, answer) > 0)


def test_masks_that_agree_cost_nothing_whatever_their_size() -> None:
    small, large = torch.zeros(1, 64, 64), torch.zeros(1, 64, 64)
    small[:, :8, :8], large[:, :48, :48] = 1, 1
    for covered in (small, large):
        assert shape_loss(60 * covered - 30, covered) < 0.01
    misses = [
        shape_loss(60 * covered.roll(covered.sum().sqrt().int().item() // 2, 1) - 30, covered)
        for covered in (small, large)
    ]
    dice = [shape_loss(torch.full((1, 64, 64), -30.0), covered) - 15 * covered.mean() for covered in (small, large)]
    assert misses[0] > 0.5 and misses[1] > 0.5
    assert dice[0] == pytest.approx(1.0, abs=0.01) == pytest.approx(dice[1].item(), abs=0.01)


@pytest.fixture(scope="module")
def small_fit() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(outline, "PICTURES", 24)
        patch.setattr(outline, "AREA_PX", 64 * 64)
        patch.setattr(outline, "PASSES", 24)
        patch.setattr(outline, "WARMUP", 8)
        yield patch


def test_a_reader_tells_the_mask_from_latents_it_has_not_seen(small_fit: pytest.MonkeyPatch, tmp_path: Path) -> None:
    vae = open_checkpoint(SHIPPED, parts=frozenset({"decode"})).vae
    reader = fit_reader(vae, WardrobeSource(24, 70_000), "pad", 1, tmp_path)
    source, canvas, overlaps = WardrobeSource(12, 80_000), Canvas(64, 64), []
    for index in range(len(source)):
        target = source.images(index, canvas)[1]
        with torch.inference_mode():
            told = reader(image.encode(vae, target))[0] > 0
        overlaps.append(overlap(told.numpy(), enclose(find_garment(to_lab(np.asarray(target))))))
    assert np.mean(overlaps) > 0.7


def test_a_reader_is_fitted_once_and_kept(
    small_fit: pytest.MonkeyPatch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outline, "PASSES", 1)
    vae = open_checkpoint(SHIPPED, parts=frozenset({"decode"})).vae
    said: list[str] = []
    first = fit_reader(vae, WardrobeSource(4, 70_000), "pad", 1, tmp_path, said.append)
    again = fit_reader(vae, WardrobeSource(4, 70_000), "pad", 1, tmp_path / "other")
    monkeypatch.setattr(outline, "_fit", lambda *given: pytest.fail("fitted twice"))
    kept = fit_reader(vae, WardrobeSource(4, 70_000), "pad", 1, tmp_path, said.append)
    assert said == ["fitting the reader of outlines to 4 targets"]
    for name, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]) and torch.equal(value, kept.state_dict()[name]), name
    assert not any(value.requires_grad for value in kept.parameters())
    assert OutlineReader()(torch.zeros(2, 16, 4, 6)).shape == (2, 32, 48)


def test_a_decoder_that_learns_shape_misses_less_of_it(tmp_path: Path) -> None:
    pixels = torch.cat([_pixels(seed) for seed in (4, 5)])
    covered = tell_mask(pixels, pixels) > 0

    def missed(outline: float) -> float:
        vae = open_checkpoint(SHIPPED, parts=frozenset({"decode"})).vae
        with torch.no_grad():
            latents = vae.encoder(pixels)[:, :16]
        blurred = latents + 0.5 * torch.randn(latents.shape, generator=torch.Generator().manual_seed(1))
        course = Course(8, lambda start: repeat((blurred, pixels)), lambda step: 2e-4, 0.5, outline=outline)
        vae = teach(vae, course, tmp_path / f"{outline}", lambda line: None)
        with torch.no_grad():
            return shape_loss(tell_mask(vae.decoder(blurred), pixels), covered).item()

    assert missed(2.0) < 0.85 * missed(0.0)
