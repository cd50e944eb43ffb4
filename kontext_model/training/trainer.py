"""Trains the transformer on triples: full weights or LoRA.

Owns the loop: batch, objective, optimizer, averages, saving, validation. Killed at any moment it goes on from its last
saved state to the same weights as an unbroken run.
"""

import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor

from kontext_model import latents, text
from kontext_model.canvas import Canvas
from kontext_model.checkpoint import Checkpoint, open_checkpoint
from kontext_model.text import TextEmbeds
from kontext_model.training.config import Phase, TrainingConfig
from kontext_model.training.latent_cache import LatentCache, encoder_digest
from kontext_model.training.objective import draw_sigmas, flow_loss, noised
from kontext_model.training.run_state import Average, load_state, save_state, step_generator, trained_weights
from kontext_model.training.schedule import learning_rate
from kontext_model.training.triples import TripleSource, open_source


@dataclass(frozen=True)
class Batch:
    """Triples of one canvas: clean target and condition as tokens (B, S, 64), text rows, guidance (B,)."""

    canvas: Canvas
    target: Tensor
    condition: Tensor
    embeds: TextEmbeds
    guidance: Tensor


class Batches:
    """Draws each step's batch; which triples and prompts depends on (seed, step) alone."""

    def __init__(self, config: TrainingConfig, checkpoint: Checkpoint, source: TripleSource) -> None:
        self.config, self.checkpoint, self.source = config, checkpoint, source
        digest = encoder_digest(checkpoint.vae)
        self.cache = LatentCache(Path(config.out) / "latents", checkpoint.vae, digest, config.data.fit)
        self._buckets: dict[int, dict[Canvas, list[int]]] = {}
        self._texts: dict[str, TextEmbeds] = {}

    def buckets(self, area_px: int) -> dict[Canvas, list[int]]:
        """The triples by the canvas they have at that area."""
        if area_px not in self._buckets:
            buckets: dict[Canvas, list[int]] = defaultdict(list)
            for index in range(len(self.source)):
                buckets[self.source.canvas(index, area_px)].append(index)
            self._buckets[area_px] = dict(buckets)
        return self._buckets[area_px]

    def draw(self, phase: Phase, step: int, part: int) -> Batch:
        """The batch of an optimizer step's accumulation part."""
        config = self.config
        rng = Random(f"{config.seed}/{step}/{part}")
        buckets = self.buckets(phase.area_px)
        canvas = rng.choices(list(buckets), [len(members) for members in buckets.values()])[0]
        members = buckets[canvas]
        chosen = (
            rng.sample(members, phase.batch) if len(members) >= phase.batch else rng.choices(members, k=phase.batch)
        )
        pairs = [self.cache.read(self.source, index, canvas) for index in chosen]
        prompts = [
            "" if rng.random() < config.prompt_dropout else rng.choice(self.source.prompts(index)) for index in chosen
        ]
        device = self.checkpoint.device
        return Batch(
            canvas,
            latents.pack(torch.stack([target for _, target in pairs]).float()).to(device),
            latents.pack(torch.stack([condition for condition, _ in pairs]).float()).to(device),
            text.join([self.embed(prompt) for prompt in prompts]),
            torch.tensor([rng.uniform(config.guidance[0], config.guidance[-1]) for _ in chosen], device=device),
        )

    def embed(self, prompt: str) -> TextEmbeds:
        """A prompt's embeds, encoded once."""
        if prompt not in self._texts:
            c = self.checkpoint
            with torch.no_grad():
                pooled = text.encode_pooled(c.tokenizer, c.text_encoder, prompt)
                sequence = text.encode_sequence(c.tokenizer_2, c.text_encoder_2, prompt, c.defaults.text_length)
            self._texts[prompt] = TextEmbeds(pooled, sequence)
        return self._texts[prompt]


