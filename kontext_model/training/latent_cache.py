"""Latents of triples, encoded once and kept on disk.

Owns the cache's files: one safetensors per triple and canvas, named by what went in, the VAE included. A file appears
whole or not at all, so that a killed run leaves nothing half-written.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from kontext_model import image
from kontext_model.canvas import Canvas
from kontext_model.training.triples import TripleSource

SAFETENSORS_ERRORS = (OSError, safetensors.SafetensorError)


@dataclass(frozen=True)
class LatentCache:
    """Encodes with this VAE and keeps results under the folder."""

    folder: Path
    vae: Any
    vae_digest: str
    fit: str = "pad"

    def path(self, source: TripleSource, index: int, canvas: Canvas) -> Path:
        """Where a triple's latents are kept."""
        key = json.dumps([self.vae_digest, source.identity(index), str(canvas), self.fit])
        name = hashlib.sha256(key.encode()).hexdigest()[:32]
        return self.folder / name[:2] / f"{name}.safetensors"

    def read(self, source: TripleSource, index: int, canvas: Canvas) -> tuple[Tensor, Tensor]:
        """Normalised latents of condition and target, float16 (16, H/8, W/8) each. Raises TripleError."""
        path = self.path(source, index, canvas)
        try:
            pair = load_file(path)
        except SAFETENSORS_ERRORS:
            with torch.inference_mode():
                pair = self._encode(source, index, canvas)
            save_whole(pair, path)
        return pair["condition"], pair["target"]

    def _encode(self, source: TripleSource, index: int, canvas: Canvas) -> dict[str, Tensor]:
        condition, target = source.images(index, canvas)
        encoded = [image.encode(self.vae, image.fit(each, canvas, self.fit))[0] for each in (condition, target)]
        return {"condition": encoded[0].half().cpu().contiguous(), "target": encoded[1].half().cpu().contiguous()}


def save_whole(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write a safetensors file that a reader, or a process killed meanwhile, never sees half of."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.")
    os.close(handle)
    try:
        save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, partial)
        os.replace(partial, path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise


def encoder_digest(vae: Any) -> str:
    """A short digest of what decides a VAE's latents: its config and every weight but the decoder's."""
    config = {name: value for name, value in vae.config.items() if not name.startswith("_")}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name, value in sorted(vae.state_dict().items()):
        if not name.startswith(("decoder.", "post_quant_conv.")):
            digest.update(name.encode())
            digest.update(value.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
