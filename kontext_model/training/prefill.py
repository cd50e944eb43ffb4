"""Fills the latent cache ahead of training with several processes.

Training encodes what it misses by itself; this is for machines with many cores and a fast accelerator.
"""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path

import torch

from kontext_model.checkpoint import open_checkpoint
from kontext_model.training.config import TrainingConfig
from kontext_model.training.latent_cache import LatentCache, encoder_digest
from kontext_model.training.origin import pin
from kontext_model.training.supply import LostProcessError
from kontext_model.training.triples import open_source


def prefill(
    config: TrainingConfig,
    workers: int,
    report: Callable[[str], None] = print,
    number: int = 0,
    processes: int = 1,
) -> int:
    """Encode the triples at every area at which they are kept; gives how many files the cache then has for them.

    Process `number` of the `processes` that share a run encodes its own share of them, with `workers` of its own.
    Raises LostProcessError when one of those is killed.
    """
    shares = range(number * workers, (number + 1) * workers)
    total = 0
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for area_px in config.cached_areas_px:
            filling = [pool.submit(_fill_share, config, area_px, share, workers * processes) for share in shares]
            try:
                count = sum(each.result() for each in filling)
            except BrokenProcessPool as error:
                raise LostProcessError(str(error)) from error
            report(f"latents of {count:,} triples at {area_px} px are cached")
            total += count
    return total


def _fill_share(config: TrainingConfig, area_px: int, share: int, shares: int) -> int:
    """Every `shares`-th triple from `share` on, in a process and with a thread of its own."""
    torch.set_num_threads(1)
    vae = open_checkpoint(pin(config), parts=frozenset({"decode"})).vae
    cache = LatentCache(Path(config.out) / "latents", vae, encoder_digest(vae), config.data.fit)
    source = open_source(config.data)
    members = range(share, len(source), shares)
    for index in members:
        cache.read(source, index, source.canvas(index, area_px))
    return len(members)
