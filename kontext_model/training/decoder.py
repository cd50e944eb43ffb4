"""Trains the decoder of the wardrobe's VAE; the encoder stays as it was fitted.

Owns what the decoder sees: crops first, many and different, then whole pictures, since its group normalisation divides
by the statistics of all that it is given, and what it is given at work is never a crop. Resumes to the same weights.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from kontext_model.training.autoencoder import LATENTS, AutoencoderConfig, make_autoencoder
from kontext_model.training.discriminator import (
    Adversary,
    adversarial_loss,
    discriminator_loss,
    make_discriminator,
)
from kontext_model.training.outline import shape_loss, tell_mask
from kontext_model.training.run_state import Average, check_finite, copy_weights, load_state, save_state, step_generator
from kontext_model.training.schedule import learning_rate
from kontext_model.wardrobe import draw

POOL = 64
"""Picture pairs kept to cut crops from; each step replaces one."""
SIZES_PX = ((256, 256), (224, 304), (256, 256), (208, 320), (256, 256), (304, 224))
PLAIN_PX, PLAIN_DELTA, PLAIN_SLACK = 5, 0.01, 0.008
"""A pixel is plain where a window of 5 pixels around it varies by less than a level or two (-1..1 has 255 of them)."""


@dataclass(frozen=True)
class DecoderConfig:
    """The decoder's run: `crop_steps` of `batch` crops, then `whole_steps` of one whole picture.

    `jitter` is the most noise that is put on the latents, which makes the decoder forgive small errors of the
    transformer.
    """

    vae: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    crop_steps: int = 6000
    crop_rate: float = 1.5e-3
    crop_px: int = 64
    batch: int = 8
    whole_steps: int = 2500
    whole_rate: float = 6e-4
    warmup: int = 40
    jitter: float = 0.35
    decay: float = 0.99
    seed: int = 1

    @property
    def steps(self) -> int:
        return self.crop_steps + self.whole_steps

    def rate(self, step: int) -> float:
        """A cosine for the crops, another for the whole pictures."""
        if step < self.crop_steps:
            return learning_rate("cosine", self.crop_rate, step, self.crop_steps, self.warmup)
        return learning_rate("cosine", self.whole_rate, step - self.crop_steps, self.whole_steps, self.warmup)


Lesson = tuple[Tensor, Tensor]
"""Latents (B, 16, H/8, W/8) and the pixels (B, 3, H, W), in -1..1, that shall come of them."""


@dataclass(frozen=True)
class Course:
    """How a decoder is taught: what each step sees from a step on, how much it changes, against whom, and what an error
    of a garment's mask weighs.
    """

    steps: int
    lessons: Callable[[int], Iterator[Lesson]]
    rate: Callable[[int], float]
    decay: float
    square: float = 2.0
    adversary: Adversary | None = None
    outline: float = 0.0


def train_decoder(
    folder: Path,
    config: DecoderConfig,
    device: str = "cpu",
    report: Callable[[str], None] = print,
    save_every_s: float = 60.0,
    until: int | None = None,
) -> Any:
    """Train to the end or to step `until`, from where the folder's state ends.

    Gives the VAE with the averaged decoder.
    """
    vae = make_autoencoder(config.vae).to(device)

    def lessons(start: int) -> Iterator[Lesson]:
        for step, pixels in enumerate(draw_batches(config, start), start=start):
            yield encode_jittered(vae, pixels.to(device), config.jitter, step_generator(config.seed, step)), pixels

    return teach(vae, Course(config.steps, lessons, config.rate, config.decay), folder, report, save_every_s, until)


def encode_jittered(vae: Any, pixels: Tensor, jitter: float, generator: torch.Generator) -> Tensor:
    """Latents of pixels, each picture's with noise of a level of its own, at most `jitter`; a CPU generator's."""
    with torch.no_grad():
        latents: Tensor = vae.encoder(pixels)[:, :LATENTS]
        level = torch.rand((len(latents), 1, 1, 1), generator=generator).square() * jitter
        return latents + (level * torch.randn(latents.shape, generator=generator)).to(latents.device)


def teach(
    vae: Any,
    course: Course,
    folder: Path,
    report: Callable[[str], None] = print,
    save_every_s: float = 60.0,
    until: int | None = None,
) -> Any:
    """Take a VAE's decoder through a course, or to its step `until`, from where the folder's state ends.

    Gives the VAE with the averaged decoder. Raises DivergedError.
    """
    vae.train()
    vae.encoder.requires_grad_(False)
    vae.decoder.requires_grad_(True)
    adversary = course.adversary
    judge = make_discriminator(adversary.seed).to(vae.device) if adversary else None
    taught = nn.ModuleDict({"vae": vae, "judge": judge}) if judge else vae
    optimizer = _make_optimizer(vae, judge, adversary)
    average = Average(vae, course.decay)
    start, stop = load_state(folder, taught, average, optimizer), min(until or course.steps, course.steps)
    lessons = course.lessons(start)
    saved_s, began_s, running = time.monotonic(), time.monotonic(), 0.0
    for step in range(start, stop):
        latents, pixels = (each.to(vae.device) for each in next(lessons))
        if step == start:
            began_s = time.monotonic()  # what is drawn before the first lesson is no step's time
        restored = vae.decoder(latents)
        loss = reconstruction_loss(restored, pixels, course.square)
        if course.outline:
            loss = loss + course.outline * shape_loss(tell_mask(restored, pixels), tell_mask(pixels, pixels) > 0)
        optimizer.zero_grad(set_to_none=True)
        if adversary and judge:
            discriminator_loss(judge, pixels, restored).backward()
            loss = loss + adversary.weight_at(step) * adversarial_loss(judge, restored)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(vae.decoder.parameters(), 1.0)
        check_finite(step, folder, "start again with a lower rate", loss=loss.item(), gradient=norm.item())
        optimizer.param_groups[0]["lr"] = course.rate(step)
        optimizer.step()
        average.update(vae, step)
        decibels = 10 * torch.log10(4 / functional.mse_loss(restored.detach(), pixels)).item()
        running = decibels if step == start else 0.97 * running + 0.03 * decibels
        if step % 20 == 19:
            pace_s = (time.monotonic() - began_s) / (step + 1 - start)
            report(
                f"decoder step {step + 1}/{course.steps}  loss {loss.item():.4f}  {running:.2f} dB"
                f"  {pace_s:.2f} s/step  {pace_s * (course.steps - step - 1) / 60:.1f} min left"
            )
        if time.monotonic() - saved_s > save_every_s or step + 1 == stop:
            save_state(folder, step + 1, taught, average, optimizer)
            saved_s = time.monotonic()
    copy_weights(vae, average.shadow)
    return vae.eval()


def _make_optimizer(vae: Any, judge: nn.Module | None, adversary: Adversary | None) -> torch.optim.AdamW:
    """The decoder's weights first, at the course's rate; a discriminator's beside them, at its own."""
    groups: list[dict[str, Any]] = [{"params": list(vae.decoder.parameters()), "weight_decay": 1e-4}]
    if adversary and judge:
        groups.append({"params": list(judge.parameters()), "lr": adversary.rate, "weight_decay": 0.0})
    # Against an opponent that changes, long memory misleads.
    return torch.optim.AdamW(groups, lr=1e-3, betas=(0.5 if adversary else 0.9, 0.98))


