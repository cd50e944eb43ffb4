"""What a checkpoint is, without opening it: its parts, its defaults and its revision.

Owns `kontext.json` and the content digest that pins a checkpoint to its jobs. Imports no torch, so that the control
plane may use it. Refuses to load weights, and to reach the network for anything but a hub id.
"""

import contextlib
import hashlib
import json
import math
import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

PARTS = ("transformer", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler")
LOADED_SUFFIXES = frozenset({".json", ".safetensors", ".txt", ".model"})
"""The kinds of file that opening reads; the digest covers these and no others."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names the folder, the part and what to do."""


def shorten(error: Exception) -> str:
    """What a library says of its error, as a part of one line."""
    return " ".join(str(error).split())[:500] or type(error).__name__


@dataclass(frozen=True)
class Defaults:
    """What `kontext.json` says; where it is silent, the values of FLUX.1-Kontext-dev."""

    area_px: int = 1024 * 1024
    text_length: int = 512
    steps: int = 28
    guidance: float = 2.5


@dataclass(frozen=True)
class CheckpointRef:
    """A checkpoint pinned to a revision: a folder of this machine, or (folder None) a commit of a hub repository.

    `ref` finds the same again: the folder, or `owner/name@commit`.
    """

    ref: str
    folder: Path | None
    revision: str
    defaults: Defaults


_NAME = r"[A-Za-z0-9][\w.-]{0,95}"
_HUB_ID = re.compile(rf"(?P<repository>{_NAME}/{_NAME})(?:@(?P<revision>{_NAME}(?:/{_NAME})*))?", flags=re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_RANGES: dict[str, tuple[float, float]] = {
    "area_px": (16 * 16, 4096 * 4096),
    "text_length": (1, 512),
    "steps": (1, 1000),
    "guidance": (0.0, 100.0),
}


def resolve(ref: str | Path, revision: str | None = None, cache_file: Path | None = None) -> CheckpointRef:
    """Pin a checkpoint: a folder by its content digest, a hub id (`owner/name[@revision]`, no folder) by its commit.

    `revision` is what it must be: a folder or commit of another is refused, a hub id takes it as branch, tag or commit.
    Without the network a branch or tag is what the hub's local cache last knew of it. `cache_file` as in
    `read_revision`. Raises CheckpointError.
    """
    folder = Path(ref).expanduser()
    if folder.is_dir():
        found = read_revision(folder, cache_file)
        if revision is not None and revision != found:
            raise CheckpointError(f"checkpoint {folder} has revision {found}, not the asked {revision}")
        return CheckpointRef(str(ref), folder, found, read_defaults(folder))
    hub_id = _HUB_ID.fullmatch(str(ref))
    if hub_id is None:
        raise CheckpointError(
            f"checkpoint {ref} is not a folder; give a diffusers-layout folder or a hub id: owner/name[@revision]"
        )
    repository, own = hub_id["repository"], hub_id["revision"]
    if revision is not None and own is not None and _COMMIT.fullmatch(own) and revision != own:
        raise CheckpointError(f"checkpoint {ref} is pinned, and not to the asked {revision}; give one of the two")
    commit, defaults = _ask_hub(repository, own if revision is None else revision)
    return CheckpointRef(f"{repository}@{commit}", None, commit, defaults)


def read_defaults(folder: Path) -> Defaults:
    """The defaults in the folder's `kontext.json`, or FLUX.1-Kontext-dev's without one.

    Raises CheckpointError that names the file and the value when it is malformed.
    """
    return _parse_defaults(folder / "kontext.json")


def check_parts(folder: Path) -> None:
    """Raise CheckpointError that names the first missing part of the diffusers layout."""
    if not folder.is_dir():
        raise CheckpointError(f"checkpoint {folder} is not a folder")
    if not (folder / "model_index.json").is_file():
        raise CheckpointError(f"checkpoint {folder} has no model_index.json: it is not a diffusers-layout folder")
    for part in PARTS:
        if not (folder / part).is_dir() or not any(_list_loaded_files(folder / part)):
            raise CheckpointError(f"checkpoint {folder} has no part {part}/: copy the whole diffusers-layout folder")


def read_revision(folder: Path, cache_file: Path | None = None) -> str:
    """The content digest of the files that opening reads: 40 hexadecimal characters, the same wherever the folder lies.

    `cache_file` (JSON) keeps each file's digest by its size and mtime_ns, so that gigabytes are read once; a cache that
    is corrupt or cannot be written is ignored. Raises CheckpointError for a missing part or an unreadable file.
    """
    check_parts(folder)
    known = _read_cache(cache_file)
    fresh: dict[str, list[Any]] = {}
    digest = hashlib.sha256()
    for relative in sorted(_list_relative(folder)):
        path = folder / relative
        try:
            status = path.stat()
            key, signature = str(path.resolve()), [status.st_size, status.st_mtime_ns]
            entry: Any = known.get(key)
            if not _is_entry(entry) or entry[:2] != signature:
                with path.open("rb") as file:
                    entry = fresh[key] = [*signature, hashlib.file_digest(file, "sha256").hexdigest()]
        except OSError as error:
            raise CheckpointError(f"checkpoint file {path} cannot be read: {error.strerror}") from error
        digest.update(f"{relative}\0{entry[2]}\n".encode())
    if fresh and cache_file is not None:
        # A cache that cannot be written costs time, not correctness.
        with contextlib.suppress(OSError):
            write_json(cache_file, {path: entry for path, entry in known.items() if Path(path).exists()} | fresh)
    return digest.hexdigest()[:40]


def _list_relative(folder: Path) -> Iterator[str]:
    yield from (name for name in ("model_index.json", "kontext.json") if (folder / name).is_file())
    for part in PARTS:
        yield from (f"{part}/{path.name}" for path in _list_loaded_files(folder / part))


def _list_loaded_files(part: Path) -> Iterator[Path]:
    for path in part.iterdir():
        if path.suffix in LOADED_SUFFIXES and not path.name.startswith(".") and path.is_file():
            yield path


def _parse_defaults(path: Path) -> Defaults:
    try:
        values = json.loads(path.read_bytes())
    except FileNotFoundError:
        return Defaults()
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not readable JSON: {error}") from error
    names = [field.name for field in fields(Defaults)]
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} must hold one object with {', '.join(names)}, not {type(values).__name__}")
    for name, value in values.items():
        if name not in _RANGES:
            raise CheckpointError(f"{path}: unknown key {name!r}; known are {', '.join(names)}")
        low, high = _RANGES[name]
        number = (int, float) if name == "guidance" else int
        if isinstance(value, bool) or not isinstance(value, number) or not math.isfinite(value):
            kind = "a number" if name == "guidance" else "a whole number"
            raise CheckpointError(f"{path}: {name} must be {kind}, not {value!r}")
        if not low <= value <= high:
            raise CheckpointError(f"{path}: {name} must be from {low} to {high}, not {value!r}")
    if "guidance" in values:
        values["guidance"] = float(values["guidance"])
    return Defaults(**values)


def _is_entry(entry: Any) -> bool:
    return isinstance(entry, list) and len(entry) == 3 and isinstance(entry[2], str) and len(entry[2]) == 64


def _read_cache(cache_file: Path | None) -> dict[str, Any]:
    if cache_file is None:
        return {}
    try:
        known = json.loads(cache_file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return known if isinstance(known, dict) else {}


def write_json(path: Path, value: Any) -> None:
    """Replace `path` in one step: a reader or a killed writer never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(value, file)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _ask_hub(repository: str, revision: str | None) -> tuple[str, Defaults]:
    """The commit and the defaults of a hub repository; the only function here that uses the network."""
    try:
        import huggingface_hub.errors
    except ImportError as error:
        raise CheckpointError(
            f"checkpoint {repository!r} is not a folder here; reading it as a hub id needs the package huggingface_hub"
        ) from error
    try:
        commit = huggingface_hub.HfApi().resolve_revision(repository, revision=revision).resolved
        return str(commit), _fetch_defaults(huggingface_hub, repository, commit)
    except CheckpointError:
        raise
    except Exception as error:  # the client, its transport and the file system each raise their own
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise CheckpointError(
            f"checkpoint {repository!r} is not a folder here, nor readable on the hub: {reason}"
        ) from error


def _fetch_defaults(hub: Any, repository: str, commit: str) -> Defaults:
    """What a commit's `kontext.json` says, from the hub's local cache where that knows."""
    try:
        return _parse_defaults(Path(hub.hf_hub_download(repository, "kontext.json", revision=commit)))
    except hub.errors.LocalEntryNotFoundError:  # not reached: not knowing is not the same as having none
        if _is_known_to_lack_defaults(hub, repository, commit):
            return Defaults()
        raise
    except hub.errors.EntryNotFoundError:
        return Defaults()


def _is_known_to_lack_defaults(hub: Any, repository: str, commit: str) -> bool:
    """Whether the local cache has noted that there is no `kontext.json`, or lists the commit's files without one."""
    if hub.try_to_load_from_cache(repository, "kontext.json", revision=commit) is hub._CACHED_NO_EXIST:
        return True
    try:
        files = hub.get_cached_repo_tree(repository, revision=commit)
    except hub.errors.CachedRepoTreeNotFoundError:
        return False
    return all(file.path != "kontext.json" for file in files)
