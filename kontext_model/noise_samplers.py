"""DDPM and DDIM: the samplers of networks that predict noise, as Stable Diffusion 1.5 and 2.1 do.

Owns their noise schedule and update rules, in x_t = α_t·x₀ + β_t·n with α² + β² = 1. They are here to be compared with
the flow's samplers: a Kontext transformer predicts velocities and walks `kontext_model.sampling`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

TRAIN_STEPS = 1000

Noise = Callable[[Tensor, float, float], Tensor]
"""The noise n in x, told x, α and β."""


@dataclass(frozen=True)
class Level:
    """How much picture (α) and how much noise (β) there is at a time; (1, 0) is the picture."""

    alpha: float
    beta: float


def list_levels(steps: int) -> list[Level]:
    """steps + 1 levels from the noisiest of 1,000 to the picture, evenly spaced in time.

    Raises ValueError unless 1 <= steps <= 1000.
    Source: Ho et al., "Denoising Diffusion Probabilistic Models", 2020, section 4: variances from 1e-4 to 0.02; the
    spacing is diffusers' "trailing".
    """
    if not 1 <= steps <= TRAIN_STEPS:
        raise ValueError(f"steps must be from 1 to {TRAIN_STEPS}, not {steps}")
    alpha_bars = torch.cumprod(1 - torch.linspace(1e-4, 0.02, TRAIN_STEPS, dtype=torch.float64), 0).tolist()
    times = [round(TRAIN_STEPS * (steps - i) / steps) - 1 for i in range(steps)]
    return [*(Level(alpha_bars[t] ** 0.5, (1 - alpha_bars[t]) ** 0.5) for t in times), Level(1.0, 0.0)]


def step_ddim(x: Tensor, noise: Tensor, now: Level, then: Level) -> Tensor:
    """x₀ = (x − β·n)/α, then x' = α'·x₀ + β'·n: no noise is drawn, so that it solves the probability-flow ODE.

    With α = 1 − σ and β = σ this is the flow's Euler step.
    Source: Song et al., "Denoising Diffusion Implicit Models", 2020, equation 12 with η = 0.
    """
    x0 = (x - now.beta * noise) / now.alpha
    return then.alpha * x0 + then.beta * noise


def step_ddpm(x: Tensor, noise: Tensor, now: Level, then: Level, drawn: Tensor) -> Tensor:
    """A draw from q(x' | x, x₀): part of the noise is taken out and less of it, drawn anew, put back.

    `drawn` is standard normal, of x's shape. Source: Ho et al., equations 6 and 7, over any two levels.
    """
    x0 = (x - now.beta * noise) / now.alpha
    kept = now.alpha / then.alpha
    added = now.beta**2 - kept**2 * then.beta**2  # the variance that the chain puts in between the two levels
    mean = (then.alpha * added * x0 + kept * then.beta**2 * x) / now.beta**2
    return mean + (added**0.5 * then.beta / now.beta) * drawn


def sample_ddim(predict: Noise, x: Tensor, steps: int) -> Tensor:
    """Walk noise x to the picture in `steps` model calls, deterministically."""
    for now, then in pairwise(list_levels(steps)):
        x = step_ddim(x, predict(x, now.alpha, now.beta), now, then)
    return x


def sample_ddpm(predict: Noise, x: Tensor, steps: int, draw: Callable[[Tensor], Tensor]) -> Tensor:
    """Walk noise x to a picture in `steps` model calls, down the Markov chain.

    `draw` gives standard normal noise for a step from x, such as `torch.randn_like`.
    """
    for now, then in pairwise(list_levels(steps)):
        x = step_ddpm(x, predict(x, now.alpha, now.beta), now, then, draw(x))
    return x
