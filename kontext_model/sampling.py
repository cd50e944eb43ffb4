"""From noise to latents: the sigma grid, the samplers, guidance and the denoising loop.

Owns the order of the steps. All samplers walk the same shifted grid that diffusers' FlowMatchEulerDiscreteScheduler
makes of the checkpoint's scheduler config. Refuses pixels, prompts and the VAE.

The model predicts the flow's velocity v = ε − x₀ at x = (1 − σ)·x₀ + σ·ε, so that x₀ = x − σ·v.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from kontext_model import latents
from kontext_model.acceleration import cache_context, is_caching
from kontext_model.canvas import Canvas
from kontext_model.text import TextEmbeds

OnStep = Callable[[int, Tensor], bool | None]
"""Called after each step with its number from 0 and the latents (B, S, 64); False stops the sampling."""

OnEstimate = Callable[[int, Tensor], None]
"""Called after each step with its number from 0 and where the walk seems to end: x₀ = x − σ·v, float32 (B, S, 64)."""

Velocity = Callable[[Tensor, int], Tensor]
"""The velocity at (latents, index in the sigma grid)."""

CPU_ROWS = 2
"""Pictures in one forward pass on a CPU."""


class Stopped(Exception):
    """The callback of a step returned False."""


@dataclass(frozen=True)
class Schedule:
    """N + 1 falling sigmas, the last 0, and the N timesteps of the others; float32 on the model's device."""

    sigmas: Tensor
    timesteps: Tensor


def make_schedule(
    config: Mapping[str, Any],
    steps: int,
    tokens: int,
    device: torch.device | str = "cpu",
    sigmas: Sequence[float] | None = None,
) -> Schedule:
    """The grid of `steps` steps for pictures of `tokens` tokens, shifted towards noise the larger they are.

    `sigmas` places the steps otherwise; they are shifted too. Raises ValueError as `check_sigmas`.
    Source: FluxKontextPipeline: linspace(1, 1/N, N), then the resolution-dependent shift mu.
    """
    if sigmas is not None:
        check_sigmas(sigmas, steps)
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(dict(config))
    spaced = np.linspace(1.0, 1 / steps, steps) if sigmas is None else np.asarray(sigmas, dtype=np.float64)
    scheduler.set_timesteps(sigmas=spaced, mu=_calculate_shift(config, tokens), device=device)
    return Schedule(scheduler.sigmas, scheduler.timesteps)


def check_sigmas(sigmas: Sequence[float], steps: int) -> None:
    """Raise ValueError unless there is one sigma a step and they fall from at most 1 and stay above 0."""
    if len(sigmas) != steps:
        raise ValueError(f"{len(sigmas)} sigmas do not make {steps} steps: give one for each, without the last 0")
    if not sigmas or not all(high > low for high, low in pairwise((*sigmas, 0.0))) or not sigmas[0] <= 1:
        raise ValueError(f"sigmas must fall from at most 1 and stay above 0, not {list(sigmas)}")


def _calculate_shift(config: Mapping[str, Any], tokens: int) -> float:
    """mu, linear in the noise tokens: by default 256 -> 0.5 and 4096 -> 1.15; in diffusers' order of operations."""
    low, high = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    low_shift, high_shift = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    slope = (high_shift - low_shift) / (high - low)
    return float(tokens * slope + (low_shift - slope * low))


def sample_euler(velocity: Velocity, x: Tensor, sigmas: Tensor, on_step: OnStep) -> Tensor:
    """First order, one model call a step; bit-equal to FlowMatchEulerDiscreteScheduler.step."""
    for i in range(len(sigmas) - 1):
        v = velocity(x, i)
        x = (x.float() + (sigmas[i + 1] - sigmas[i]) * v).to(v.dtype)
        on_step(i, x)
    return x


def sample_heun(velocity: Velocity, x: Tensor, sigmas: Tensor, on_step: OnStep) -> Tensor:
    """Second order: the mean of the velocities at both ends of a step; 2N − 1 model calls, the last step is Euler's."""
    last = len(sigmas) - 2
    for i in range(last + 1):
        v = velocity(x, i)
        dt = sigmas[i + 1] - sigmas[i]
        ahead = (x.float() + dt * v).to(v.dtype)
        x = ahead if i == last else (x.float() + dt * (v.float() + velocity(ahead, i + 1).float()) / 2).to(v.dtype)
        on_step(i, x)
    return x


def sample_dpmpp_2m(velocity: Velocity, x: Tensor, sigmas: Tensor, on_step: OnStep) -> Tensor:
    """DPM-Solver++(2M): second order from the last two steps' x₀, one model call a step.

    With α = 1 − σ and λ = log(α/σ): x ← (σ'/σ)·x + (α' − α·σ'/σ)·D, where D extrapolates x₀ in λ. The first step
    (from λ = −∞) and the last (to λ = +∞) have no finite length in λ: there D = x₀, which is Euler's step.
    Source: Lu et al., "DPM-Solver++", 2022, algorithm 2.
    """
    # In float64 on the CPU: a few numbers, whose differences are small.
    grid = sigmas.double().cpu()
    lambdas = torch.log((1 - grid) / grid).tolist()
    sigma = grid.tolist()
    last = len(sigma) - 2
    previous = x
    for i in range(last + 1):
        v = velocity(x, i)
        x0 = target = x.float() - sigma[i] * v.float()
        if 0 < i < last:
            ratio = (lambdas[i] - lambdas[i - 1]) / (lambdas[i + 1] - lambdas[i])  # infinite at i = 1: D = x₀
            target = x0 + (x0 - previous) / (2 * ratio)
        shrink = sigma[i + 1] / sigma[i]
        x = (shrink * x.float() + (1 - sigma[i + 1] - (1 - sigma[i]) * shrink) * target).to(v.dtype)
        previous = x0
        on_step(i, x)
    return x


