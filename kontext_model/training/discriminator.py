"""Tells drawn pictures from real ones, patch by patch, so that a decoder learns to decide between two outlines.

Owns the network and its hinge losses. A reconstruction loss alone is least where every outline that may be lies over
the others, a halo; no real picture looks like that. A PatchGAN (Isola et al., 2017) as the VAEs of latent diffusion
were trained with (Rombach et al., 2022), with spectral normalisation (Miyato et al., 2018).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

WIDTHS, SLOPE = (32, 64, 128), 0.2


@dataclass(frozen=True)
class Adversary:
    """How much the discriminator's opinion weighs in the decoder's loss, and how fast the discriminator learns.

    It has `alone` steps to learn before it has a say, which then grows over `ramp` steps.
    """

    weight: float
    rate: float = 4e-4
    alone: int = 60
    ramp: int = 100
    seed: int = 1

    def weight_at(self, step: int) -> float:
        """The weight in the decoder's loss at a step, from 0."""
        return self.weight * min(1.0, max(0.0, (step - self.alone) / self.ramp))


class _UnitNorm(nn.Module):  # type: ignore[misc]
    """Divides a weight by its largest singular value, exactly: nothing is kept from step to step."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight / torch.linalg.matrix_norm(weight.flatten(1), ord=2)


def make_discriminator(seed: int) -> nn.Sequential:
    """Pixels (B, 3, H, W), in -1..1, to the opinions (B, 1, H/8, W/8) of their patches, high for real ones."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for narrow, wide in zip((3, *WIDTHS[:-1]), WIDTHS, strict=True):
            layers += [nn.Conv2d(narrow, wide, 4, stride=2, padding=1), nn.LeakyReLU(SLOPE)]
        layers += [nn.Conv2d(WIDTHS[-1], WIDTHS[-1], 3, padding=1), nn.LeakyReLU(SLOPE)]
        layers.append(nn.Conv2d(WIDTHS[-1], 1, 3, padding=1))
        for layer in layers:
            if isinstance(layer, nn.Conv2d):
                parametrize.register_parametrization(layer, "weight", _UnitNorm())
    return nn.Sequential(*layers)


def discriminator_loss(discriminator: nn.Module, real: Tensor, drawn: Tensor) -> Tensor:
    """The hinge loss that teaches the discriminator; `drawn` learns nothing of it. A scalar."""
    with parametrize.cached():
        real_opinion, drawn_opinion = discriminator(real), discriminator(drawn.detach())
    return functional.relu(1 - real_opinion).mean() + functional.relu(1 + drawn_opinion).mean()


def adversarial_loss(discriminator: nn.Module, drawn: Tensor) -> Tensor:
    """What the decoder pays for patches that look drawn; the discriminator learns nothing of it. A scalar."""
    with _frozen(discriminator):
        opinion: Tensor = discriminator(drawn)
    return -opinion.mean()


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    module.requires_grad_(False)
    try:
        yield
    finally:
        module.requires_grad_(True)
