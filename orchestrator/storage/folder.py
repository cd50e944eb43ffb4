"""A store in a local folder: a key is a path below the root.

Owns write-once by hard link: bytes go to a hidden part file, are flushed to the disk and then linked to their name, so
that a final name is always whole and the first writer wins. Refuses paths and symbolic links that leave the root.
"""

import errno
import hashlib
import heapq
import os
import shutil
import stat
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

from orchestrator.storage.store import (
    BINARY,
    NO_METADATA,
    AccessDenied,
    Content,
    ObjectInfo,
    ObjectMissing,
    PutAddress,
    StorageError,
    StorageFull,
    TooLarge,
    Unavailable,
    check_key,
)

PART_PREFIX = ".part-"
PART_LIFE_S = 86_400
# The coarsest clock of a file system in use (FAT): two writes within it may leave the same times.
SETTLED_S = 2.0
# Names of one folder held in memory at once while they are sorted; a larger folder is read several times.
SORTED_NAMES = 250_000


class FolderStore:
    """Objects as files below `root`. The folder is made by the first write. Metadata and content types are not kept."""

    def __init__(self, root: Path) -> None:
        self.root = Path(os.path.realpath(root))
        self.uri = str(self.root)

    @cached_property
    def ignores_case(self) -> bool:
        with self._explain("", writing=True):
            self.root.mkdir(parents=True, exist_ok=True)
            part = self._new_part()
            part.touch()
            try:
                return part.with_name(part.name.upper()).exists()
            finally:
                part.unlink()

    def put(
        self, key: str, data: bytes | Path, *, content_type: str = BINARY, metadata: Mapping[str, str] = NO_METADATA
    ) -> bool:
        target = self._path(key)
        with self._explain(key, writing=True):
            if target.is_file():
                return False
            with self._part_file(target) as (part, stream):
                _fill(stream, data)
                try:
                    os.link(part, target)
                except FileExistsError:
                    if target.is_dir():
                        raise
                    return False
            _flush_folder(target.parent)
        return True

    def replace(self, key: str, data: bytes | Path, *, content_type: str = BINARY) -> None:
        target = self._path(key)
        with self._explain(key, writing=True), self._part_file(target) as (part, stream):
            _fill(stream, data)
            os.replace(part, target)
            _flush_folder(target.parent)

    def get(self, key: str) -> bytes:
        with self.open(key) as stream, self._explain(key):
            return stream.read()

    def read(self, key: str, max_bytes: int) -> bytes:
        content = self.read_unless(key, max_bytes, None)
        assert content is not None
        return content.data

    def read_unless(self, key: str, max_bytes: int, validator: str | None) -> Content | None:
        with self.open(key) as stream, self._explain(key):
            before = _validate(os.fstat(stream.fileno()))
            if validator is not None and validator == before:
                return None
            data = stream.read(max_bytes + 1)
            after = _validate(os.fstat(stream.fileno()))
        if len(data) > max_bytes:
            raise TooLarge(f"{self.locate(key)} is larger than the {max_bytes:,} bytes allowed")
        return Content(data, after if after == before else None)

    @contextmanager
    def open(self, key: str, start: int = 0) -> Iterator[BinaryIO]:
        path = self._path(key)
        with self._explain(key):
            # Not blocking: a named pipe would hold the caller for ever.
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0))
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise ObjectMissing(f"{self.locate(key)} is not a file")
        with os.fdopen(descriptor, "rb") as stream:
            stream.seek(start)
            yield stream

    def head(self, key: str) -> ObjectInfo | None:
        try:
            path = self._path(key)
            with self._explain(key):
                status = path.stat()
        except ObjectMissing:
            return None
        return _describe(key, status) if stat.S_ISREG(status.st_mode) else None

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        folder = prefix.rpartition("/")[0]
        if folder:
            check_key(folder, self.uri)
            try:
                self._path(folder)
            except ObjectMissing:
                return
        yield from self._walk(f"{folder}/" if folder else "", prefix)

    def _walk(self, folder: str, prefix: str) -> Iterator[ObjectInfo]:
        for name in self._sorted_names(folder):
            key = folder + name
            if name.endswith("/"):
                if key.startswith(prefix) or prefix.startswith(key):
                    yield from self._walk(key, prefix)
            elif key.startswith(prefix) and (info := self._head_listed(key)):
                yield info

    def _head_listed(self, key: str) -> ObjectInfo | None:
        path = self.root / key
        try:
            if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(self.root):
                return None
            status = path.stat()
        except OSError:  # gone since, or a link to nothing
            return None
        return _describe(key, status) if stat.S_ISREG(status.st_mode) else None

    def _sorted_names(self, folder: str) -> Iterator[str]:
        """Names in one folder, a sub-folder with a trailing slash, so that they sort as whole keys do."""
        last = ""
        while True:
            page: list[str] = []
            with suppress(ObjectMissing), self._explain(folder):
                page = heapq.nsmallest(SORTED_NAMES, (name for name in self._names(folder) if name > last))
            yield from page
            if len(page) < SORTED_NAMES:
                return
            last = page[-1]

    def _names(self, folder: str) -> Iterator[str]:
        with os.scandir(self.root / folder) as entries:
            for entry in entries:
                if not entry.name.startswith(PART_PREFIX):
                    yield f"{entry.name}/" if entry.is_dir(follow_symlinks=False) else entry.name

    def delete(self, key: str) -> None:
        with suppress(ObjectMissing):
            path = self._path(key)
            with self._explain(key):
                path.unlink()

    def locate(self, key: str) -> str:
        return str(self.root / check_key(key, self.uri))

    def presign(self, key: str, life_s: int) -> str | None:
        check_key(key, self.uri)
        return None

    def presign_put(self, key: str, life_s: int, sha256: str) -> PutAddress | None:
        check_key(key, self.uri)
        return None

    def check_writable(self) -> None:
        key = f"{PART_PREFIX}check-{uuid.uuid4().hex}"
        self._sweep_parts()
        target = self.root / key
        with self._explain("", writing=True):
            try:
                with self._part_file(target) as (part, stream):
                    stream.write(b"kontext")
                    _flush(stream)
                    os.link(part, target)
            finally:
                target.unlink(missing_ok=True)

    def _sweep_parts(self) -> None:
        """Remove the part files of writers that were killed."""
        with suppress(OSError):
            for part in self.root.glob(f"{PART_PREFIX}*"):
                with suppress(OSError):
                    if time.time() - part.stat().st_mtime > PART_LIFE_S:
                        part.unlink()

    def _path(self, key: str) -> Path:
        """The file of a key, its folders free of links that leave the root."""
        check_key(key, self.uri)
        if "//" in key or key.endswith("/") or any(part.startswith(PART_PREFIX) for part in key.split("/")):
            raise StorageError(f"{key!r} is no key in {self.uri}: it names no file", code="key_invalid")
        with self._explain(key):
            path = Path(os.path.realpath(self.root / key))
        if not path.is_relative_to(self.root):
            raise StorageError(f"{self.root / key} is a link that leaves {self.uri}", code="key_outside")
        return path

    def _new_part(self) -> Path:
        return self.root / f"{PART_PREFIX}{uuid.uuid4().hex}"

    @contextmanager
    def _part_file(self, target: Path) -> Iterator[tuple[Path, BinaryIO]]:
        """A new hidden file on the root's file system, gone when the block ends; the target's folder is made."""
        part = self._new_part()
        try:
            if not target.parent.is_dir():
                target.parent.mkdir(parents=True, exist_ok=True)
            with part.open("xb") as stream:
                yield part, stream
        finally:
            part.unlink(missing_ok=True)

    @contextmanager
    def _explain(self, key: str, *, writing: bool = False) -> Iterator[None]:
        """Turn an OSError into the StorageError that names the file and what to do."""
        try:
            yield
        except OSError as error:
            raise _translate(error, str(self.root / key), writing) from error


