"""Five samplers on a problem whose exact answer is known: error against model calls, as numbers and as one picture.

Owns the toy world, the measure and the drawing. The world's pictures are points of the plane, each coordinate a mixture
of normals, so that the perfect network and the end of every walk can be written down; what is left is the sampler's own
error. Refuses to say anything of trained networks: their errors come on top.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from kontext_model import noise_samplers
from kontext_model.sampling import SAMPLERS, make_schedule

Draw = Callable[[Tensor], Tensor]
NAMES: Mapping[str, str] = MappingProxyType(
    {"ddpm": "DDPM", "ddim": "DDIM", "euler": "flow Euler", "heun": "flow Heun", "dpmpp_2m": "flow DPM++ 2M"}
)
FLOW_CONFIG: Mapping[str, Any] = MappingProxyType({"use_dynamic_shifting": True})
FLOW_TOKENS = 4096
"""The flow's samplers walk the grid of a picture of 1024²."""
COLOURS: Mapping[str, str] = MappingProxyType(
    {"ddpm": "#b8860b", "ddim": "#d1495b", "euler": "#7fb2d9", "heun": "#2a7bb8", "dpmpp_2m": "#0b3c6f"}
)
"""Warm for networks that predict noise, blue for those that predict a flow; told apart without colour sight too."""
_RAISED_POINTS: Mapping[str, int] = MappingProxyType({"ddim": 7, "euler": -7, "dpmpp_2m": 7, "heun": -7})
"""So that the names at the ends of two curves do not overlap."""
_LINES: Mapping[str, Mapping[str, Any]] = MappingProxyType({"ddim": {"lw": 4}, "euler": {"lw": 2, "ls": (0, (3, 1.5))}})
"""These two lie upon each other."""
_HEADING: Mapping[str, Any] = MappingProxyType({"fontsize": 12, "fontweight": "bold"})
BUDGETS = (1, 2, 4, 6, 8, 10, 14, 20, 28, 40, 64, 100, 160, 250, 500, 1000)
"""Model calls that a sampler may use."""
SHOWN_BUDGET = 10
POINTS: Mapping[str, int] = MappingProxyType({"ddpm": 2048} | dict.fromkeys(("ddim", *SAMPLERS), 512))
"""Evenly spread over the noise, so few tell a sampler's error; DDPM's needs more."""


@dataclass(frozen=True)
class World:
    """Points (n, 2) whose coordinates are independent mixtures of three normals of one spread; float64 (2, 3) each."""

    weights: Tensor
    means: Tensor
    spread: float

    def rank(self, points: Tensor) -> Tensor:
        """The share of the world below each coordinate of points (n, 2)."""
        below = torch.special.ndtr((points.unsqueeze(-1) - self.means) / self.spread)
        return (below * self.weights).sum(-1)

    def find_end(self, noise: Tensor) -> Tensor:
        """Where the probability-flow ODE takes noise (n, 2), exactly.

        On a line the flow keeps the order of points, so that it takes each quantile of the noise to the world's own.
        Found by bisection.
        """
        wanted = torch.special.ndtr(noise.double())
        high = torch.full_like(wanted, float(self.means.abs().max()) + 10 * self.spread)
        low = -high
        for _ in range(60):
            middle = (low + high) / 2
            too_low = self.rank(middle) < wanted
            low, high = torch.where(too_low, middle, low), torch.where(too_low, high, middle)
        return (low + high) / 2

    def predict_picture(self, x: Tensor, alpha: float, beta: float) -> Tensor:
        """The mean of all x₀ that may stand behind x = α·x₀ + β·n (n, 2): what a perfect network knows."""
        variance = (alpha * self.spread) ** 2 + beta**2
        away = x.unsqueeze(-1) - alpha * self.means.to(x.dtype)
        share = torch.softmax(self.weights.to(x.dtype).log() - away.square() / (2 * variance), dim=-1)
        return (share * (self.means.to(x.dtype) + alpha * self.spread**2 / variance * away)).sum(-1)

    def predict_noise(self, x: Tensor, alpha: float, beta: float) -> Tensor:
        """n, as a network of Stable Diffusion predicts it."""
        return (x - alpha * self.predict_picture(x, alpha, beta)) / beta

    def predict_velocity(self, x: Tensor, sigma: float) -> Tensor:
        """ε − x₀, as a flow-matching network predicts it."""
        return (x - self.predict_picture(x, 1 - sigma, sigma)) / sigma


