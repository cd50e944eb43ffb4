"""LoRA files: from what a catalogue names to a place and a digest, and from these to a file of this machine.

Owns the spelling of places (an absolute path, `s3://bucket/key.safetensors`, `hf://owner/name@commit/file`) and the
copies of S3 objects in `<home>/loras`, named by their content. Refuses to judge weights: that is the worker's.
"""

import contextlib
import hashlib
import os
import tempfile
from pathlib import Path
from typing import BinaryIO

from kontext_model.lora_file import (
    MAX_BYTES,
    SUFFIX,
    LoraError,
    LoraPin,
    check_file,
    download,
    find_file,
    hash_file,
    is_hub_place,
    pin_hub,
)
from orchestrator.settings import Settings
from orchestrator.storage.locations import open_object, read_path
from orchestrator.storage.store import ObjectMissing, StorageError

CHUNK_BYTES = 1 << 20


def pin_lora(name: str, root: str, settings: Settings) -> LoraPin:
    """Pin a LoRA to the content it has now; a relative path counts from `root`, a folder or `s3://bucket/prefix`.

    What exists there goes before a hub id. The file's header is checked. Raises LoraError, and StorageError when
    trying again may help.
    """
    try:
        place = _find_place(name, root, settings)
        path = _open_place(place, settings)
    except StorageError as error:
        if error.transient:
            raise
        missing = isinstance(error, ObjectMissing)
        raise LoraError(name, error.message, "lora_missing" if missing else error.code) from error
    check_file(path, place)
    return LoraPin(place, hash_file(path))


def fetch_lora(pin: LoraPin, settings: Settings) -> Path:
    """The file of a pinned LoRA on this machine; whoever opens it checks that it still holds what was pinned.

    Raises LoraError, StorageError.
    """
    copy = _copy_path(pin.sha256, settings)
    if copy.is_file():
        return copy
    try:
        return _open_place(pin.place, settings)
    except ObjectMissing as error:
        raise LoraError(pin.place, error.message, "lora_missing") from error


def _find_place(name: str, root: str, settings: Settings) -> str:
    """The place that a name means."""
    if name.startswith("s3://"):
        return name
    if not name.startswith("hf://"):
        if root.startswith("s3://") and not name.startswith(("/", "~", "file:")):
            return _find_below_prefix(name, root, settings)
        path = read_path(name if "://" in name else os.path.join(root, os.path.expanduser(name)))
        if os.path.exists(path) or not is_hub_place(name):
            return str(find_file(path))
    return pin_hub(name)


def _find_below_prefix(name: str, root: str, settings: Settings) -> str:
    place = f"{root.rstrip('/')}/{name}"
    if is_hub_place(name):
        store, key = open_object(place, settings)
        if not name.endswith(SUFFIX) or store.head(key) is None:
            return pin_hub(name)
    return place


def _open_place(place: str, settings: Settings) -> Path:
    if place.startswith("s3://"):
        return _copy_object(place, settings)
    return download(place) if place.startswith("hf://") else find_file(Path(place))


def _copy_object(uri: str, settings: Settings) -> Path:
    """A copy of an S3 object, made once for each content; a link from its etag spares the next download."""
    if not uri.endswith(SUFFIX):
        raise LoraError(uri, f"name one {SUFFIX} file; only these are opened")
    store, key = open_object(uri, settings)
    found = store.head(key)
    if found is None:
        raise LoraError(uri, "there is no such object; correct the URI", "lora_missing")
    if found.size_bytes > MAX_BYTES:
        raise LoraError(uri, f"{found.size_bytes:,} bytes are more than the {MAX_BYTES:,} allowed")
    version = hashlib.sha256(f"{uri}\0{found.etag}\0{found.size_bytes}".encode()).hexdigest()
    known = _copy_path(version, settings).with_suffix(".link")
    if known.is_file():
        return known.resolve()
    with store.open(key) as stream:
        copy = _keep(stream, uri, settings)
    with contextlib.suppress(OSError):  # a note that cannot be written costs time, not correctness
        known.symlink_to(copy.name)
    return copy


def _keep(stream: BinaryIO, uri: str, settings: Settings) -> Path:
    digest, size_bytes = hashlib.sha256(), 0
    folder = _copy_path("", settings).parent
    folder.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=folder, prefix=".partial-")
    try:
        with os.fdopen(handle, "wb") as file:
            while chunk := stream.read(CHUNK_BYTES):
                size_bytes += len(chunk)
                if size_bytes > MAX_BYTES:
                    raise LoraError(uri, f"it has more than the {MAX_BYTES:,} bytes allowed")
                digest.update(chunk)
                file.write(chunk)
        copy = _copy_path(digest.hexdigest(), settings)
        os.replace(partial, copy)
    finally:
        Path(partial).unlink(missing_ok=True)
    return copy


def _copy_path(sha256: str, settings: Settings) -> Path:
    return settings.home.absolute() / "loras" / f"{sha256}{SUFFIX}"
