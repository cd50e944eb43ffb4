"""The layout of latents: packing, positions, noise."""

import pytest
import torch
from diffusers import FluxKontextPipeline
from hypothesis import given
from hypothesis import strategies as st

from kontext_model import latents
from kontext_model.canvas import Canvas

canvases = st.builds(lambda w, h: Canvas(16 * w, 16 * h), st.integers(1, 12), st.integers(1, 12))


@given(canvases, st.integers(1, 3))
def test_unpack_undoes_pack(canvas: Canvas, batch: int) -> None:
    grid = torch.randn(batch, 16, canvas.height_px // 8, canvas.width_px // 8)
    tokens = latents.pack(grid)
    assert tokens.shape == (batch, canvas.tokens, 64)
    assert torch.equal(latents.unpack(tokens, canvas), grid)


@given(canvases)
def test_the_layout_is_that_of_diffusers(canvas: Canvas) -> None:
    rows, columns = canvas.height_px // 8, canvas.width_px // 8
    grid = torch.randn(2, 16, rows, columns)
    tokens = FluxKontextPipeline._pack_latents(grid, 2, 16, rows, columns)
    assert torch.equal(latents.pack(grid), tokens)
    theirs = FluxKontextPipeline._unpack_latents(tokens, canvas.height_px, canvas.width_px, 8)
    assert torch.equal(latents.unpack(tokens, canvas), theirs)
    ids = FluxKontextPipeline._prepare_latent_image_ids(1, rows // 2, columns // 2, "cpu", torch.float32)
    assert torch.equal(latents.position_ids(canvas, latents.GENERATED), ids)
    ids[..., 0] = 1
    assert torch.equal(latents.position_ids(canvas, latents.CONDITION), ids)


def test_shapes_at_1024_and_512() -> None:
    assert latents.pack(torch.zeros(1, 16, 128, 128)).shape == (1, 4096, 64)
    assert latents.pack(torch.zeros(4, 16, 64, 64)).shape == (4, 1024, 64)
    ids = latents.position_ids(Canvas(1024, 1024), latents.CONDITION)
    assert ids.shape == (4096, 3) and ids[65].tolist() == [1, 1, 1]


def test_what_does_not_fit_is_an_error() -> None:
    with pytest.raises(ValueError, match="both sides must be even"):
        latents.pack(torch.zeros(1, 16, 3, 4))
    with pytest.raises(ValueError, match="a canvas of 64x32 has 8 tokens, not 9"):
        latents.unpack(torch.zeros(1, 9, 64), Canvas(64, 32))


def test_noise_is_the_seeds_own_and_drawn_unpacked() -> None:
    state = torch.get_rng_state()
    noise = latents.draw_noise(7, Canvas(64, 48))
    assert noise.shape == (1, 16, 6, 8) and noise.dtype == torch.float32
    expected = torch.randn(1, 16, 6, 8, generator=torch.Generator().manual_seed(7))
    assert torch.equal(latents.draw_noise(7, Canvas(64, 48)), expected)
    assert torch.equal(torch.get_rng_state(), state), "the caller's own draws must not change"
    assert not torch.equal(latents.draw_noise(8, Canvas(64, 48)), expected)
    assert latents.draw_noise(2**63 - 1, Canvas(16, 16)).isfinite().all()
