"""The flow-matching objective.

Owns the noising path, the target's sign, σ densities, loss weights and rollouts. Pure functions; randomness comes from
a generator.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf, pi
from types import MappingProxyType

import torch
from torch import Tensor


def _uniform(u: Tensor, location: float, scale: float) -> Tensor:
    return u


def _logit_normal(u: Tensor, location: float, scale: float) -> Tensor:
    normal = torch.erfinv((2 * u - 1).clamp(-0.999999, 0.999999)) * 2**0.5
    return torch.sigmoid(location + scale * normal)


def _mode(u: Tensor, location: float, scale: float) -> Tensor:
    return 1 - u - scale * (torch.cos(pi / 2 * u) ** 2 - 1 + u)


DENSITIES: Mapping[str, Callable[[Tensor, float, float], Tensor]] = MappingProxyType(
    {"uniform": _uniform, "logit_normal": _logit_normal, "mode": _mode}
)
WEIGHTS: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {
        "none": torch.ones_like,
        "sigma_sqrt": lambda sigmas: sigmas.clamp_min(1e-3) ** -2.0,
        "cosmap": lambda sigmas: 2 / (pi * (1 - 2 * sigmas + 2 * sigmas**2)),
    }
)

ROLLOUT_SIGMAS = (0.15, 0.85)
"""Where rollouts end."""


@dataclass(frozen=True)
class ObjectiveConfig:
    """Which noise levels are trained and how they weigh.

    `density`: `uniform`, `logit_normal` (sigmoid of a normal at `location` with `scale`) or `mode` (`scale` moves mass
    to the middle). `weight`: `none`, `sigma_sqrt` or `cosmap`. As in Esser et al., "Scaling Rectified Flow
    Transformers", 2024, and diffusers' training scripts. `rollout` is the share of passes whose noisy latents the model
    makes itself, in one to `rollout_steps` steps, see `roll_out`; `outline` is the weight of the loss of the garment's
    mask, as a reader sees it in the estimate of x₀ (`outline.py`).
    """

    density: str = "logit_normal"
    location: float = 0.0
    scale: float = 1.0
    weight: str = "none"
    rollout: float = 0.0
    rollout_steps: int = 1
    outline: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.rollout <= 1:
            raise ValueError(f"rollout must be from 0 to 1, not {self.rollout!r}")
        if self.rollout_steps < 1:
            raise ValueError(f"rollout_steps must be at least 1, not {self.rollout_steps!r}")
        if not 0 <= self.outline < inf:
            raise ValueError(f"outline must be at least 0, not {self.outline!r}")
        for name, value, table in (("density", self.density, DENSITIES), ("weight", self.weight, WEIGHTS)):
            if value not in table:
                raise ValueError(f"{name} must be one of {', '.join(table)}, not {value!r}")


def draw_sigmas(config: ObjectiveConfig, count: int, generator: torch.Generator) -> Tensor:
    """Noise levels (count,) in [0, 1], stratified over the batch so that every batch sees low and high noise."""
    u = (torch.randperm(count, generator=generator) + torch.rand(count, generator=generator)) / count
    return DENSITIES[config.density](u, config.location, config.scale).clamp(0.0, 1.0)


def noised(clean: Tensor, noise: Tensor, sigmas: Tensor) -> Tensor:
    """x_σ = (1 − σ)·x₀ + σ·ε. Shapes: (B, …), (B, …), (B,) -> (B, …)."""
    share = _spread(sigmas, clean)
    return (1 - share) * clean + share * noise


def flow_target(clean: Tensor, noise: Tensor) -> Tensor:
    """The velocity ε − x₀: along falling σ, an Euler step with it moves noise to the image."""
    return noise - clean


def flow_loss(prediction: Tensor, clean: Tensor, noise: Tensor, sigmas: Tensor, weight: str = "none") -> Tensor:
    """The weighted mean squared error to the flow target; a scalar."""
    error = (prediction.float() - flow_target(clean, noise).float()).square().flatten(1).mean(dim=1)
    return (WEIGHTS[weight](sigmas) * error).mean()


def draw_rollout_sigmas(count: int, generator: torch.Generator) -> Tensor:
    """Noise levels (count,) that rollouts lead to."""
    low, high = ROLLOUT_SIGMAS
    return low + (high - low) * torch.rand(count, generator=generator)


def roll_out(velocity: Callable[[Tensor, Tensor], Tensor], noise: Tensor, sigmas: Tensor, steps: int = 1) -> Tensor:
    """The latents (B, …) at `sigmas` where the model's own steps lead from noise.

    `velocity` is the model at (latents, noise levels); the `steps` Euler steps go in equal parts. Trained on noised
    answers alone, a model believes whatever it drew so far (exposure bias); from here it learns to correct it.
    """
    with torch.no_grad():
        x, levels = noise, torch.ones_like(sigmas)
        for number in range(1, steps + 1):
            following = 1 + (sigmas - 1) * number / steps
            x = x + _spread(following - levels, x) * velocity(x, levels).float()
            levels = following
    return x


def estimate(x: Tensor, velocity: Tensor, sigmas: Tensor) -> Tensor:
    """What x₀ a velocity at x_σ leads to: x_σ − σ·v. Shapes: (B, …), (B, …), (B,) -> (B, …)."""
    return x - _spread(sigmas, x) * velocity.float()


def rollout_loss(estimated: Tensor, clean: Tensor) -> Tensor:
    """How far from x₀ its estimate is: four times the mean square, so that a rollout to the middle weighs as a noised
    answer; a scalar.
    """
    return 4 * (estimated - clean).square().mean()


def _spread(values: Tensor, over: Tensor) -> Tensor:
    """(B,) as (B, 1, …), to multiply the rows of `over`."""
    return values.view(-1, *[1] * (over.dim() - 1))
