"""A checkpoint's components, opened.

Owns the diffusers-layout folder: which part holds which class, and that the files hold exactly what the classes want.
Refuses pickles, keys too few or too many, other pipelines, and the network for anything but a hub id.
"""

import contextlib
import json
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import diffusers
import torch
import transformers
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5TokenizerFast

from kontext_model import revision as revisions
from kontext_model.acceleration import PLAIN, Acceleration, FallbackWarning, apply
from kontext_model.latents import CHANNELS, TOKEN_CHANNELS
from kontext_model.revision import CheckpointError, CheckpointRef, Defaults, shorten

STAGES = frozenset({"encode", "sample", "decode"})
STAGE_PARTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "encode": ("tokenizer", "text_encoder", "tokenizer_2", "text_encoder_2", "vae"),
        "sample": ("transformer", "scheduler"),
        "decode": ("vae",),
    }
)
DTYPES: Mapping[str, torch.dtype] = MappingProxyType(
    {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
)
_MODELS = MappingProxyType(
    {
        "text_encoder": CLIPTextModel,
        "text_encoder_2": T5EncoderModel,
        "vae": AutoencoderKL,
        "transformer": FluxTransformer2DModel,
    }
)
_TOKENIZERS = MappingProxyType({"tokenizer": CLIPTokenizer, "tokenizer_2": T5TokenizerFast})
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


@dataclass(frozen=True)
class Checkpoint:
    """The components of the parts that were asked for, in evaluation mode; the others are None.

    `device` is where they compute; while they are offloaded, their weights may be elsewhere.
    """

    revision: str
    defaults: Defaults
    device: torch.device
    dtype: torch.dtype
    acceleration: Acceleration = PLAIN
    tokenizer: Any = None
    text_encoder: Any = None
    tokenizer_2: Any = None
    text_encoder_2: Any = None
    vae: Any = None
    transformer: Any = None
    scheduler: Any = None

    def check_stage(self, stage: str) -> None:
        """Raise CheckpointError when the stage's components were not opened."""
        if any(getattr(self, part) is None for part in STAGE_PARTS[stage]):
            raise CheckpointError(
                f"the checkpoint was opened without its {stage!r} part; open it with parts={{{stage!r}}}"
            )


def open_checkpoint(
    ref: str | Path | CheckpointRef,
    *,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype = "float32",
    revision: str | None = None,
    parts: frozenset[str] = STAGES,
    cache_file: Path | None = None,
    acceleration: Acceleration = PLAIN,
) -> Checkpoint:
    """Open a diffusers-layout folder or a hub id for the stages named in `parts`; one that is pinned is taken as it is.

    `revision` is the one it must have (a folder) or the branch, tag or commit (a hub id). `cache_file` as in
    `kontext_model.revision.read_revision`. Silent: no progress bars, no warnings but the FallbackWarning of an
    `acceleration` that cannot be had. Raises CheckpointError for a checkpoint that cannot be used, ValueError for a
    wrong argument.
    """
    unknown = parts - STAGES
    if unknown or not parts:
        raise ValueError(f"parts must be some of {', '.join(sorted(STAGES))}, not {sorted(unknown or parts)}")
    target, precision = _find_device(device), _find_dtype(dtype)
    pinned = ref if isinstance(ref, CheckpointRef) else revisions.resolve(ref, revision, cache_file)
    wanted = sorted({part for stage in parts for part in STAGE_PARTS[stage]})
    folder = pinned.folder if pinned.folder is not None else _download(pinned.ref, pinned.revision, wanted)
    _check_configs(folder)
    with silence():
        components = {part: _open_part(folder, part, precision) for part in wanted}
    models = {part: components[part].eval().requires_grad_(False) for part in _MODELS if part in components}
    if "vae" in models:
        models["vae"].to(memory_format=torch.channels_last)  # its convolutions run up to a third faster
    with silence():
        missed = apply(acceleration, models, target)
    for reason in missed:
        warnings.warn(f"{reason}; going on without it", FallbackWarning, stacklevel=2)
    return Checkpoint(pinned.revision, pinned.defaults, target, precision, acceleration, **components)


def open_outline(ref: str | Path, revision: str | None = None) -> Checkpoint:
    """What costs little of a checkpoint: tokenizers, scheduler, and the transformer without its weights, on `meta`.

    No weight is read, nor a folder's revision, which is left empty; `revision` is a hub id's branch, tag or commit.
    Raises CheckpointError.
    """
    wanted = [*_TOKENIZERS, "scheduler"]
    folder = Path(ref).expanduser()
    if folder.is_dir():
        revisions.check_parts(folder)
        pinned = CheckpointRef(str(ref), folder, "", revisions.read_defaults(folder))
    else:
        pinned = revisions.resolve(ref, revision)
        folder = _download(pinned.ref, pinned.revision, wanted)
    _check_configs(folder)
    meta = torch.device("meta")
    with silence():
        components = {part: _open_part(folder, part, torch.float32) for part in wanted}
        transformer = _outline_transformer(folder / "transformer" / "config.json", meta)
    return Checkpoint(pinned.revision, pinned.defaults, meta, torch.float32, transformer=transformer, **components)


def _find_device(device: str | torch.device) -> torch.device:
    """The device, seen to be there before any weight is read."""
    try:
        torch.empty(0, device=device)
        return torch.device(device)
    except Exception as error:  # each of torch's backends raises its own
        raise CheckpointError(
            f"device {str(device)!r} cannot be used here: {shorten(error)}; name another (cpu always works), or see "
            "that its driver and a torch built for it are installed"
        ) from error


def _find_dtype(dtype: str | torch.dtype) -> torch.dtype:
    found = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if found not in DTYPES.values():
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, not {dtype!r}")
    return found


def _open_part(folder: Path, part: str, dtype: torch.dtype) -> Any:
    try:
        if part == "scheduler":
            return _open_scheduler(folder)
        if part in _TOKENIZERS:
            return _TOKENIZERS[part].from_pretrained(str(folder / part), local_files_only=True)
        return _open_model(folder, part, dtype)
    except CheckpointError:
        raise
    except Exception as error:  # whatever a library raises over a hostile file, the user meets one kind
        raise CheckpointError(f"checkpoint part {folder / part} cannot be opened: {shorten(error)}") from error


def _open_model(folder: Path, part: str, dtype: torch.dtype) -> Any:
    if not any((folder / part).glob("*.safetensors")):
        pickles = sorted(path.name for pattern in _PICKLES for path in (folder / part).glob(pattern))
        reason = (
            f"its weights are pickles ({', '.join(pickles)}), which may run code" if pickles else "it has no weights"
        )
        raise CheckpointError(f"checkpoint part {folder / part} is refused: {reason}; only .safetensors are opened")
    name = "dtype" if part.startswith("text_encoder") else "torch_dtype"
    model, report = _MODELS[part].from_pretrained(
        str(folder / part), use_safetensors=True, local_files_only=True, output_loading_info=True, **{name: dtype}
    )
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        keys = sorted(str(key) for key in report.get(kind) or ())
        if keys:
            more = f" and {len(keys) - 5} more" if len(keys) > 5 else ""
            raise CheckpointError(
                f"checkpoint part {folder / part} has {kind.replace('_', ' ')}: {', '.join(keys[:5])}{more}"
            )
    return model


def _outline_transformer(path: Path, device: torch.device) -> Any:
    config = _read_config(path)
    try:
        with device:
            return FluxTransformer2DModel.from_config(config)
    except Exception as error:  # whatever a layer raises over a size that is none
        raise CheckpointError(f"checkpoint file {path} describes no transformer: {shorten(error)}") from error


def _open_scheduler(folder: Path) -> Any:
    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(str(folder / "scheduler"), local_files_only=True)
    for option in ("stochastic_sampling", "invert_sigmas"):
        if scheduler.config.get(option):
            raise CheckpointError(f"checkpoint part {folder / 'scheduler'} sets {option}, which Kontext does not use")
    return scheduler


def _check_configs(folder: Path) -> None:
    """Refuse another pipeline's folder, and parts that do not fit each other, before any weight is read."""
    pipeline = _read_config(folder / "model_index.json").get("_class_name")
    if pipeline != "FluxKontextPipeline":
        raise CheckpointError(f"checkpoint {folder} is of {pipeline!r}, not of 'FluxKontextPipeline'")
    transformer, vae, clip, t5 = (
        _read_config(folder / part / "config.json") for part in ("transformer", "vae", "text_encoder", "text_encoder_2")
    )
    for key, kind, types in (
        ("block_out_channels", "a list", (list,)),
        ("shift_factor", "a number", (int, float)),
        ("scaling_factor", "a number", (int, float)),
    ):
        if type(vae.get(key)) not in types:
            path = folder / "vae" / "config.json"
            raise CheckpointError(f"checkpoint file {path}: {key} is {vae.get(key)!r}, where {kind} fits")
    for name, found, wanted in (
        ("the VAE's latent_channels", vae.get("latent_channels"), CHANNELS),
        ("the VAE's number of block_out_channels", len(vae["block_out_channels"]), 4),
        ("the transformer's in_channels", transformer.get("in_channels"), TOKEN_CHANNELS),
        ("the transformer's pooled_projection_dim", transformer.get("pooled_projection_dim"), clip.get("hidden_size")),
        ("the transformer's joint_attention_dim", transformer.get("joint_attention_dim"), t5.get("d_model")),
    ):
        if found != wanted:
            raise CheckpointError(f"checkpoint {folder}: {name} is {found}, where {wanted} fits")


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"checkpoint file {path} is not readable JSON: {error}") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"checkpoint file {path} must hold one object, not {type(config).__name__}")
    return config


def _download(ref: str, commit: str, parts: list[str]) -> Path:
    """The hub repository's files of these parts, from the local cache where it has them."""
    import huggingface_hub

    patterns = [f"{part}/*{suffix}" for part in parts for suffix in sorted(revisions.LOADED_SUFFIXES)]
    configs = ["model_index.json", "kontext.json", "*/config.json"]
    try:
        repository = ref.partition("@")[0]
        return Path(huggingface_hub.snapshot_download(repository, revision=commit, allow_patterns=patterns + configs))
    except Exception as error:  # the client, its transport and the file system each raise their own
        raise CheckpointError(f"checkpoint {ref!r} cannot be downloaded: {shorten(error)}") from error


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Quiet diffusers and transformers while parts open or are saved; what they would warn of is an error here."""
    libraries = (diffusers.utils.logging, transformers.utils.logging)
    before = [(library.get_verbosity(), library.is_progress_bar_enabled()) for library in libraries]
    for library in libraries:
        library.set_verbosity(library.CRITICAL)
        library.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for library, (verbosity, shows_progress) in zip(libraries, before, strict=True):
            library.set_verbosity(verbosity)
            if shows_progress:
                library.enable_progress_bar()
