"""LoRAs on a transformer: loaded when first used, switched, unloaded.

Owns which adapters a transformer carries; outside `applied` none of them counts. Reading and converting files is
diffusers' own. Refuses weights that fit no layer or would silently be left out, and a file whose content has changed.
"""

import math
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from diffusers.loaders.lora_pipeline import FluxLoraLoaderMixin
from torch import Tensor

from kontext_model.acceleration import renew_offload
from kontext_model.checkpoint import silence
from kontext_model.lora_file import LoraError, check_file, find_lora, hash_file
from kontext_model.revision import shorten

MAX_LOADED = 4
"""Adapters kept on a transformer; each has up to a gigabyte on the 12 B model."""
_PREFIX = "transformer."
_TOO_LITTLE_MEMORY = (MemoryError, torch.OutOfMemoryError)


@dataclass(frozen=True)
class Lora:
    """A LoRA file, the digest of the content it must have, and how strongly it counts.

    `name` is what messages call it; the path where it is empty.
    """

    path: Path
    sha256: str
    scale: float = 1.0
    name: str = ""

    def __str__(self) -> str:
        return self.name or str(self.path)


def open_lora(ref: str | Path, scale: float = 1.0) -> Lora:
    """The LoRA of a file, a folder or a hub id, with the content it has now. Raises LoraError."""
    path = find_lora(ref)
    return Lora(path, hash_file(path), scale, str(ref))


class Adapters:
    """The LoRAs of one transformer, by their content; the least recently used goes when there are too many."""

    def __init__(self, transformer: Any, most: int = MAX_LOADED) -> None:
        self._transformer, self._most = transformer, most
        self._loaded: OrderedDict[str, None] = OrderedDict()
        self._layers: Mapping[str, tuple[int, int]] = {
            name: (module.out_features, module.in_features)
            for name, module in transformer.named_modules()
            if isinstance(module, torch.nn.Linear)
        }

    @property
    def loaded(self) -> list[str]:
        """The names of the adapters at hand, the least recently used first."""
        return list(self._loaded)

    @contextmanager
    def applied(self, lora: Lora | None) -> Iterator[None]:
        """The transformer with this LoRA alone, for a while; then as if it had never been there, to the bit.

        None leaves the transformer as it is. When memory runs out meanwhile, all other LoRAs are unloaded, so that
        another try finds more. Raises LoraError when the LoRA cannot be loaded.
        """
        try:
            with nullcontext() if lora is None else self._switched(lora):
                yield
        except _TOO_LITTLE_MEMORY:
            self._make_room(lora)
            raise

    @contextmanager
    def _switched(self, lora: Lora) -> Iterator[None]:
        if not self._loaded and getattr(self._transformer, "peft_config", None):
            raise ValueError("the transformer carries adapters of somebody else already; open the checkpoint anew")
        name = _name(lora)
        try:
            if name not in self._loaded:
                self._load(name, lora)
            self._loaded.move_to_end(name)
            self._transformer.set_adapters([name], [lora.scale])
            self._transformer.enable_lora()
            yield
        finally:
            self._transformer.disable_lora()

    def _load(self, name: str, lora: Lora) -> None:
        weights, alphas, metadata = _read(lora)
        _check(weights, self._layers, lora)
        while len(self._loaded) >= self._most:
            self._unload(next(iter(self._loaded)))
        try:
            with silence():
                self._transformer.load_lora_adapter(
                    weights, adapter_name=name, network_alphas=alphas, metadata=metadata, low_cpu_mem_usage=True
                )
                self._transformer.eval()
                renew_offload(self._transformer)
            self._loaded[name] = None
        except _TOO_LITTLE_MEMORY:
            raise
        except Exception as error:  # whatever peft raises
            raise LoraError(lora, f"it cannot be loaded: {shorten(error)}") from error
        finally:
            if name not in self._loaded:  # diffusers leaves behind some of what peft built before it failed
                self._unload(name)

    def _unload(self, name: str) -> None:
        self._loaded.pop(name, None)
        with silence():
            self._transformer.delete_adapters(name)

    def _make_room(self, lora: Lora | None) -> None:
        for name in self.loaded:
            if lora is None or name != _name(lora):
                self._unload(name)
        torch.cuda.empty_cache()


