"""Where the triples of a step come from, and their latents.

Owns what a step may choose from. `CachedSupply` offers all triples, each encoded once and kept on disk. `DrawnSupply`
offers the newest of a world without end: other processes draw ahead, the training device encodes, and what newer ones
push out is forgotten. What a step is offered depends on the step alone, so that a killed run goes on as if unbroken.
"""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, distributed
from torch.utils.data import DataLoader, Dataset

from kontext_model import image
from kontext_model.canvas import Canvas
from kontext_model.latents import CHANNELS, VAE_FACTOR
from kontext_model.training.config import TrainingConfig
from kontext_model.training.latent_cache import LatentCache
from kontext_model.training.triples import ASPECTS, TripleSource, WardrobeSource

Buckets = dict[Canvas, list[int]]
"""Triples by the canvas they have at some area."""
BLOCK = 8 * len(ASPECTS)
"""Triples that a process draws at a time: every block has as many of each canvas."""
WINDOW_BLOCKS = 100
"""Blocks that a step chooses from at most: the newest 8,000 triples."""
ENCODED_PX = 4 * 1024**2
"""Pixels that are encoded at once, which bounds the VAE's activations."""


class LostProcessError(ChildProcessError):
    """A process that draws or encodes ahead was killed; what the run has saved is from before."""

    def __init__(self, told: str) -> None:
        super().__init__(
            f"a process that draws or encodes ahead was killed ({told.split('. ')[0]}), likely for want of memory: "
            "start again with fewer of them (--encoders, --drawers); the run goes on from its last saved state"
        )


@contextmanager
def drawers_watched() -> Iterator[None]:
    """Raises LostProcessError for a drawer that was killed: torch raises of it wherever its caller happens to be."""
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        raise LostProcessError(str(error)) from error


class Supply(Protocol):
    """Triples on offer, and their latents."""

    def offer(self, step: int) -> Buckets:
        """What the step may choose from."""
        ...

    def read(self, indices: list[int], canvas: Canvas) -> Tensor:
        """Normalised latents of condition and target of triples on offer: (B, 2, 16, H/8, W/8) on the device."""
        ...


@dataclass(frozen=True)
class CachedSupply:
    """All triples of the source, at every step of a phase."""

    config: TrainingConfig
    source: TripleSource
    buckets: dict[int, Buckets]
    cache: LatentCache
    device: torch.device

    def offer(self, step: int) -> Buckets:
        return self.buckets[self.config.phase_at(step)[0].area_px]

    def read(self, indices: list[int], canvas: Canvas) -> Tensor:
        pairs = [torch.stack(self.cache.read(self.source, index, canvas)) for index in indices]
        return torch.stack(pairs).to(self.device)


@dataclass(frozen=True)
class Drawn:
    """Triples of one canvas as pictures: photo and answer, uint8 (n, 2, H, W, 3)."""

    canvas: Canvas
    indices: list[int]
    levels: Tensor


class Drawings(Dataset):  # type: ignore[misc]
    """Blocks of wardrobe triples by (first index, area in px): of each canvas the share of one process of several."""

    def __init__(self, first_seed: int, number: int = 0, processes: int = 1) -> None:
        self.source, self.number, self.processes = WardrobeSource(0, first_seed), number, processes

    def sort(self, first: int, area_px: int) -> Buckets:
        """All triples of the block that begins there."""
        buckets: Buckets = defaultdict(list)
        for index in range(first, first + BLOCK):
            buckets[self.source.canvas(index, area_px)].append(index)
        return buckets

    def __getitem__(self, block: tuple[int, int]) -> list[Drawn]:
        shares = [
            (canvas, np.array_split(indices, self.processes)[self.number].tolist())
            for canvas, indices in self.sort(*block).items()
        ]
        return [
            Drawn(canvas, indices, torch.from_numpy(np.stack([self._draw(index, canvas) for index in indices])))
            for canvas, indices in shares
            if indices
        ]

    def _draw(self, index: int, canvas: Canvas) -> Any:
        return np.stack([np.asarray(picture) for picture in self.source.images(index, canvas)])


