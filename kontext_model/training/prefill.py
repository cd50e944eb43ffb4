"""Fills the latent cache ahead of training with several processes.

Training encodes what it misses by itself; this is for machines with many cores and a fast accelerator.
"""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path

import torch

from kontext_model.checkpoint import open_checkpoint
from kontext_model.revision import CheckpointRef
from kontext_model.training.config import TrainingConfig
from kontext_model.training.latent_cache import LatentCache, encoder_digest
from kontext_model.training.origin import pin
from kontext_model.training.supply import LostProcessError
from kontext_model.training.triples import TripleSource, open_source

CHUNK = 16
"""Triples that a process takes at a time, and goes on with after another has met one that cannot be read."""


def prefill(
    config: TrainingConfig,
    workers: int,
    report: Callable[[str], None] = print,
    number: int = 0,
    processes: int = 1,
) -> int:
    """Encode the triples at every area at which they are kept; gives how many files the cache then has for them.

    Process `number` of the `processes` that share a run encodes its own share of them, with `workers` of its own.
    Raises TripleError for the first triple that cannot be read, LostProcessError when one of those is killed.
    """
    pinned = pin(config)
    share = range(number, len(open_source(config.data)), processes)
    chunks = [share[first : first + CHUNK] for first in range(0, len(share), CHUNK)]
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
    try:
        for area_px in config.cached_areas_px:
            for done in as_completed([pool.submit(_fill, config, pinned, area_px, chunk) for chunk in chunks]):
                done.result()
            report(f"latents of {len(share):,} triples at {area_px} px are cached")
    except BrokenProcessPool as error:
        raise LostProcessError(str(error)) from error
    finally:
        pool.shutdown(cancel_futures=True)
    return len(share) * len(config.cached_areas_px)


def _fill(config: TrainingConfig, pinned: CheckpointRef, area_px: int, chunk: range) -> None:
    cache, source = _open(config, pinned)
    for index in chunk:
        cache.read(source, index, source.canvas(index, area_px))


@lru_cache(1)
def _open(config: TrainingConfig, pinned: CheckpointRef) -> tuple[LatentCache, TripleSource]:
    """What a process encodes with, and what; it has a thread of its own."""
    torch.set_num_threads(1)
    vae = open_checkpoint(pinned, parts=frozenset({"decode"})).vae
    cache = LatentCache(Path(config.out) / "latents", vae, encoder_digest(vae), config.data.fit)
    return cache, open_source(config.data)
