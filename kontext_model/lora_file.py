"""What a LoRA is, without opening it: a .safetensors file, its header and its digest.

Owns where a LoRA's file lies, in a folder or on the hub, and what its header must say. Imports no torch, so that the
control plane may use it. Refuses pickles, and LoRAs that change more than the transformer.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

WEIGHTS_NAME = "pytorch_lora_weights.safetensors"
SUFFIX = ".safetensors"
MAX_BYTES = 4 << 30
"""The largest file taken; a LoRA of rank 128 on every layer of the 12 B model has about 1.4 GB."""
MAX_HEADER_BYTES = 100 << 20
_DTYPES = frozenset({"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"})
# What else some LoRAs change, by what their keys hold: it would be dropped, and the picture would be another one.
_UNSUPPORTED = {
    "a text encoder": re.compile(r"^(text_encoders?\.|lora_te)"),
    "weight magnitudes (DoRA)": re.compile(r"dora_scale|lora_magnitude_vector"),
    "norms (a control LoRA)": re.compile(r"(query_norm|key_norm)\.scale$"),
}
_HUB_PLACE = re.compile(
    r"(?:hf://)?(?P<repository>[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})(?:@(?P<revision>[\w.-]+))?"
    r"(?:/(?P<file>[^@]+\.safetensors))?",
    flags=re.ASCII,
)


class LoraPin(NamedTuple):
    """Where a LoRA lies, spelled the same from everywhere, and the SHA-256 of what it holds."""

    place: str
    sha256: str


class LoraError(ValueError):
    """A LoRA that cannot be used; the message names it. `code` is a stable word, `transient` says to try again."""

    def __init__(self, name: object, reason: str, code: str = "bad_lora", *, transient: bool = False) -> None:
        super().__init__(f"LoRA {str(name)[:300]}: {reason}")
        self.code, self.transient = code, transient


def find_file(path: Path) -> Path:
    """The .safetensors file that a path means: itself, or in a folder the one of diffusers' name, or the only one.

    Raises LoraError.
    """
    try:
        if path.is_dir():
            return path / choose_name([each.name for each in path.iterdir() if each.is_file()], path)
        if not path.is_file():
            raise LoraError(path, "there is no such file; correct the path", "lora_missing")
    except OSError as error:
        raise LoraError(path, f"it cannot be read ({error.strerror})", "lora_missing") from error
    if path.suffix != SUFFIX:
        raise LoraError(path, f"only {SUFFIX} files are opened, since others may run code")
    return path


def choose_name(names: Iterable[str], where: object) -> str:
    """The LoRA among the files of a folder or repository. Raises LoraError when that is not clear."""
    found = sorted(name for name in names if name.endswith(SUFFIX))
    if WEIGHTS_NAME in found:
        return WEIGHTS_NAME
    if len(found) != 1:
        reason = f"it holds several {SUFFIX} files ({', '.join(found[:5])}); name one of them"
        raise LoraError(where, reason if found else f"it holds no {SUFFIX} file, and only these are opened")
    return found[0]


def hash_file(path: Path) -> str:
    """The SHA-256 of a file's bytes, 64 hexadecimal characters. Raises LoraError."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise LoraError(path, f"it cannot be read ({error.strerror})", "lora_missing") from error


def check_file(path: Path, name: object = None) -> None:
    """Raise LoraError, calling the LoRA by `name`, unless the file's header describes a whole LoRA."""
    name = path if name is None else name
    header, data_bytes = _read_header(path, name)
    check_header(header, data_bytes, name)


def check_header(header: Any, data_bytes: int, name: object) -> None:
    """Raise LoraError unless a safetensors header describes LoRA weights that fill `data_bytes` bytes."""
    tensors = {key: value for key, value in header.items() if key != "__metadata__"} if isinstance(header, dict) else {}
    try:
        ends = [int(tensor["data_offsets"][1]) for tensor in tensors.values()]
        strange = sorted({str(tensor["dtype"]) for tensor in tensors.values()} - _DTYPES)
    except (TypeError, KeyError, IndexError, ValueError):
        raise LoraError(name, "its header is not one of safetensors") from None
    if max(ends, default=0) != data_bytes:
        raise LoraError(name, "it has not as many bytes as its header says; copy it again")
    if not any("lora" in key for key in tensors):
        raise LoraError(name, f"it holds no LoRA weights{_quote(list(tensors))}")
    if strange:
        raise LoraError(name, f"its weights are of type {', '.join(strange)}, not floating point")
    for what, pattern in _UNSUPPORTED.items():
        if found := [key for key in tensors if pattern.search(key)]:
            raise LoraError(name, f"it also changes {what}, which is not supported{_quote(found)}")