def count_calls(sampler: str, steps: int) -> int:
    """How often a sampler asks for the velocity in a walk of so many steps."""
    return 2 * steps - 1 if sampler == "heun" else steps


Sampler = Callable[[Velocity, Tensor, Tensor, OnStep], Tensor]
SAMPLERS: Mapping[str, Sampler] = MappingProxyType(
    {"euler": sample_euler, "heun": sample_heun, "dpmpp_2m": sample_dpmpp_2m}
)


def denoise(
    transformer: Any,
    scheduler_config: Mapping[str, Any],
    noise: Tensor,
    condition: Tensor,
    text: TextEmbeds,
    canvas: Canvas,
    steps: int,
    guidance: Sequence[float],
    true_cfg: Sequence[float] | None = None,
    negative: TextEmbeds | None = None,
    sampler: str = "euler",
    on_step: OnStep | None = None,
    sigmas: Sequence[float] | None = None,
    on_estimate: OnEstimate | None = None,
) -> Tensor:
    """Walk the noise (B, S, 64) to latents (B, S, 64), looking at the condition (B, S, 64) at every step.

    `sigmas` as in `make_schedule`. `text` and `negative` have B rows or one. `guidance` has B values and is ignored by
    a transformer without guidance embeddings. With `negative` and `true_cfg` (B values), each step combines two
    predictions: v = v_neg + true_cfg · (v − v_neg). Raises Stopped when `on_step` returns False.
    """
    batch, tokens = noise.shape[0], noise.shape[1]
    device, dtype = noise.device, noise.dtype
    schedule = make_schedule(scheduler_config, steps, tokens, device, sigmas)
    ids = torch.cat((latents.position_ids(canvas, latents.GENERATED), latents.position_ids(canvas, latents.CONDITION)))
    ids = ids.to(device)
    text_ids = torch.zeros(text.sequence.shape[1], 3, device=device)
    # A CPU's caches hold the activations of few pictures: forwards of more rows are slower per picture. And what a
    # step cache skips, it skips for all rows of a forward: there each picture goes alone, to be the same in any batch.
    together = 1 if is_caching(transformer) else CPU_ROWS if device.type == "cpu" else batch
    slices = [slice(start, start + together) for start in range(0, batch, together)]
    scales = torch.tensor(guidance, device=device) if transformer.config.guidance_embeds else None

    def predict(x: Tensor, index: int, embeds: TextEmbeds) -> Tensor:
        # To the model's dtype before the division, as the pipeline does: in bf16 the order decides the last bits.
        timestep = schedule.timesteps[index].to(dtype) / 1000
        branch = "cond" if embeds is text else "uncond"
        predictions = []
        for rows in slices:
            with cache_context(transformer, f"{branch} {rows.start}"):
                prediction = transformer(
                    hidden_states=torch.cat((x[rows], condition[rows]), dim=1),
                    timestep=timestep.expand(len(x[rows])),
                    guidance=None if scales is None else scales[rows],
                    pooled_projections=embeds.pooled[rows],
                    encoder_hidden_states=embeds.sequence[rows],
                    txt_ids=text_ids,
                    img_ids=ids,
                    return_dict=False,
                )[0]
            predictions.append(prediction[:, :tokens])
        return torch.cat(predictions)

    text = text.expand(batch)
    velocity: Velocity = lambda x, index: predict(x, index, text)  # noqa: E731
    if negative is not None and true_cfg is not None:
        velocity = _guide(predict, text, negative.expand(batch), torch.tensor(true_cfg, device=device))
    report = _stop_on_false(on_step)
    if on_estimate is not None:
        velocity, report = _estimate(velocity, schedule.sigmas, report, on_estimate)
    return SAMPLERS[sampler](velocity, noise, schedule.sigmas, report)


def _guide(
    predict: Callable[[Tensor, int, TextEmbeds], Tensor], text: TextEmbeds, negative: TextEmbeds, scales: Tensor
) -> Velocity:
    def velocity(x: Tensor, index: int) -> Tensor:
        v, v_neg = predict(x, index, text), predict(x, index, negative)
        # The scales stay float32, as the pipeline's Python number does: bfloat16 has no 3.3.
        return v_neg + (scales.view(-1, 1, 1) * (v - v_neg)).to(v.dtype)

    return velocity


def _estimate(velocity: Velocity, sigmas: Tensor, on_step: OnStep, on_estimate: OnEstimate) -> tuple[Velocity, OnStep]:
    """The same, but with each step an estimate from its latest model call is told."""
    x0 = torch.empty(0)

    def watch(x: Tensor, index: int) -> Tensor:
        nonlocal x0
        v = velocity(x, index)
        x0 = x.float() - sigmas[index] * v.float()
        return v

    def report(step: int, x: Tensor) -> None:
        on_step(step, x)
        on_estimate(step, x0)

    return watch, report


def _stop_on_false(on_step: OnStep | None) -> OnStep:
    def report(step: int, x: Tensor) -> None:
        if on_step is not None and on_step(step, x) is False:
            raise Stopped(f"stopped after step {step + 1}")

    return report
