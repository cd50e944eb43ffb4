"""The toy world's answers, what the samplers make of them, and the drawing."""

import math
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor

from kontext_model.sampler_study import COLOURS, NAMES, Measure, describe, draw_study, make_world, measure, run
from kontext_model.sampling import SAMPLERS

BUDGETS = (1, 9, 28, 100, 200)


@pytest.fixture(scope="module")
def measures() -> list[Measure]:
    return measure(make_world(), BUDGETS)


@pytest.fixture(scope="module")
def errors(measures: list[Measure]) -> dict[str, dict[int, float]]:
    """sampler → budget → error."""
    return {
        sampler: dict(zip(BUDGETS, (each.error for each in group), strict=True))
        for sampler, group in groupby(measures, key=lambda each: each.sampler)
    }


def test_the_exact_end_keeps_the_quantile_and_is_where_a_fine_walk_ends() -> None:
    world = make_world()
    noise = torch.randn(40, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    exact = world.find_end(noise)
    assert torch.allclose(world.rank(exact), torch.special.ndtr(noise), atol=1e-9)
    ends, _ = run(world, "heun", noise, 801, torch.randn_like)
    assert (ends - exact).abs().max() < 2e-3


def test_the_perfect_network_knows_the_mean_of_all_pictures_behind_a_point() -> None:
    world, alpha, beta = make_world(), 0.7, 0.4
    pictures = torch.linspace(-4, 4, 8001, dtype=torch.float64).unsqueeze(-1).expand(-1, 2)
    for value in (-1.0, 0.2, 1.4):
        x = torch.full((1, 2), value, dtype=torch.float64)
        away = (pictures.unsqueeze(-1) - world.means) / world.spread
        likely = (world.weights * torch.exp(-(away**2) / 2)).sum(-1) * torch.exp(
            -(((x - alpha * pictures) / beta) ** 2) / 2
        )
        expected = (likely * pictures).sum(0) / likely.sum(0)
        assert torch.allclose(world.predict_picture(x, alpha, beta)[0], expected, atol=1e-6)
        noise = (x - alpha * expected) / beta
        assert torch.allclose(world.predict_noise(x, alpha, beta)[0], noise[0], atol=1e-6)
    x = torch.tensor([[0.3, -0.6]], dtype=torch.float64)
    assert torch.allclose(
        world.predict_velocity(x, 0.4), world.predict_noise(x, 0.6, 0.4) - world.predict_picture(x, 0.6, 0.4)
    )


def test_one_call_knows_no_more_than_the_mean(errors: dict[str, dict[int, float]]) -> None:
    assert all(0.85 < by_budget[1] < 0.95 for by_budget in errors.values())


@pytest.mark.parametrize(
    ("sampler", "order"), [("ddpm", 0.8), ("ddim", 0.9), ("euler", 0.9), ("heun", 1.7), ("dpmpp_2m", 1.1)]
)
def test_errors_fall_with_the_order_of_the_sampler(
    errors: dict[str, dict[int, float]], sampler: str, order: float
) -> None:
    by_budget = errors[sampler]
    assert sorted(by_budget.values(), reverse=True) == list(by_budget.values())
    assert math.log2(by_budget[100] / by_budget[200]) > order


def test_at_equal_calls_the_second_order_is_better_and_drawn_noise_worst(errors: dict[str, dict[int, float]]) -> None:
    for budget in (28, 100, 200):
        at = {sampler: by_budget[budget] for sampler, by_budget in errors.items()}
        assert at["dpmpp_2m"] < at["heun"] < min(at["euler"], at["ddim"]) < max(at["euler"], at["ddim"]) < at["ddpm"]
    assert errors["heun"][9] > errors["euler"][9] > 1.5 * errors["dpmpp_2m"][9], "too few steps for Heun"


def test_no_sampler_takes_more_calls_than_it_may(measures: list[Measure]) -> None:
    assert {each.calls for each in measures if each.sampler == "heun"} == {1, 9, 27, 99, 199}
    assert {each.calls for each in measures if each.sampler != "heun"} == set(BUDGETS)
    assert set(NAMES) == {"ddpm", "ddim", *SAMPLERS}


def test_ddpm_measured_evenly_agrees_with_chance(errors: dict[str, dict[int, float]]) -> None:
    world = make_world()
    noise = torch.randn(15_000, 2, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    ends, _ = run(world, "ddpm", noise, 9, lambda x: torch.randn(x.shape, generator=generator))
    ranks = ((torch.arange(15_000, dtype=torch.float64) + 0.5) / 15_000).unsqueeze(-1).expand(-1, 2)
    exact = world.find_end(torch.special.ndtri(ranks))
    assert float((ends.double().sort(dim=0).values - exact).abs().mean()) == pytest.approx(errors["ddpm"][9], abs=0.01)


def test_the_drawing_shows_every_sampler(tmp_path: Path) -> None:
    measures = draw_study(tmp_path / "samplers.png", budgets=(1, 4, 16))
    with Image.open(tmp_path / "samplers.png") as picture:
        assert picture.format == "PNG" and picture.size == (1500, 1230)
        pixels = np.asarray(picture.convert("RGB"), dtype=int)
    curves, clouds = pixels[:780], pixels[960:]
    for colour in COLOURS.values():
        for part in (curves, clouds):
            assert (np.abs(part - ImageColor.getrgb(colour)).max(axis=-1) < 8).sum() > 500
    assert np.median(pixels) == 255
    lines = describe(measures)
    assert len(lines) == 6 and lines[1].startswith("DDPM") and lines[5].startswith("flow DPM++ 2M")