def _translate(error: OSError, path: str, writing: bool) -> StorageError:
    match error.errno:
        case errno.ENOENT | errno.ENOTDIR if not writing:
            return ObjectMissing(f"{path} does not exist")
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return AccessDenied(f"{path}: {error.strerror}; check the owner and mode of the folder")
        case errno.ENOSPC | errno.EDQUOT | errno.EFBIG:
            return StorageFull(f"{path}: {error.strerror}; free some space or choose another folder, then retry")
        case errno.EISDIR | errno.EEXIST | errno.ENOTDIR:
            return StorageError(f"{path} is in the way: a file and a folder share this name", code="key_blocked")
        case errno.EXDEV | errno.ENOTSUP | errno.EMLINK:
            return StorageError(f"{path}: this file system makes no hard links; choose another folder", code="no_links")
        case errno.EIO | errno.ESTALE | errno.ETIMEDOUT | errno.EAGAIN | errno.EMFILE | errno.ENFILE:
            return Unavailable(f"{path}: {error.strerror}; the device or network share does not answer")
        case _:
            return StorageError(f"{path}: {error.strerror or error}")


def _describe(key: str, status: os.stat_result) -> ObjectInfo:
    identity = f"{status.st_ino}-{status.st_size}-{status.st_mtime_ns}".encode()
    return ObjectInfo(key, status.st_size, hashlib.sha256(identity).hexdigest()[:32], status.st_mtime)


def _validate(status: os.stat_result) -> str | None:
    """What changes whenever a file's bytes do; None for a file so new that it may change again within one tick."""
    if time.time() - max(status.st_mtime, status.st_ctime) < SETTLED_S:
        return None
    return f"{status.st_ino}-{status.st_size}-{status.st_mtime_ns}-{status.st_ctime_ns}"


def _fill(stream: BinaryIO, data: bytes | Path) -> None:
    """Write all of it, and flush it to the disk."""
    if isinstance(data, Path):
        with data.open("rb") as source:
            shutil.copyfileobj(source, stream, 1 << 20)
    else:
        stream.write(data)
    _flush(stream)


def _flush(stream: BinaryIO) -> None:
    stream.flush()
    os.fsync(stream.fileno())


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