def _name(lora: Lora) -> str:
    return f"lora_{lora.sha256}"


def _read(lora: Lora) -> tuple[dict[str, Tensor], dict[str, Any] | None, dict[str, Any] | None]:
    """Weights by diffusers' names, their alphas, and peft's metadata as far as it scales them."""
    check_file(lora.path, lora)
    found = hash_file(lora.path)
    if found != lora.sha256:
        reason = f"its content has changed: sha256 {found[:12]}…, not {lora.sha256[:12]}… as asked; submit again"
        raise LoraError(lora, reason, "lora_changed")
    try:
        with silence():
            weights, alphas, metadata = FluxLoraLoaderMixin.lora_state_dict(
                str(lora.path.parent), weight_name=lora.path.name, use_safetensors=True, local_files_only=True,
                return_alphas=True, return_lora_metadata=True,
            )  # fmt: skip
    except Exception as error:  # whatever a converter raises over a hostile file
        raise LoraError(lora, f"it cannot be read as a LoRA of FLUX: {shorten(error)}") from error
    scaling = {key: value for key, value in (metadata or {}).items() if key.removeprefix(_PREFIX) in _SCALING}
    for key, value in scaling.items():
        fits, wanted = _SCALING[key.removeprefix(_PREFIX)]
        if not fits(value):
            raise LoraError(lora, f"its metadata's {key} must be {wanted}, not {str(value)[:100]}")
    if f"{_PREFIX}r" not in scaling:
        return _sort(weights), alphas or None, None
    modules = {key.removeprefix(_PREFIX).partition(".lora_")[0] for key in weights}
    return _sort(weights), alphas or None, {**scaling, f"{_PREFIX}target_modules": sorted(modules)}


def _is_rank(value: Any) -> bool:
    return type(value) is int and value > 0


def _is_alpha(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < math.inf


def _by_layer(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(map(fits, value.values()))


# What scales the weights. The rest of peft's metadata steers training, and would let a file choose what is built.
_SCALING: Mapping[str, tuple[Callable[[Any], bool], str]] = MappingProxyType(
    {
        "r": (_is_rank, "a positive integer"),
        "rank_pattern": (_by_layer(_is_rank), "positive integers by layer"),
        "lora_alpha": (_is_alpha, "a finite number"),
        "alpha_pattern": (_by_layer(_is_alpha), "finite numbers by layer"),
        "use_rslora": (lambda value: isinstance(value, bool), "true or false"),
    }
)


def _sort(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    # diffusers tells the format by the first key, which must be one of A.
    return dict(sorted(weights.items()))


def _check(weights: Mapping[str, Tensor], layers: Mapping[str, tuple[int, int]], lora: Lora) -> None:
    """Raise LoraError unless every weight belongs to a pair A (rank, in), B (out, rank) of a layer (out, in)."""
    pairs: dict[str, dict[str, Tensor]] = defaultdict(dict)
    strange = []
    for key, weight in weights.items():
        module, _, matrix = key.removeprefix(_PREFIX).partition(".lora_")
        if key.startswith(_PREFIX) and module in layers and matrix in ("A.weight", "B.weight"):
            pairs[module][matrix[0]] = weight
        else:
            strange.append(key)
    if strange or not pairs:
        names = f"{', '.join(sorted(strange)[:3])}{' …' if len(strange) > 3 else ''}"
        raise LoraError(lora, f"{len(strange)} of its weights fit no layer of this checkpoint: {names}")
    for module, pair in pairs.items():
        shapes = {name: tuple(weight.shape) for name, weight in pair.items()}
        out, into = layers[module]
        rank = shapes.get("A", (0,))[0]
        if rank < 1 or shapes != {"A": (rank, into), "B": (out, rank)}:
            told = ", ".join(f"{name} {shape}" for name, shape in sorted(shapes.items()))
            raise LoraError(lora, f"{module} has {told}, where A (rank, {into}) and B ({out}, rank) fit")
        if not all(torch.isfinite(weight.float()).all() for weight in pair.values()):
            raise LoraError(lora, f"{module} holds NaN or infinity")
