"""What makes a large checkpoint fit a card, or run faster on it: quantisation, offload, attention, compilation, caches.

Owns these choices and where each applies. Quantisation, caches and the attention `sage`, which multiplies in 8 bits,
change pictures: they are had or are an error. The others fall back to plain running, with a FallbackWarning, where they
cannot be had; they change pictures by rounding at most.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from accelerate.utils import send_to_device

from kontext_model.revision import CheckpointError, shorten

ATTENTIONS: Mapping[str, str] = MappingProxyType(
    {
        "native": "native",
        "cudnn": "_native_cudnn",
        "flash": "flash",
        "flash3": "_flash_3",
        "sage": "sage",
        "xformers": "xformers",
    }
)
"""Our names of diffusers' attention back-ends. Those that load code from a hub are left out."""
LARGE = frozenset({"transformer", "text_encoder_2"})
"""The parts worth quantising and offloading block by block; the VAE and CLIP have 0.4 GB together."""
QUANTIZED = ("transformer_blocks.", "single_transformer_blocks.", "encoder.block.")
"""Whose linear layers are quantised: the blocks of the transformer and of T5, 97 % of their weights or more."""


class FallbackWarning(UserWarning):
    """A choice cannot be had here and was left out; pictures are those of plain running."""


@dataclass(frozen=True)
class Acceleration:
    """What is chosen; nothing by default.

    `quantize` the blocks' weights to `int8` or `fp8`. `offload` keeps on the device one part at a time (`model`) or one
    block (`group`). `attention` is a back-end. `compile` the repeated blocks. `step_cache` skips blocks in some steps:
    `first_block`, `taylorseer` or `magcache`. Raises ValueError that names a choice there is not.
    """

    quantize: str = "none"
    offload: str = "none"
    attention: str = "native"
    compile: bool = False
    step_cache: str = "none"

    def __post_init__(self) -> None:
        for name, table in (
            ("quantize", QUANTIZATIONS), ("offload", OFFLOADS), ("attention", ATTENTIONS), ("step_cache", STEP_CACHES)
        ):  # fmt: skip
            if getattr(self, name) not in table:
                raise ValueError(f"{name} must be one of {', '.join(table)}, not {getattr(self, name)!r}")


def apply(choice: Acceleration, models: Mapping[str, Any], device: torch.device) -> list[str]:
    """Bring models, by the name of their part, to the device as chosen; gives why what was left out was.

    Raises CheckpointError.
    """
    missed: list[str] = []
    offload = choice.offload
    if choice.quantize != "none":
        for part in LARGE & models.keys():
            quantize(models[part], choice.quantize)
    if offload != "none" and device.type == "cpu":
        missed.append(f"offload {offload!r} frees a graphics card's memory, and the device is the CPU")
        offload = "none"
    OFFLOADS[offload](models, device)
    if "transformer" in models:
        missed += _set_attention(models["transformer"], choice.attention, device)
        if choice.compile and choice.step_cache == "magcache":
            missed.append("compiling does nothing beside step_cache 'magcache', which keeps torch out of the blocks")
        elif choice.compile:
            missed += compile_blocks(models["transformer"], device)
    return missed


def quantize(model: Any, kind: str) -> None:
    """Replace the weights of the blocks' linear layers; computing stays in the model's dtype.

    Raises CheckpointError without torchao.
    """
    try:
        from torchao.quantization import quantize_
    except ImportError as error:
        raise CheckpointError(
            f"quantize {kind!r} needs the package torchao ({error}): pip install 'kontext-batch[quantize]', "
            "or choose 'none'"
        ) from error
    quantize_(model, QUANTIZATIONS[kind](), filter_fn=is_quantized)


def is_quantized(layer: Any, name: str) -> bool:
    """Whether a layer of that name is one that `quantize` replaces."""
    return isinstance(layer, torch.nn.Linear) and name.startswith(QUANTIZED)


def _int8() -> Any:
    from torchao.quantization import Int8WeightOnlyConfig

    return Int8WeightOnlyConfig()


def _fp8() -> Any:
    from torchao.quantization import Float8WeightOnlyConfig

    return Float8WeightOnlyConfig()


QUANTIZATIONS: Mapping[str, Callable[[], Any]] = MappingProxyType({"none": lambda: None, "int8": _int8, "fp8": _fp8})


def execution_device(model: Any) -> torch.device:
    """Where a model computes; while it is offloaded, its weights are elsewhere."""
    device: torch.device = getattr(getattr(model, "_hf_hook", None), "execution_device", None) or model.device
    return device


