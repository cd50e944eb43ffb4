"""Checkpoints in S3: pinned by what a listing says, copied once into `<home>/checkpoints/<revision>`.

Owns which objects below a prefix are a checkpoint's, and copies that go on where they were killed. Only what opening
reads is copied: no pickles, no weights of another layout beside them. Refuses to judge weights: that is the worker's.
"""

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from kontext_model.revision import LOADED_SUFFIXES, PARTS, CheckpointError, CheckpointRef, read_defaults
from orchestrator.settings import Settings
from orchestrator.storage.locations import open_store
from orchestrator.storage.store import ObjectInfo, StorageError, Store

SCHEME = "s3://"
INDEX_NAME, DEFAULTS_NAME = "model_index.json", "kontext.json"
CHUNK_BYTES = 1 << 20


def pin_weights(uri: str, settings: Settings) -> CheckpointRef:
    """Pin the checkpoint below `s3://bucket/prefix` to what lies there now; nothing is left on this machine.

    The revision is a digest of names, sizes and etags: the same objects copied elsewhere may have another one. Raises
    CheckpointError; StorageError when trying again may help.
    """
    store, files, revision = _list(uri, settings)
    with _explained(uri), tempfile.TemporaryDirectory(prefix="kontext-") as folder:
        if any(info.key == DEFAULTS_NAME for info in files):
            (Path(folder) / DEFAULTS_NAME).write_bytes(store.read(DEFAULTS_NAME, CHUNK_BYTES))
        return CheckpointRef(store.uri, None, revision, read_defaults(Path(folder)))


def fetch_weights(uri: str, settings: Settings, parts: Collection[str]) -> CheckpointRef:
    """Pin as `pin_weights` does, and copy: the reference's folder then holds these parts, and every part's config.

    Processes of one machine copy a file once; a copy that was killed goes on. Raises as `pin_weights`.
    """
    store, files, revision = _list(uri, settings)
    folder = settings.home.absolute() / "checkpoints" / revision
    _copy(store, [info for info in files if _part(info.key) in {"", *parts} or _is_config(info.key)], folder)
    return CheckpointRef(store.uri, folder, revision, read_defaults(folder))


def _list(uri: str, settings: Settings) -> tuple[Store, list[ObjectInfo], str]:
    """The store below the prefix, the checkpoint's objects in it, and the revision they make."""
    with _explained(uri):
        store = open_store(uri, settings)
        index, defaults = store.head(INDEX_NAME), store.head(DEFAULTS_NAME)
        if index is None:
            raise CheckpointError(f"checkpoint {uri} has no {INDEX_NAME}: it is not a diffusers-layout folder")
        files = [index] if defaults is None else [index, defaults]
        for part in PARTS:
            own = [info for info in store.list(f"{part}/") if _is_loaded(info.key)]
            if not own:
                raise CheckpointError(f"checkpoint {uri} has no part {part}/: copy the whole diffusers-layout folder")
            files += sorted(own, key=lambda info: info.key)
    digest = hashlib.sha256()
    for info in files:
        digest.update(f"{info.key}\0{info.size_bytes}\0{info.etag}\n".encode())
    return store, files, digest.hexdigest()[:40]


def _part(key: str) -> str:
    return key.rpartition("/")[0]


def _is_config(key: str) -> bool:
    return key.endswith("/config.json")


def _is_loaded(key: str) -> bool:
    name = key.partition("/")[2]
    return "/" not in name and not name.startswith(".") and Path(name).suffix in LOADED_SUFFIXES


def _copy(store: Store, files: list[ObjectInfo], folder: Path) -> None:
    """See that the folder holds these objects; each file appears whole or not at all."""
    missing = [info for info in files if not (folder / info.key).is_file()]
    if not missing:
        return
    with _explained(store.uri), _locked(folder):
        _check_room(missing, folder)
        for info in missing:
            if not (folder / info.key).is_file():  # another process may have copied it meanwhile
                _copy_file(store, info, folder / info.key)


def _copy_file(store: Store, info: ObjectInfo, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    # The folder's name holds the etag: what an earlier process left is the beginning of this very object.
    start = partial.stat().st_size if partial.is_file() else 0
    with partial.open("ab") as file:
        if start < info.size_bytes:
            with store.open(info.key, start) as stream:
                shutil.copyfileobj(stream, file, CHUNK_BYTES)
        file.flush()
        os.fsync(file.fileno())
    now = store.head(info.key)
    # Not by its time: some servers list milliseconds, and whole seconds where they are asked for one object.
    changed = now is None or (now.size_bytes, now.etag) != (info.size_bytes, info.etag)
    if changed or partial.stat().st_size != info.size_bytes:
        partial.unlink()
        raise CheckpointError(f"checkpoint file {store.locate(info.key)} changed while it was copied; start again")
    partial.replace(path)


def _check_room(files: list[ObjectInfo], folder: Path) -> None:
    needed, free = sum(info.size_bytes for info in files), shutil.disk_usage(folder).free
    if needed > free:
        raise CheckpointError(
            f"{folder} has room for {free / 1e9:.1f} GB, and the checkpoint needs {needed / 1e9:.1f} GB: free some, or "
            "set KONTEXT_HOME to a larger disk"
        )


@contextmanager
def _explained(uri: str) -> Iterator[None]:
    try:
        yield
    except StorageError as error:
        if error.transient:
            raise
        raise CheckpointError(f"checkpoint {uri}: {error.message}") from error
    except OSError as error:
        raise CheckpointError(f"checkpoint {uri} cannot be copied to this machine: {error}") from error


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
