"""Trains the transformer on triples: full weights or LoRA.

Owns the loop: batch, objective, optimizer, averages, saving, validation. Killed at any moment it goes on from its last
saved state to the same weights as an unbroken run. Several processes (`torchrun`, `accelerate launch`) share every
batch, and train the same run as one.
"""

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from peft import LoraConfig as LoraAdapter
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from kontext_model import latents
from kontext_model.acceleration import FallbackWarning, compile_blocks
from kontext_model.canvas import Canvas
from kontext_model.checkpoint import DTYPES, Checkpoint, open_checkpoint
from kontext_model.training.attention import attention_to_train
from kontext_model.training.batches import Batch, Batches, sort_into_buckets
from kontext_model.training.config import ConfigError, TrainingConfig
from kontext_model.training.device import PATIENCE, check_device, memory_watched
from kontext_model.training.embed_cache import EmbedCache
from kontext_model.training.latent_cache import LatentCache, encoder_digest
from kontext_model.training.objective import (
    draw_rollout_sigmas,
    draw_sigmas,
    estimate,
    flow_loss,
    noised,
    roll_out,
    rollout_loss,
)
from kontext_model.training.optimizer import make_optimizer
from kontext_model.training.origin import pin
from kontext_model.training.outline import OutlineReader, fit_reader, shape_loss
from kontext_model.training.progress import OnPace, Pace, Say, print_lines
from kontext_model.training.run_state import (
    NO_TERMS,
    Average,
    Terms,
    check_finite,
    load_state,
    save_state,
    step_generator,
    trained_weights,
)  # fmt: skip
from kontext_model.training.schedule import learning_rate
from kontext_model.training.supply import CachedSupply, DrawnSupply, Supply, drawers_watched
from kontext_model.training.triples import TripleSource, open_source, open_validation