def draw_ahead(drawings: Drawings, blocks: Iterator[tuple[int, int]], drawers: int) -> Iterator[list[Drawn]]:
    """Blocks in the order that is asked for, drawn ahead by `drawers` processes; by this one with none."""
    loader = DataLoader(
        drawings,
        sampler=blocks,
        batch_size=None,
        num_workers=drawers,
        multiprocessing_context="spawn" if drawers else None,
        prefetch_factor=2 if drawers else None,
        generator=torch.Generator(),  # else it draws from the one that others seed
    )
    return iter(loader)


def encode_drawn(vae: Any, levels: Tensor) -> Tensor:
    """Latents of k pictures of each triple: uint8 (n, k, H, W, 3) -> float16 (n, k, 16, H/8, W/8), where the VAE is."""
    pictures = levels.flatten(0, 1)
    parts = pictures.split(max(1, ENCODED_PX // pictures[0, ..., 0].numel()))
    with torch.inference_mode():
        return torch.cat([image.encode_levels(vae, part).half() for part in parts]).unflatten(0, levels.shape[:2])


class DrawnSupply:
    """The newest triples of the wardrobe: with each step of a phase `phase.fresh` enter.

    Process `number` of the `processes` that share a run draws and encodes its share of them; each then holds all.
    """

    def __init__(self, config: TrainingConfig, vae: Any, drawers: int = 0, number: int = 0, processes: int = 1) -> None:
        self.config, self.vae, self.drawers = config, vae, drawers
        self._drawings = Drawings(config.data.first_seed, number, processes)
        self._held: dict[Canvas, dict[int, Tensor]] = defaultdict(dict)
        self._arriving: Iterator[list[Drawn]] | None = None
        self._entered = 0

    def offer(self, step: int) -> Buckets:
        first, end = self._window(step)
        if self._arriving is None:
            self._arriving, self._entered = draw_ahead(self._drawings, self._blocks_from(step), self.drawers), first
        while self._entered < end:
            self._enter(next(self._arriving), self.config.phase_at(step)[0].area_px)
            self._entered += BLOCK
            if self._entered == sum(_count(phase.fresh * phase.steps) for phase in self.config.phases):
                next(self._arriving, None)  # is not there; to ask ends those who draw
        for canvas, latents in list(self._held.items()):
            for index in [each for each in latents if each < first]:
                del latents[index]
            if not latents:
                del self._held[canvas]
        # In an order that does not tell which canvases were held before.
        held = sorted(self._held.items(), key=lambda each: next(iter(each[1])))
        return {canvas: list(latents) for canvas, latents in held}

    def read(self, indices: list[int], canvas: Canvas) -> Tensor:
        return torch.stack([self._held[canvas][index] for index in indices])

    def _enter(self, drawn: list[Drawn], area_px: int) -> None:
        """Hold the next block: what this process has drawn of it, and what the others have."""
        own = {each.canvas: encode_drawn(self.vae, each.levels) for each in drawn}
        for canvas, indices in self._drawings.sort(self._entered, area_px).items():
            shape = (len(indices), 2, CHANNELS, canvas.height_px // VAE_FACTOR, canvas.width_px // VAE_FACTOR)
            whole = torch.empty(shape, dtype=torch.float16, device=self.vae.device)
            for number, share in enumerate(whole.tensor_split(self._drawings.processes)):
                if number == self._drawings.number and len(share):
                    share.copy_(own[canvas])
                if self._drawings.processes > 1 and len(share):
                    distributed.broadcast(share, number)
            self._held[canvas].update(zip(indices, whole, strict=True))

    def _window(self, step: int) -> tuple[int, int]:
        """First index and end of what a step chooses from; each phase begins with triples of its own."""
        phase, local = self.config.phase_at(step)
        earlier, passed = 0, 0
        for each in self.config.phases:
            if passed + each.steps > step:
                break
            earlier, passed = earlier + _count(each.fresh * each.steps), passed + each.steps
        entered = _count(phase.fresh * (local + 1))
        return earlier + max(0, entered - WINDOW_BLOCKS * BLOCK), earlier + entered

    def _blocks_from(self, step: int) -> Iterator[tuple[int, int]]:
        """Blocks in the order in which the steps from `step` on want them."""
        first, end = self._window(step)[0], 0
        for phase in self.config.phases:
            begin, end = end, end + _count(phase.fresh * phase.steps)
            yield from ((index, phase.area_px) for index in range(max(begin, first), end, BLOCK))


def _count(triples: int) -> int:
    """As many in whole blocks."""
    return -(-triples // BLOCK) * BLOCK
