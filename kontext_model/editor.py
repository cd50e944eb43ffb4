"""The order of an edit: encode, sample, decode.

Owns the library face. Each stage also works alone, in a process that opened only its part. Refuses everything else: the
stages live in `text`, `image`, `latents` and `sampling`.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from kontext_model import image, latents, preview, sampling, text
from kontext_model.acceleration import PLAIN, Acceleration, caching
from kontext_model.canvas import Canvas, choose
from kontext_model.checkpoint import STAGES, Checkpoint, open_checkpoint
from kontext_model.lora import Adapters, Lora, open_lora
from kontext_model.photo import to_rgb
from kontext_model.revision import CheckpointRef, Defaults
from kontext_model.text import TextEmbeds

MAX_TOGETHER = 8
"""Edits sampled in one batch by a call; memory grows with it, speed hardly beyond it."""


@dataclass(frozen=True)
class Edit:
    """What is asked of the model for one photo. None takes the checkpoint's default, and for a size the canvas's.

    `true_cfg` above 1 together with a negative prompt (the empty one counts) turns true CFG on, at twice the cost.
    `sigmas` places the steps by hand, falling from 1, before the shift for the canvas's size; their number is `steps`.
    `lora` is a .safetensors file, a folder or a hub id, and `lora_scale` how strongly it counts.
    Raises ValueError that names the field when a value cannot be meant.
    """

    prompt: str
    seed: int = 0
    steps: int | None = None
    guidance: float | None = None
    true_cfg: float = 1.0
    negative_prompt: str | None = None
    width: int | None = None
    height: int | None = None
    fit: str = "pad"
    sampler: str = "euler"
    sigmas: tuple[float, ...] | None = None
    lora: str | Path | None = None
    lora_scale: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must be from 0 to 2**63 - 1, not {self.seed}")
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"steps must be at least 1, not {self.steps}")
        if self.sigmas is not None:
            sampling.check_sigmas(self.sigmas, len(self.sigmas) if self.steps is None else self.steps)
        for name, value in (("guidance", self.guidance), ("true_cfg", self.true_cfg)):
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be a number from 0, not {value}")
        if not math.isfinite(self.lora_scale):
            raise ValueError(f"lora_scale must be a number, not {self.lora_scale}")
        for name, choice, table in (("fit", self.fit, image.FITS), ("sampler", self.sampler, sampling.SAMPLERS)):
            if choice not in table:
                raise ValueError(f"{name} must be one of {', '.join(table)}, not {choice!r}")

    @property
    def negative(self) -> str | None:
        """The negative prompt where it has an effect, else None."""
        return self.negative_prompt if self.true_cfg > 1 else None


@dataclass(frozen=True)
class _Group:
    """What edits must share to be sampled in one batch."""

    canvas: Canvas
    steps: int
    sampler: str
    sigmas: tuple[float, ...] | None
    has_negative: bool
    lora: Lora | None


@dataclass(frozen=True)
class KontextEditor:
    """A FLUX.1 Kontext checkpoint that edits photos.

    Same photo, edit and seed give the same picture whatever the batch: bit-equal noise, embeddings and condition, and
    pixels at most one level apart on 99.9 % of the values.
    """

    checkpoint: Checkpoint

    @classmethod
    def open(
        cls,
        ref: str | Path | CheckpointRef,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype = "float32",
        revision: str | None = None,
        parts: frozenset[str] = STAGES,
        cache_file: Path | None = None,
        acceleration: Acceleration = PLAIN,
    ) -> "KontextEditor":
        """Open a folder or hub id for the stages in `parts`; see `kontext_model.checkpoint.open_checkpoint`."""
        return cls(
            open_checkpoint(
                ref,
                device=device,
                dtype=dtype,
                revision=revision,
                parts=parts,
                cache_file=cache_file,
                acceleration=acceleration,
            )
        )

    @property
    def defaults(self) -> Defaults:
        return self.checkpoint.defaults

    @property
    def revision(self) -> str:
        return self.checkpoint.revision

    @property
    def draws_previews(self) -> bool:
        """Whether `sample` can draw previews: the VAE is open, which teaches it the latents' colours."""
        return self.checkpoint.vae is not None

    def __call__(self, images: Sequence[Image.Image], edits: Sequence[Edit]) -> list[Image.Image]:
        """Edit each image by the edit beside it; results in the same order, each of its own canvas's size.

        Edits of one canvas, step count, sampler and LoRA run together; a LoRA is looked up once, before any work.
        Raises ValueError when the lengths differ, LoraError, FloatingPointError as `decode`.
        """
        if len(images) != len(edits):
            raise ValueError(f"{len(images)} images do not pair with {len(edits)} edits: give one edit for each image")
        photos = [to_rgb(each) for each in images]
        open_once = cache(open_lora)
        groups: dict[_Group, list[int]] = defaultdict(list)
        for index, (photo, edit) in enumerate(zip(photos, edits, strict=True)):
            groups[self._group(photo, edit, open_once)].append(index)
        texts = dict.fromkeys(each for edit in edits for each in (edit.prompt, edit.negative) if each is not None)
        embeds = {each: self.encode_text([each]) for each in texts}
        results: dict[int, Image.Image] = {}
        for group, members in groups.items():
            for start in range(0, len(members), MAX_TOGETHER):
                unit = members[start : start + MAX_TOGETHER]
                pictures = self._edit_unit(group, [photos[i] for i in unit], [edits[i] for i in unit], embeds)
                results.update(zip(unit, pictures, strict=True))
        return [results[index] for index in range(len(images))]

    def encode_text(self, texts: Sequence[str]) -> TextEmbeds:
        """Embed prompts: pooled (B, 768) and sequence (B, text_length, 4096), a row for each text.

        A row is bit-equal whatever stands beside it, so that rows may be stored by their text.
        """
        checkpoint = self.checkpoint
        checkpoint.check_stage("encode")
        if not texts:
            raise ValueError("there are no texts to encode")
        length = self.defaults.text_length
        with torch.inference_mode():
            pooled = [text.encode_pooled(checkpoint.tokenizer, checkpoint.text_encoder, each) for each in texts]
            sequence = [
                text.encode_sequence(checkpoint.tokenizer_2, checkpoint.text_encoder_2, each, length) for each in texts
            ]
            return TextEmbeds(torch.cat(pooled), torch.cat(sequence))

    def encode_images(self, images: Sequence[Image.Image], canvas: Canvas, fit: str = "pad") -> Tensor:
        """Fit photos to the canvas and encode them as condition tokens (B, canvas.tokens, 64)."""
        self.checkpoint.check_stage("encode")
        if not images:
            raise ValueError("there are no images to encode")
        with torch.inference_mode():
            grids = [image.encode(self.checkpoint.vae, image.fit(each, canvas, fit)) for each in images]
            return latents.pack(torch.cat(grids))

    def sample(
        self,
        condition: Tensor,
        text: TextEmbeds,
        canvas: Canvas,
        seeds: Sequence[int],
        steps: int,
        guidance: float | Sequence[float],
        true_cfg: float | Sequence[float] = 1.0,
        negative: TextEmbeds | None = None,
        sampler: str = "euler",
        on_step: sampling.OnStep | None = None,
        sigmas: Sequence[float] | None = None,
        on_preview: preview.OnPreview | None = None,
        preview_every: int = 1,
        lora: Lora | None = None,
    ) -> Tensor:
        """Denoise to latents (B, canvas.tokens, 64), one row for each row of the condition and each seed.

        `text` and `negative` have B rows, or one for all; `guidance` and `true_cfg` are one number or B. With
        `negative`, true CFG runs. `sigmas`, one for each step, place the steps by hand, before the shift for the
        canvas's size. After every `preview_every`-th step `on_preview` gets a small picture of each row; this needs
        the decode stage open. `lora` counts during this call alone. Raises ValueError when counts or shapes do not
        fit, LoraError when the LoRA cannot be used, Stopped when `on_step` returns False.
        """
        checkpoint = self.checkpoint
        checkpoint.check_stage("sample")
        batch = len(seeds)
        expected = (batch, canvas.tokens, latents.TOKEN_CHANNELS)
        if not batch or tuple(condition.shape) != expected:
            raise ValueError(
                f"{batch} seeds on canvas {canvas} need a condition of {expected}, not {tuple(condition.shape)}"
            )
        if steps < 1:
            raise ValueError(f"steps must be at least 1, not {steps}")
        if sampler not in sampling.SAMPLERS:
            raise ValueError(f"sampler must be one of {', '.join(sampling.SAMPLERS)}, not {sampler!r}")
        if preview_every < 1:
            raise ValueError(f"preview_every must be at least 1, not {preview_every}")
        device, dtype = checkpoint.device, checkpoint.dtype
        calls = sampling.count_calls(sampler, steps)
        with (
            self.adapters.applied(lora),
            caching(checkpoint.transformer, checkpoint.acceleration.step_cache, calls),
            torch.inference_mode(),
        ):
            on_estimate = None
            if on_preview is not None:
                on_estimate = preview.draw_every(preview_every, self.colours, canvas, on_preview)
            noise = torch.cat([latents.draw_noise(seed, canvas) for seed in seeds])
            return sampling.denoise(
                checkpoint.transformer,
                checkpoint.scheduler.config,
                latents.pack(noise.to(device, dtype)),
                condition.to(device, dtype),
                text.to(device, dtype),
                canvas,
                steps,
                _spread("guidance", guidance, batch),
                _spread("true_cfg", true_cfg, batch),
                None if negative is None else negative.to(device, dtype),
                sampler,
                on_step,
                sigmas,
                on_estimate,
            ).contiguous()

    @cached_property
    def adapters(self) -> Adapters:
        """The LoRAs on the transformer."""
        self.checkpoint.check_stage("sample")
        return Adapters(self.checkpoint.transformer)

    @cached_property
    def colours(self) -> preview.Colours:
        """What the VAE's latents look like, found out once."""
        self.checkpoint.check_stage("decode")
        return preview.fit_colours(self.checkpoint.vae)

    def decode(self, tokens: Tensor, canvas: Canvas) -> list[Image.Image]:
        """The pictures of latents (B, canvas.tokens, 64), each of exactly the canvas's size.

        Raises FloatingPointError when the latents or the pixels hold NaN or infinity, as float16 overflow leaves them.
        """
        self.checkpoint.check_stage("decode")
        if not torch.isfinite(tokens).all():
            raise FloatingPointError("the latents hold NaN or infinity; sample in bfloat16 or float32")
        with torch.inference_mode():
            return [image.decode(self.checkpoint.vae, each) for each in latents.unpack(tokens, canvas).split(1)]

    def _group(self, photo: Image.Image, edit: Edit, find: Callable[[str | Path, float], Lora]) -> _Group:
        canvas = choose(photo.width, photo.height, self.defaults.area_px, edit.width, edit.height)
        sigmas = None if edit.sigmas is None else tuple(edit.sigmas)
        steps = len(sigmas) if sigmas else edit.steps or self.defaults.steps
        lora = find(edit.lora, edit.lora_scale) if edit.lora is not None and edit.lora_scale else None
        return _Group(canvas, steps, edit.sampler, sigmas, edit.negative is not None, lora)

    def _edit_unit(
        self, group: _Group, photos: list[Image.Image], edits: list[Edit], embeds: dict[str, TextEmbeds]
    ) -> list[Image.Image]:
        condition = torch.cat(
            [self.encode_images([photo], group.canvas, edit.fit) for photo, edit in zip(photos, edits, strict=True)]
        )
        tokens = self.sample(
            condition,
            text.join([embeds[edit.prompt] for edit in edits]),
            group.canvas,
            [edit.seed for edit in edits],
            group.steps,
            [self.defaults.guidance if edit.guidance is None else edit.guidance for edit in edits],
            [edit.true_cfg for edit in edits],
            text.join([embeds[edit.negative or ""] for edit in edits]) if group.has_negative else None,
            group.sampler,
            sigmas=group.sigmas,
            lora=group.lora,
        )
        return self.decode(tokens, group.canvas)


def _spread(name: str, value: float | Sequence[float], batch: int) -> list[float]:
    values = [float(value)] * batch if isinstance(value, (int, float)) else [float(each) for each in value]
    if len(values) != batch:
        raise ValueError(f"{len(values)} values of {name} do not fit {batch} images: give one, or one for each")
    return values