def _read_header(path: Path, name: object) -> tuple[Any, int]:
    """The header, and how many bytes follow it. Source: the safetensors format, a length of 8 bytes and JSON."""
    try:
        with path.open("rb") as file:
            size_bytes = path.stat().st_size
            if size_bytes > MAX_BYTES:
                raise LoraError(name, f"{size_bytes:,} bytes are more than the {MAX_BYTES:,} allowed")
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(MAX_HEADER_BYTES, size_bytes - 8):
                raise LoraError(name, "it is not a safetensors file")
            return json.loads(file.read(length)), size_bytes - 8 - length
    except (ValueError, RecursionError) as error:
        if isinstance(error, LoraError):
            raise
        raise LoraError(name, "it is not a safetensors file") from error
    except OSError as error:
        raise LoraError(name, f"it cannot be read ({error.strerror})", "lora_missing") from error


def is_hub_place(name: str) -> bool:
    """Whether a name reads like `owner/name`, `owner/name/file.safetensors` or `hf://owner/name@revision/file…`."""
    found = _HUB_PLACE.fullmatch(name)
    return found is not None and not found["repository"].endswith(SUFFIX)


def pin_hub(name: str) -> str:
    """The place of a hub LoRA with its commit and its file: `hf://owner/name@commit/file.safetensors`.

    Asks the hub. Raises LoraError.
    """
    found = _parse_hub(name)
    info = _ask(name, lambda hub: hub.HfApi().model_info(found["repository"], revision=found["revision"]))
    file = found["file"] or choose_name([each.rfilename for each in info.siblings or ()], name)
    return f"hf://{found['repository']}@{info.sha}/{file}"


def download(place: str) -> Path:
    """The file at a place that `pin_hub` gave, from the hub's local cache where it lies there. Raises LoraError."""
    found = _parse_hub(place)
    return Path(
        _ask(
            place, lambda hub: hub.hf_hub_download(found["repository"], found["file"] or "", revision=found["revision"])
        )
    )


def find_lora(ref: str | Path) -> Path:
    """The file of a LoRA given as a file, a folder or a hub id; what exists here goes before the hub.

    Raises LoraError.
    """
    path = Path(ref).expanduser()
    if not os.path.exists(path) and is_hub_place(str(ref)):
        return download(pin_hub(str(ref)))
    return find_file(path)


def _parse_hub(name: str) -> dict[str, str | None]:
    found = _HUB_PLACE.fullmatch(name)
    if found is None:
        raise LoraError(name, "expected owner/name or owner/name/file.safetensors")
    return found.groupdict()


def _ask(name: str, question: Any) -> Any:
    """Ask the hub's client; the only function here that uses the network."""
    try:
        import huggingface_hub
        from huggingface_hub.errors import (
            EntryNotFoundError,
            LocalEntryNotFoundError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )
    except ImportError as error:
        reason = "it is no file or folder here; reading it as a hub id needs the package huggingface_hub"
        raise LoraError(name, reason, "lora_missing") from error
    try:
        return question(huggingface_hub)
    except Exception as error:  # the client, its transport and the file system each raise their own
        said = next(iter(str(error).strip().splitlines()), type(error).__name__)
        known = isinstance(error, (EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError))
        if known and not isinstance(error, LocalEntryNotFoundError):
            raise LoraError(name, f"it is neither here nor on the hub ({said})", "lora_missing") from error
        reason = f"it is no file or folder here, and the hub does not answer ({said})"
        raise LoraError(name, reason, "lora_unavailable", transient=True) from error


def _quote(keys: Sequence[str]) -> str:
    return f": {', '.join(keys[:3])}{' …' if len(keys) > 3 else ''}" if keys else ""
