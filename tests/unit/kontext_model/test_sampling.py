"""The sigma grid and the samplers."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux_kontext import calculate_shift
from PIL import Image
from torch import Tensor

from kontext_model import Edit, KontextEditor
from kontext_model.canvas import Canvas
from kontext_model.sampling import SAMPLERS, Stopped, make_schedule

SPREAD = 0.4
"""The standard deviation of the pictures of the toy world."""


@pytest.mark.parametrize("tokens", [16, 256, 1024, 4096, 8192])
@pytest.mark.parametrize("steps", [1, 2, 8, 28])
def test_the_grid_is_bit_equal_to_diffusers(editor: KontextEditor, tokens: int, steps: int) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(editor.checkpoint.scheduler.config)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=calculate_shift(tokens))
    found = make_schedule(editor.checkpoint.scheduler.config, steps, tokens)
    assert torch.equal(found.sigmas, scheduler.sigmas) and torch.equal(found.timesteps, scheduler.timesteps)
    assert len(found.sigmas) == steps + 1 and found.sigmas[0] == 1 and found.sigmas[-1] == 0


def test_the_grid_follows_the_checkpoints_scheduler(editor: KontextEditor) -> None:
    config = dict(editor.checkpoint.scheduler.config)
    shifted = make_schedule(config | {"max_shift": 3.0}, 4, 4096)
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(config)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 0.25, 4), mu=calculate_shift(4096, max_shift=3.0))
    assert torch.equal(shifted.sigmas, scheduler.sigmas)
    assert not torch.equal(shifted.sigmas, make_schedule(config, 4, 4096).sigmas)


PLACED = [1.0, 0.9, 0.6, 0.15]
"""Sigmas that no number of steps would give."""


def test_placed_sigmas_are_those_of_diffusers(editor: KontextEditor) -> None:
    config = editor.checkpoint.scheduler.config
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(config)
    scheduler.set_timesteps(sigmas=PLACED, mu=calculate_shift(1024))
    found = make_schedule(config, 4, 1024, sigmas=PLACED)
    assert torch.equal(found.sigmas, scheduler.sigmas) and torch.equal(found.timesteps, scheduler.timesteps)
    assert not torch.equal(found.sigmas, make_schedule(config, 4, 1024).sigmas)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_an_edit_with_placed_sigmas_is_the_same_alone_and_among_others(
    editor: KontextEditor, draw_photo: Callable[..., Image.Image], sampler: str
) -> None:
    photos = [draw_photo(64, 64, number) for number in range(3)]
    plain = Edit("a flat lay", seed=3, steps=4, sampler=sampler)
    placed = replace(plain, steps=None, sigmas=tuple(PLACED))
    even = replace(plain, sigmas=(1.0, 0.75, 0.5, 0.25))
    together = [np.asarray(each, dtype=int) for each in editor(photos, [plain, placed, even])]
    pairs = zip(photos, (plain, placed, even), strict=True)
    alone = [np.asarray(editor([photo], [edit])[0], dtype=int) for photo, edit in pairs]
    assert all(np.abs(one - other).max() <= 1 for one, other in zip(together, alone, strict=True))
    assert np.array_equal(alone[2], np.asarray(editor([photos[2]], [plain])[0])), "evenly placed is not placed at all"
    assert not np.array_equal(alone[1], np.asarray(editor([photos[1]], [plain])[0]))


def test_placed_sigmas_equal_the_pipelines(
    editor: KontextEditor, pipeline: Any, draw_photo: Callable[..., Image.Image]
) -> None:
    photo, canvas = draw_photo(64, 64), Canvas(64, 64)
    condition, text = editor.encode_images([photo], canvas), editor.encode_text(["a flat lay"])
    found = editor.sample(condition, text, canvas, [5], len(PLACED), 2.5, sigmas=PLACED)
    expected = pipeline(
        image=photo, prompt="a flat lay", width=64, height=64, max_area=64 * 64, _auto_resize=False, sigmas=PLACED,
        guidance_scale=2.5, generator=torch.Generator().manual_seed(5), max_sequence_length=16, output_type="latent",
    ).images  # fmt: skip
    assert (found - expected).abs().max() <= 1e-5


@pytest.mark.parametrize(
    ("sigmas", "said"),
    [
        ((1.0, 0.5, 0.5), "must fall"),
        ((0.2, 0.9), "must fall"),
        ((1.5, 0.5), "from at most 1"),
        ((1.0, 0.0), "stay above 0"),
        ((1.0, math.nan), "must fall"),
        ((), "must fall"),
    ],
)
def test_sigmas_that_make_no_grid_are_refused(editor: KontextEditor, sigmas: tuple[float, ...], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Edit("a", sigmas=sigmas)
    with pytest.raises(ValueError, match=said if sigmas else "0 sigmas do not make 1 steps"):
        make_schedule(editor.checkpoint.scheduler.config, max(1, len(sigmas)), 1024, sigmas=sigmas)


def test_as_many_sigmas_as_steps() -> None:
    with pytest.raises(ValueError, match="2 sigmas do not make 5 steps"):
        Edit("a", steps=5, sigmas=(1.0, 0.5))
    assert Edit("a", steps=2, sigmas=(1.0, 0.5)).sigmas == (1.0, 0.5)


def test_euler_is_bit_equal_to_the_scheduler(editor: KontextEditor) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(editor.checkpoint.scheduler.config)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 0.2, 5), mu=0.7)
    for dtype in (torch.float32, torch.bfloat16):
        expected = start = torch.randn(2, 6, 64).to(dtype)
        scheduler.set_begin_index(0)
        scheduler._step_index = None
        for timestep in scheduler.timesteps:
            expected = scheduler.step(torch.sin(expected * 3), timestep, expected, return_dict=False)[0]
        found = SAMPLERS["euler"](lambda x, _: torch.sin(x * 3), start, scheduler.sigmas, lambda *_: None)
        assert torch.equal(found, expected) and found.dtype == dtype


def _measure_error(sampler: str, steps: int, config: Any) -> float:
    """How far a sampler lands from the exact solution where pictures are normal with standard deviation SPREAD.

    There x at sigma is normal with variance V = (1 - sigma)^2 SPREAD^2 + sigma^2, the velocity is x V' / (2 V), and the
    solution is x0 = x1 * SPREAD.
    """
    schedule = make_schedule(config, steps, 1024)

    def velocity(x: Tensor, index: int) -> Tensor:
        sigma = float(schedule.sigmas[index])
        variance = (1 - sigma) ** 2 * SPREAD**2 + sigma**2
        return x * (sigma - (1 - sigma) * SPREAD**2) / variance

    start = torch.linspace(-2, 2, 9)
    return float((SAMPLERS[sampler](velocity, start, schedule.sigmas, lambda *_: None) - start * SPREAD).abs().max())


# DPM++ 2M loses a logarithm at both ends of the grid, so it shows its order later.
@pytest.mark.parametrize(("sampler", "steps", "order"), [("euler", 20, 0.9), ("heun", 20, 1.9), ("dpmpp_2m", 320, 1.6)])
def test_samplers_converge_at_their_order(editor: KontextEditor, sampler: str, steps: int, order: float) -> None:
    config = editor.checkpoint.scheduler.config
    coarse, fine = _measure_error(sampler, steps, config), _measure_error(sampler, 2 * steps, config)
    assert math.log2(coarse / fine) > order
    assert coarse < 0.1


def test_second_order_beats_euler_at_equal_model_calls(editor: KontextEditor) -> None:
    config = editor.checkpoint.scheduler.config
    euler = _measure_error("euler", 31, config)
    assert _measure_error("dpmpp_2m", 31, config) < euler / 2
    assert _measure_error("heun", 16, config) < euler * 0.6


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # inside diffusers
def test_dpmpp_2m_equals_diffusers_where_it_is_given_the_same_grid(editor: KontextEditor) -> None:
    """Its own scheduler takes no shifted grid, so the grid is put into it."""
    schedule = make_schedule(editor.checkpoint.scheduler.config, 6, 1024)
    scheduler = DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    scheduler.set_timesteps(6)
    scheduler.sigmas, scheduler.timesteps = schedule.sigmas, schedule.timesteps
    expected = start = torch.randn(2, 6, 64, generator=torch.Generator().manual_seed(0))
    for timestep in scheduler.timesteps:
        expected = scheduler.step(torch.sin(expected * 3), timestep, expected, return_dict=False)[0]
    found = SAMPLERS["dpmpp_2m"](lambda x, _: torch.sin(x * 3), start, schedule.sigmas, lambda *_: None)
    assert torch.allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize(("sampler", "calls"), [("euler", 6), ("heun", 11), ("dpmpp_2m", 6)])
def test_model_calls_and_reported_steps(sampler: str, calls: int) -> None:
    asked: list[int] = []
    reported: list[int] = []

    def velocity(x: Tensor, index: int) -> Tensor:
        asked.append(index)
        return -x

    sigmas = torch.linspace(1, 0, 7)
    SAMPLERS[sampler](velocity, torch.ones(1, 4, 64), sigmas, lambda step, _: reported.append(step))
    assert len(asked) == calls and set(asked) == set(range(6))
    assert reported == list(range(6))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_one_step_is_the_straight_line(sampler: str) -> None:
    start = torch.randn(1, 4, 64)
    found = SAMPLERS[sampler](lambda x, _: 0.25 * x, start, torch.tensor([1.0, 0.0]), lambda *_: None)
    assert torch.allclose(found, 0.75 * start)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_callback_sees_each_step_and_may_stop(editor: KontextEditor, sampler: str) -> None:
    canvas = Canvas(32, 32)
    condition, text = torch.zeros(1, 4, 64), editor.encode_text(["a"])
    seen: list[Tensor] = []

    def watch(step: int, latents: Tensor) -> bool | None:
        assert step == len(seen)
        seen.append(latents)
        return None

    final = editor.sample(condition, text, canvas, [0], 4, 2.5, sampler=sampler, on_step=watch)
    assert len(seen) == 4 and torch.equal(seen[-1], final)
    seen.clear()
    with pytest.raises(Stopped, match="stopped after step 2"):
        editor.sample(
            condition, text, canvas, [0], 4, 2.5, sampler=sampler, on_step=lambda *step: watch(*step) or len(seen) < 2
        )
    assert len(seen) == 2