class Trainer:
    """One run: its model, optimizer and averages.

    Making one reads and checks the triples, encodes their prompts, opens the model and restores the run's state.
    `drawers` processes draw this one's share of what a phase wants fresh; with none, it does. Raises TripleError,
    CheckpointError, ConfigError, TooLargeError; ValueError for a state that is another run's.
    """

    @memory_watched()
    def __init__(self, config: TrainingConfig, report: Say = print, drawers: int = 0) -> None:
        check_device(config)
        self.config, self.out = config, Path(config.out)
        self.accelerator = Accelerator(
            cpu=torch.device(config.device).type == "cpu",
            mixed_precision="no",
            device_placement=False,
            kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
        )
        self.number, self.processes = self.accelerator.process_index, self.accelerator.num_processes
        self.device = self.accelerator.device if self.processes > 1 else torch.device(config.device)
        self.report: Say = report if self.accelerator.is_main_process else lambda line: None
        _check_shares(config, self.processes)
        with self.accelerator.main_process_first():
            self.pinned = pin(config)
        source, self.validation = open_source(config.data), open_validation(config)
        buckets = {area_px: sort_into_buckets(source, area_px) for area_px in config.cached_areas_px}
        embeds = self._encode_prompts(source)
        self.vae = self._open("decode", torch.float32).vae
        self.checkpoint = self._open("sample", self._frozen_dtype)
        self.model = self.checkpoint.transformer
        self._choose_weights()
        self._compile()
        self.average = Average(self.model, config.decay)
        self.wrapped = self.accelerator.prepare(self.model)
        self.optimizer = make_optimizer(
            config.optimizer, self.weights, config.betas, config.weight_decay, fused=self.device.type == "cuda"
        )
        self.step = load_state(self.out, self.model, self.average, self.optimizer, self._terms)
        cache = LatentCache(self.out / "latents", self.vae, encoder_digest(self.vae), config.data.fit)
        supplies: dict[bool, Supply] = {
            False: CachedSupply(config, source, buckets, cache, self.device),
            True: DrawnSupply(config, self.vae, drawers, self.number, self.processes),
        }
        self.batches = Batches(config, source, supplies, embeds, self.device, self.number, self.processes)
        self._reader = self._fit_reader(source)
        self._ahead: list[Batch] = []

    def _open(self, stage: str, dtype: torch.dtype) -> Checkpoint:
        return open_checkpoint(self.pinned, device=self.device, dtype=dtype, parts=frozenset({stage}))

    @property
    def _frozen_dtype(self) -> torch.dtype:
        """Of what is not trained. Full training leaves nothing of the transformer alone."""
        return DTYPES[self.config.precision] if self.config.lora else torch.float32

    @property
    def _terms(self) -> Terms:
        return {"base": self.pinned.revision, **self.config.lora.terms} if self.config.lora else NO_TERMS

    def _encode_prompts(self, source: TripleSource) -> EmbedCache:
        """See that every prompt has embeds, shared among the processes; the text encoders are gone afterwards."""
        cache = EmbedCache(self.out / "embeds", self.pinned.revision, self._frozen_dtype)
        wanted = source.wordings() | self.validation.wordings() | ({""} if self.config.prompt_dropout else set())
        missing = cache.find_missing(sorted(wanted)[self.number :: self.processes])
        if missing:
            self.report(f"encoding {len(missing):,} prompts")
            cache.fill(missing, self._open("encode", self._frozen_dtype))
        self.accelerator.wait_for_everyone()
        return cache

    def _fit_reader(self, source: TripleSource) -> OutlineReader | None:
        """What reads shapes; the first process fits it, the others find it in the run's folder."""
        if not self.config.objective.outline:
            return None
        with self.accelerator.main_process_first():
            return fit_reader(self.vae, source, self.config.data.fit, self.config.seed, self.out, self.report)

    def _choose_weights(self) -> None:
        lora = self.config.lora
        if self.config.gradient_checkpointing:
            self.model.enable_gradient_checkpointing(self._run_twice)
        if lora is None:
            self.model.requires_grad_(True)
            return
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            self.model.add_adapter(
                LoraAdapter(
                    r=lora.rank, lora_alpha=lora.alpha, target_modules=list(lora.targets), init_lora_weights="gaussian"
                )
            )
        for value in self.weights.values():
            value.data = value.data.float()

    def _compile(self) -> None:
        if self.config.compile:
            for reason in compile_blocks(self.model, self.device):
                warnings.warn(f"{reason}; going on without it", FallbackWarning, stacklevel=2)

    @cached_property
    def weights(self) -> dict[str, Any]:
        return trained_weights(self.model)

    @memory_watched()
    @drawers_watched()
    def train(
        self,
        until: int | None = None,
        on_validation: Callable[["Trainer"], object] | None = None,
        on_pace: OnPace | None = None,
    ) -> None:
        """Train to the end of the phases, or to step `until`; `on_pace` is told of every step.

        Raises TripleError for an image that cannot be read, DivergedError, LostProcessError, TooLargeError.
        """
        config, stop = self.config, min(until or self.config.steps, self.config.steps)
        on_pace = on_pace or print_lines(self.report)
        saved_s = began_s = time.monotonic()
        began, running = self.step, 0.0
        while self.step < stop:
            loss = self._take_step()
            running = loss if self.step == began + 1 else 0.98 * running + 0.02 * loss
            if not self.accelerator.is_main_process:
                continue
            on_pace(Pace(self.step, config.steps, running, (time.monotonic() - began_s) / (self.step - began)))
            if time.monotonic() - saved_s > config.save_every_s or self.step == stop:
                self.save()
                saved_s = time.monotonic()
            if on_validation and config.validation.every and self.step % config.validation.every == 0:
                on_validation(self)
        self.accelerator.wait_for_everyone()

    def save(self) -> None:
        save_state(self.out, self.step, self.model, self.average, self.optimizer, self._terms)

    def _take_step(self) -> float:
        config = self.config
        phase, local = config.phase_at(self.step)
        batches = self._ahead or self._draw(self.step)
        generator = step_generator(config.seed, self.step)
        noises = generator if self.device.type == "cpu" else step_generator(config.seed, self.step, self.device)
        self.model.train()
        total = torch.zeros((), device=self.device)
        for part, batch in enumerate(batches, start=1):
            waits = part < config.accumulation
            with self.accelerator.no_sync(self.wrapped) if waits else nullcontext():
                loss = self._loss(batch, generator, noises) / config.accumulation
                self.accelerator.backward(loss)
            total += loss.detach()
        norm = self.accelerator.clip_grad_norm_(self.weights.values(), config.clip)
        self._ahead = self._draw(self.step + 1)  # while an accelerator works
        told = self._tell(total, norm)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(phase.schedule, phase.rate, local, phase.steps, phase.warmup)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.average.update(self.model, self.step)
        self.step += 1
        return told

    def _tell(self, loss: Tensor, norm: Tensor) -> float:
        """The loss over all processes. Raises DivergedError in all of them, before a weight has moved."""
        told, gradient = self.accelerator.reduce(torch.stack((loss, norm)), "mean").tolist()
        remedy = "start again with a lower `rate`, or with `precision` float32"
        check_finite(self.step, self.out, remedy, loss=told, gradient=gradient)
        return float(told)

    def _draw(self, step: int) -> list[Batch]:
        """The step's passes; none after the last step."""
        if step == self.config.steps:
            return []
        phase, _ = self.config.phase_at(step)
        return [self.batches.draw(phase, step, part) for part in range(self.config.accumulation)]

    def _loss(self, batch: Batch, generator: torch.Generator, noises: torch.Generator) -> Tensor:
        """The mean over this process's rows; noise levels and noise are drawn for the whole batch."""
        objective, clean = self.config.objective, batch.target
        shape = (batch.size, *clean.shape[1:])
        noise = torch.randn(shape, generator=noises, device=noises.device)[batch.rows]
        velocity = partial(self._predict, batch)
        rolls = bool(objective.rollout) and float(torch.rand((), generator=generator)) < objective.rollout
        if rolls:
            steps = 1 + int(torch.randint(objective.rollout_steps, (), generator=generator))
            sigmas = draw_rollout_sigmas(batch.size, generator)[batch.rows].to(clean.device)
            x = roll_out(velocity, noise, sigmas, steps)
        else:
            sigmas = draw_sigmas(objective, batch.size, generator)[batch.rows].to(clean.device)
            x = noised(clean, noise, sigmas)
        predicted = velocity(x, sigmas)
        estimated = estimate(x, predicted, sigmas)
        loss = rollout_loss(estimated, clean) if rolls else flow_loss(predicted, clean, noise, sigmas, objective.weight)
        return loss + objective.outline * self._misread(self._reader, estimated, batch) if self._reader else loss

    def _misread(self, reader: OutlineReader, estimated: Tensor, batch: Batch) -> Tensor:
        """How far the garment's shape in an estimate (B, S, 64) is from that in the target; a scalar."""
        ours, theirs = (latents.unpack(tokens, batch.canvas) for tokens in (estimated, batch.target))
        with self._autocast():
            with torch.no_grad():
                covered = reader(theirs) > 0
            return shape_loss(reader(ours), covered)

    def _predict(self, batch: Batch, x: Tensor, sigmas: Tensor) -> Tensor:
        """The model's velocity (B, S, 64) for the batch's condition and prompts."""
        dtype = self.checkpoint.dtype
        with self._autocast():
            velocity: Tensor = self.wrapped(
                hidden_states=torch.cat((x, batch.condition), dim=1).to(dtype),
                timestep=sigmas.to(dtype),
                guidance=batch.guidance if self.model.config.guidance_embeds else None,
                pooled_projections=batch.embeds.pooled,
                encoder_hidden_states=batch.embeds.sequence,
                txt_ids=torch.zeros(batch.embeds.sequence.shape[1], 3, device=x.device),
                img_ids=_position_ids(batch.canvas, x.device),
                return_dict=False,
            )[0]
        return velocity[:, : x.shape[1]]

    def _run_twice(self, block: Any, *given: Any) -> Any:
        """Run a block that the backward pass runs again, then as now: by itself torch restores only some of it."""
        return checkpoint(
            block.__call__, *given, use_reentrant=False, context_fn=lambda: (nullcontext(), self._autocast())
        )

    @contextmanager
    def _autocast(self) -> Iterator[None]:
        """Passes in the run's precision."""
        mixed = self.config.precision != "float32"
        with warnings.catch_warnings():
            # Float32 weights of norms on bfloat16 values are what mixed precision is.
            warnings.filterwarnings("ignore", message="Mismatch dtype between input and weight")
            # Of tracing, which looks at whatever a tensor has.
            warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf Tensor")
            with (
                torch.autocast(self.device.type, DTYPES[self.config.precision]) if mixed else nullcontext(),
                attention_to_train(self.device) if mixed else nullcontext(),
            ):
                yield


@lru_cache(8)
def _position_ids(canvas: Canvas, device: torch.device) -> Tensor:
    """Of what is drawn and of the condition, (2·S, 3); kept on the device, since sending waits for it."""
    kinds = (latents.GENERATED, latents.CONDITION)
    return torch.cat([latents.position_ids(canvas, kind) for kind in kinds]).to(device)


def _check_shares(config: TrainingConfig, processes: int) -> None:
    for number, phase in enumerate(config.phases):
        if phase.batch % processes:
            raise ConfigError(
                f"phases[{number}].batch is {phase.batch}, which {processes} processes cannot share evenly; "
                f"make it a multiple of {processes}"
            )
