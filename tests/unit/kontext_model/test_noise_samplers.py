"""DDPM and DDIM against diffusers' schedulers and against the flow's Euler."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from torch import Tensor

from kontext_model.noise_samplers import Level, list_levels, sample_ddim, sample_ddpm, step_ddim
from kontext_model.sampling import SAMPLERS

SETTINGS: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "clip_sample": False,
    "timestep_spacing": "trailing",
}


def _predict(x: Tensor, alpha: float, beta: float) -> Tensor:
    """Some network: its noise depends on x and on the time."""
    return torch.sin(2 * x) * beta + alpha


@pytest.mark.parametrize("steps", [1, 10, 50])
def test_ddim_equals_diffusers(steps: int) -> None:
    scheduler = DDIMScheduler(**SETTINGS)
    scheduler.set_timesteps(steps)
    expected = start = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    for timestep in scheduler.timesteps:
        alpha_bar = float(scheduler.alphas_cumprod[timestep])
        noise = _predict(expected, alpha_bar**0.5, (1 - alpha_bar) ** 0.5)
        expected = scheduler.step(noise, timestep, expected).prev_sample
    assert torch.allclose(sample_ddim(_predict, start, steps), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("steps", [1, 10, 1000])
def test_ddpm_equals_diffusers(steps: int) -> None:
    scheduler = DDPMScheduler(**SETTINGS, variance_type="fixed_small")
    scheduler.set_timesteps(steps)
    ours, theirs = torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)
    expected = start = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    for timestep in scheduler.timesteps:
        alpha_bar = float(scheduler.alphas_cumprod[timestep])
        noise = _predict(expected, alpha_bar**0.5, (1 - alpha_bar) ** 0.5)
        expected = scheduler.step(noise, timestep, expected, generator=theirs).prev_sample
    found = sample_ddpm(_predict, start, steps, lambda x: torch.randn(x.shape, generator=ours))
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_the_flows_euler_step_is_ddims() -> None:
    """In x = (1 − σ)·x₀ + σ·ε a velocity and a noise say the same."""
    x, v = torch.randn(2, 4, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    now, then = 0.8, 0.3
    noise = x + (1 - now) * v
    euler = SAMPLERS["euler"](lambda *_: v, x, torch.tensor([now, then], dtype=torch.float64), lambda *_: None)
    assert torch.allclose(step_ddim(x, noise, Level(1 - now, now), Level(1 - then, then)), euler, atol=1e-6)


def test_levels_go_from_noise_to_the_picture() -> None:
    levels = list_levels(1000)
    assert len(levels) == 1001 and levels[-1] == Level(1.0, 0.0)
    assert levels[0].alpha < 0.01 and all(one.alpha < two.alpha for one, two in pairwise(levels))
    assert all(abs(level.alpha**2 + level.beta**2 - 1) < 1e-12 for level in levels)
    for steps in (0, 1001):
        with pytest.raises(ValueError, match=f"not {steps}"):
            list_levels(steps)