@dataclass(frozen=True)
class Measure:
    """One sampler at one number of model calls.

    `error`: how far its points must be moved to become the exact distribution, in the mean and by coordinate
    (Wasserstein-1); the world's standard deviation is about 1. Where no noise is drawn it is also the mean distance
    from the exact end of each path.
    """

    sampler: str
    calls: int
    error: float


def make_world() -> World:
    """Nine unequal blobs."""
    weights = torch.tensor([[0.5, 0.3, 0.2], [0.35, 0.4, 0.25]], dtype=torch.float64)
    means = torch.tensor([[-1.1, 0.4, 1.6], [-1.2, 0.1, 1.3]], dtype=torch.float64)
    return World(weights, means, spread=0.25)


def run(world: World, sampler: str, noise: Tensor, budget: int, draw: Draw) -> tuple[Tensor, int]:
    """Walk noise (n, 2) to its end; gives the points and the model calls used, at most `budget`.

    `draw` gives the noise that DDPM adds on its way.
    """
    if sampler == "ddim":
        return noise_samplers.sample_ddim(world.predict_noise, noise, budget), budget
    if sampler == "ddpm":
        return noise_samplers.sample_ddpm(world.predict_noise, noise, budget, draw), budget
    steps = (budget + 1) // 2 if sampler == "heun" else budget
    sigmas = make_schedule(FLOW_CONFIG, steps, FLOW_TOKENS).sigmas
    calls = 0

    def velocity(x: Tensor, index: int) -> Tensor:
        nonlocal calls
        calls += 1
        return world.predict_velocity(x, float(sigmas[index]))

    return SAMPLERS[sampler](velocity, noise, sigmas, lambda *_: None), calls


def measure(world: World, budgets: Sequence[int] = BUDGETS) -> list[Measure]:
    """Every sampler at every budget, sampler by sampler with rising calls; in some ten seconds."""
    found: dict[tuple[str, int], Measure] = {}
    for sampler, points in POINTS.items():
        noise = _spread_evenly(points)
        exact = world.find_end(noise)
        for budget in budgets:
            ends, calls = run(world, sampler, noise.float(), budget, _make_even_draw(budget))
            error = (ends.double().sort(dim=0).values - exact).abs().mean()
            found[sampler, calls] = Measure(sampler, calls, float(error))
    return list(found.values())


def draw_study(out: Path, budgets: Sequence[int] = BUDGETS) -> list[Measure]:
    """Measure all five samplers and draw them as one PNG. Raises ModuleNotFoundError without the extra `plots`."""
    # Only a Figure: pyplot would look for a window system and keep state.
    from matplotlib.figure import Figure

    world = make_world()
    measures = measure(world, budgets)
    figure = Figure(figsize=(10, 8.2), dpi=150, facecolor="white")
    _draw_curves(figure.add_axes((0.07, 0.355, 0.915, 0.555)), measures)
    _draw_clouds(figure, world)
    figure.savefig(out, format="png")
    return measures


def describe(measures: Iterable[Measure]) -> list[str]:
    """Each sampler's errors at a few numbers of calls, a line each."""
    lines = ["error (in standard deviations) at so many model calls"]
    for sampler, group in groupby(measures, key=lambda each: each.sampler):
        by_calls = {each.calls: each.error for each in group}
        told = [max(calls for calls in by_calls if calls <= budget) for budget in (8, 28, 100, 1000)]
        lines.append(f"{NAMES[sampler]:<13}" + "".join(f"{calls:>8}: {by_calls[calls]:.5f}" for calls in told))
    return lines


