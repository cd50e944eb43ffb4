"""The flow-matching objective.

Owns the noising path, the target's sign, σ densities and loss weights. Pure functions; randomness comes from a
generator.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import pi
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


@dataclass(frozen=True)
class ObjectiveConfig:
    """Which noise levels are trained and how they weigh.

    `density`: `uniform`, `logit_normal` (sigmoid of a normal at `location` with `scale`) or `mode` (`scale` moves mass
    to the middle). `weight`: `none`, `sigma_sqrt` or `cosmap`. As in Esser et al., "Scaling Rectified Flow
    Transformers", 2024, and diffusers' training scripts.
    """

    density: str = "logit_normal"
    location: float = 0.0
    scale: float = 1.0
    weight: str = "none"

    def __post_init__(self) -> None:
        for name, value, table in (("density", self.density, DENSITIES), ("weight", self.weight, WEIGHTS)):
            if value not in table:
                raise ValueError(f"{name} must be one of {', '.join(table)}, not {value!r}")


def draw_sigmas(config: ObjectiveConfig, count: int, generator: torch.Generator) -> Tensor:
    """Noise levels (count,) in [0, 1], stratified over the batch so that every batch sees low and high noise."""
    u = (torch.randperm(count, generator=generator) + torch.rand(count, generator=generator)) / count
    return DENSITIES[config.density](u, config.location, config.scale).clamp(0.0, 1.0)


def noised(clean: Tensor, noise: Tensor, sigmas: Tensor) -> Tensor:
    """x_σ = (1 − σ)·x₀ + σ·ε. Shapes: (B, …), (B, …), (B,) -> (B, …)."""
    share = sigmas.view(-1, *[1] * (clean.dim() - 1))
    return (1 - share) * clean + share * noise


def flow_target(clean: Tensor, noise: Tensor) -> Tensor:
    """The velocity ε − x₀: along falling σ, an Euler step with it moves noise to the image."""
    return noise - clean


def flow_loss(prediction: Tensor, clean: Tensor, noise: Tensor, sigmas: Tensor, weight: str = "none") -> Tensor:
    """The weighted mean squared error to the flow target; a scalar."""
    error = (prediction.float() - flow_target(clean, noise).float()).square().flatten(1).mean(dim=1)
    return (WEIGHTS[weight](sigmas) * error).mean()