def reconstruction_loss(restored: Tensor, pixels: Tensor, square: float = 2.0) -> Tensor:
    """Absolute error and, `square` times, squared error, the gradients' absolute error, which keeps edges sharp, and
    once more the error where the picture is plain: on a plain ground the eye sees the faintest stain.
    Shapes: (B, 3, H, W) each, in -1..1.
    """
    error = restored - pixels
    edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    plain = find_plain(pixels)
    stains = (functional.relu(error.abs() - PLAIN_SLACK) * plain).sum() / (3 * plain.sum() + 1)
    return error.abs().mean() + square * error.square().mean() + 0.5 * edges + 1.5 * stains


def find_plain(pixels: Tensor) -> Tensor:
    """Where a picture is of one colour: (B, 3, H, W) -> (B, 1, H, W), 1 or 0."""
    highest, lowest = (functional.max_pool2d(sign * pixels, PLAIN_PX, 1, PLAIN_PX // 2) for sign in (1, -1))
    return ((highest + lowest).amax(dim=1, keepdim=True) < PLAIN_DELTA).float()


def draw_batches(config: DecoderConfig, start: int) -> Iterator[Tensor]:
    """Batches of (B, 3, H, W) in -1..1 from step `start` on. What a step sees depends on the step alone."""
    yield from cut_crops(config, start)
    for step in range(max(start, config.crop_steps), config.steps):
        photo, answer = _draw_pair(config.seed, step + POOL)
        yield _as_pixels([photo if step % 8 == 0 else answer])


def cut_crops(config: DecoderConfig, start: int) -> Iterator[Tensor]:
    """The crops' part: one in eight of a photo, the others of answers, which are what a decoder is asked for."""
    pool = (
        [_draw_pair(config.seed, number) for number in range(start, start + POOL)] if start < config.crop_steps else []
    )
    for step in range(start, config.crop_steps):
        rng = Random(f"{config.seed}/crops/{step}")
        yield _as_pixels(
            [_crop(rng, rng.choice(pool)[0 if number == 0 else 1], config.crop_px) for number in range(config.batch)]
        )
        pool = [*pool[1:], _draw_pair(config.seed, step + POOL)]


def _draw_pair(seed: int, number: int) -> tuple[Any, Any]:
    sample = draw(10_000_000 * seed + number, SIZES_PX[number % len(SIZES_PX)])
    return np.asarray(sample.photo), np.asarray(sample.target)


def _crop(rng: Random, picture: Any, side: int) -> Any:
    """A crop on the grid of 8×8 patches, seldom of the empty margin."""
    top, left = (8 * round((reach - side) * rng.uniform(0.08, 0.92) / 8) for reach in picture.shape[:2])
    return picture[top : top + side, left : left + side]


def _as_pixels(pictures: list[Any]) -> Tensor:
    return as_pixels(torch.from_numpy(np.stack(pictures)))


def as_pixels(levels: Tensor) -> Tensor:
    """RGB values as a decoder gives them: uint8 (B, H, W, 3) -> (B, 3, H, W) in -1..1."""
    return levels.permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0).contiguous()