def _spread_evenly(count: int) -> Tensor:
    """Standard normal quantiles in rising order, the same in both coordinates: float64 (count, 2)."""
    ranks = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    return torch.special.ndtri(ranks).unsqueeze(-1).expand(-1, 2)


def _make_even_draw(seed: int) -> Draw:
    """Normal noise for DDPM without much chance: neighbours get draws spread evenly, by the golden ratio.

    So a few thousand points carry the chain's own distribution, which millions of random draws would show.
    Source: L'Ecuyer, Lécot and Tuffin, "A randomized quasi-Monte Carlo simulation method for Markov chains", 2008.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(x: Tensor) -> Tensor:
        rank = x.argsort(dim=0).argsort(dim=0).double()
        shift = torch.rand(1, 2, generator=generator, dtype=torch.float64)
        even = ((rank + 0.5) * (5**0.5 - 1) / 2 + shift) % 1
        return torch.special.ndtri(even.clamp(1e-7, 1 - 1e-7)).to(x.dtype)

    return draw


def _draw_curves(axes: Any, measures: Iterable[Measure]) -> None:
    for sampler, group in groupby(measures, key=lambda each: each.sampler):
        calls, errors = zip(*((each.calls, each.error) for each in group), strict=True)
        axes.plot(calls, errors, color=COLOURS[sampler], marker="o", markersize=4, **_LINES.get(sampler, {"lw": 2}))
        axes.annotate(
            NAMES[sampler],
            (calls[-1], errors[-1]),
            xytext=(9, _RAISED_POINTS.get(sampler, 0)),
            textcoords="offset points",
            color=COLOURS[sampler],
            va="center",
            fontweight="bold",
        )
    ticks, levels = (1, 2, 4, 8, 28, 100, 250, 1000), ("1", "0.1", "0.01", "0.001", "0.0001")
    axes.set(xscale="log", yscale="log", xlim=(0.9, 3800), ylim=(2.5e-5, 1.5))
    axes.set_xticks(ticks, labels=[str(each) for each in ticks])
    axes.set_yticks([float(each) for each in levels], labels=levels)
    axes.minorticks_off()
    axes.grid(color="#e8e8e8")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("model calls (28 is the default of FLUX.1 Kontext)")
    axes.text(0, 1.065, "Error against model calls, with a perfect network", transform=axes.transAxes, **_HEADING)
    axes.text(
        0,
        1.02,
        "Distance from the exact answer, in standard deviations. DDIM and flow Euler are one rule on two grids.",
        transform=axes.transAxes,
        color="#555555",
    )


def _draw_clouds(figure: Any, world: World) -> None:
    """What a small number of calls makes of the same noise."""
    noise = torch.randn(1200, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    draw = _make_even_draw(0)
    clouds = [("exact answer", "#333333", world.find_end(noise))]
    for sampler, name in NAMES.items():
        ends, calls = run(world, sampler, noise, SHOWN_BUDGET, draw)
        clouds.append((name if calls == SHOWN_BUDGET else f"{name} ({calls})", COLOURS[sampler], ends))
    figure.text(0.02, 0.245, f"What {SHOWN_BUDGET} model calls make of the same noise", **_HEADING)
    for column, (name, colour, points) in enumerate(clouds):
        axes = figure.add_axes((0.02 + column * 0.162, 0.02, 0.15, 0.15 * 10 / 8.2))
        axes.scatter(*points.T.tolist(), s=1.5, color=colour, linewidths=0)
        axes.set(xlim=(-2.4, 2.4), ylim=(-2.4, 2.4), xticks=(), yticks=())
        axes.set_title(name, color=colour, fontsize=10)
        axes.spines[:].set_color("#dddddd")