class Trainer:
    """One run: its model, optimizer and averages."""

    def __init__(self, config: TrainingConfig, report: Callable[[str], None] = print) -> None:
        self.config, self.report = config, report
        self.checkpoint = open_checkpoint(config.checkpoint, device=config.device)
        self.model = self.checkpoint.transformer
        self._choose_weights()
        self.optimizer = torch.optim.AdamW(
            [
                {"params": [value for value in self.weights.values() if value.dim() >= 2]},
                {"params": [value for value in self.weights.values() if value.dim() < 2], "weight_decay": 0.0},
            ],
            lr=1e-3,
            betas=(config.betas[0], config.betas[1]),
            weight_decay=config.weight_decay,
        )
        self.average = Average(self.model, config.decay)
        self.out = Path(config.out)
        self.step = load_state(self.out, self.model, self.average, self.optimizer)
        self.batches = Batches(config, self.checkpoint, open_source(config.data))

    def _choose_weights(self) -> None:
        lora = self.config.lora
        if lora is None:
            self.model.requires_grad_(True)
            return
        from peft import LoraConfig

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            self.model.add_adapter(
                LoraConfig(
                    r=lora.rank, lora_alpha=lora.alpha, target_modules=list(lora.targets), init_lora_weights="gaussian"
                )
            )

    @cached_property
    def weights(self) -> dict[str, Any]:
        return trained_weights(self.model)

    def train(self, until: int | None = None, on_validation: Callable[["Trainer"], object] | None = None) -> None:
        """Train to the end of the phases, or to step `until`."""
        config, stop = self.config, min(until or self.config.steps, self.config.steps)
        saved_s = began_s = time.monotonic()
        began, running = self.step, 0.0
        while self.step < stop:
            loss = self._take_step()
            running = loss if self.step == began + 1 else 0.98 * running + 0.02 * loss
            if self.step % 25 == 0:
                pace_s = (time.monotonic() - began_s) / (self.step - began)
                self.report(
                    f"step {self.step}/{config.steps}  loss {running:.4f}  {pace_s:.2f} s/step"
                    f"  {pace_s * (config.steps - self.step) / 60:.1f} min left"
                )
            if time.monotonic() - saved_s > config.save_every_s or self.step == stop:
                self.save()
                saved_s = time.monotonic()
            if on_validation and config.validation.every and self.step % config.validation.every == 0:
                on_validation(self)

    def save(self) -> None:
        save_state(self.out, self.step, self.model, self.average, self.optimizer)

    def _take_step(self) -> float:
        config = self.config
        phase, local = config.phase_at(self.step)
        generator = step_generator(config.seed, self.step)
        self.model.train()
        total = 0.0
        for part in range(config.accumulation):
            batch = self.batches.draw(phase, self.step, part)
            loss = self._loss(batch, generator) / config.accumulation
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(self.weights.values(), config.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(phase.schedule, phase.rate, local, phase.steps, phase.warmup)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.average.update(self.model, self.step)
        self.step += 1
        return total

    def _loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        config, clean = self.config, batch.target
        sigmas = draw_sigmas(config.objective, len(clean), generator).to(clean.device)
        noise = torch.randn(clean.shape, generator=generator).to(clean.device)
        kinds = (latents.GENERATED, latents.CONDITION)
        ids = torch.cat([latents.position_ids(batch.canvas, kind) for kind in kinds]).to(clean.device)
        autocast = (
            torch.autocast(clean.device.type, torch.bfloat16) if config.precision == "bfloat16" else nullcontext()
        )
        with autocast:
            prediction = self.model(
                hidden_states=torch.cat((noised(clean, noise, sigmas), batch.condition), dim=1),
                timestep=sigmas,
                guidance=batch.guidance if self.model.config.guidance_embeds else None,
                pooled_projections=batch.embeds.pooled,
                encoder_hidden_states=batch.embeds.sequence,
                txt_ids=torch.zeros(batch.embeds.sequence.shape[1], 3, device=clean.device),
                img_ids=ids,
                return_dict=False,
            )[0][:, : clean.shape[1]]
        return flow_loss(prediction, clean, noise, sigmas, config.objective.weight)