class Seat(ModelHook):  # type: ignore[misc]
    """The place on a device that models take in turn: whoever runs sits, whoever sat goes back to the CPU."""

    def __init__(self, execution_device: torch.device) -> None:
        self.execution_device = execution_device
        self._sitting: Any = None

    def pre_forward(self, module: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        if self._sitting is not module:
            left, self._sitting = self._sitting, None
            if left is not None:
                left.to("cpu")
            try:
                module.to(self.execution_device)
            except BaseException:  # too little memory: without the half that has arrived, another try finds more
                module.to("cpu")
                raise
            self._sitting = module
        return send_to_device(args, self.execution_device), send_to_device(kwargs, self.execution_device)


def _place(models: Mapping[str, Any], device: torch.device) -> None:
    for model in models.values():
        model.to(device)


def _place_in_turn(models: Mapping[str, Any], device: torch.device) -> None:
    seat = Seat(device)
    for model in models.values():
        add_hook_to_module(model, seat)


def _place_by_block(models: Mapping[str, Any], device: torch.device) -> None:
    """The large models a block at a time, the next one copied while one computes; the small ones stay."""
    from diffusers.hooks import apply_group_offloading

    ways: Mapping[str, Mapping[str, Any]] = {
        "transformer": {"offload_type": "block_level", "num_blocks_per_group": 1},
        "text_encoder_2": {"offload_type": "leaf_level"},  # its blocks lie deeper than block_level looks
    }
    for part, model in models.items():
        if part in LARGE:
            apply_group_offloading(model, device, torch.device("cpu"), **ways[part], use_stream=device.type == "cuda")
        else:
            model.to(device)


def renew_offload(model: Any) -> None:
    """Let a model that is offloaded block by block carry layers that were added since; others are left alone."""
    from diffusers.hooks.group_offloading import _maybe_remove_and_reapply_group_offloading

    _maybe_remove_and_reapply_group_offloading(model)  # diffusers does so itself for its pipelines alone


OFFLOADS: Mapping[str, Callable[[Mapping[str, Any], torch.device], None]] = MappingProxyType(
    {"none": _place, "model": _place_in_turn, "group": _place_by_block}
)


def _set_attention(transformer: Any, name: str, device: torch.device) -> list[str]:
    """Use a back-end that runs on the device, which is found out by running it; else gives why not.

    Raises CheckpointError for `sage`, which draws other pictures than the rest.
    """
    from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn

    backend = AttentionBackendName(ATTENTIONS[name])
    # Kernels are made for some sizes of a head, so the probe has the model's.
    probe = torch.zeros(1, 64, 2, transformer.config.attention_head_dim, device=device, dtype=transformer.dtype)
    try:
        transformer.set_attention_backend(backend.value)  # native too: diffusers gives a model the last one chosen
        with torch.inference_mode():
            dispatch_attention_fn(probe, probe, probe, backend=backend)
    except Exception as error:  # a missing package, a kernel not for this card: each raises its own
        transformer.set_attention_backend("native")
        reason = f"attention {name!r} does not run here ({shorten(error)})"
        if name == "sage":
            raise CheckpointError(f"{reason}, and pictures without it differ: choose another") from error
        return [reason]
    return []


def compile_blocks(transformer: Any, device: torch.device) -> list[str]:
    """Compile each kind of block when it first runs, or give why not.

    What torch leaves uncompiled runs as it is: a cache's decisions, the copying of offloaded blocks, and, once a block
    has as many variants as torch allows (8), further LoRAs and scales.
    """
    try:
        torch.compile(torch.nn.functional.silu)(torch.ones(8, device=device))
    except Exception as error:  # of the compiler, the linker, Triton
        return [f"compiling does not work here ({shorten(error)})"]
    transformer.compile_repeated_blocks()
    return []


def _first_block(steps: int, dtype: torch.dtype) -> Any:
    from diffusers import FirstBlockCacheConfig

    return FirstBlockCacheConfig(threshold=0.1)


def _taylorseer(steps: int, dtype: torch.dtype) -> Any:
    from diffusers import TaylorSeerCacheConfig

    return TaylorSeerCacheConfig(cache_interval=5, disable_cache_before_step=3, max_order=1, taylor_factors_dtype=dtype)


def _magcache(steps: int, dtype: torch.dtype) -> Any:
    from diffusers import MagCacheConfig
    from diffusers.hooks.mag_cache import FLUX_MAG_RATIOS

    return MagCacheConfig(num_inference_steps=steps, mag_ratios=FLUX_MAG_RATIOS)


STEP_CACHES: Mapping[str, Callable[[int, torch.dtype], Any]] = MappingProxyType(
    {"none": lambda steps, dtype: None, "first_block": _first_block, "taylorseer": _taylorseer, "magcache": _magcache}
)


PLAIN = Acceleration()


@contextmanager
def caching(transformer: Any, step_cache: str, calls: int) -> Iterator[None]:
    """The transformer with a cache for one walk of `calls` model calls; what it kept is forgotten afterwards."""
    config = STEP_CACHES[step_cache](calls, transformer.dtype)
    if config is None:
        yield
        return
    transformer.enable_cache(config)
    try:
        yield
    finally:
        transformer.disable_cache()


def is_caching(transformer: Any) -> bool:
    """Whether a cache decides what of the transformer runs; it decides for all rows of a forward pass alike."""
    return bool(getattr(transformer, "is_cache_enabled", False))


def cache_context(transformer: Any, name: str) -> AbstractContextManager[None]:
    """Around a forward pass: what a cache keeps of passes of another name is not met."""
    context: AbstractContextManager[None] = (
        transformer.cache_context(name) if is_caching(transformer) else nullcontext()
    )
    return context
