"""The protocol of a store, its errors, and what a key may be.

Refuses keys that could name two objects or leave the root: `..`, a leading slash, control characters.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO, ClassVar, Protocol

MAX_KEY_BYTES = 1024
NO_METADATA: Mapping[str, str] = MappingProxyType({})
BINARY = "application/octet-stream"
_STRONG_ETAG = re.compile(r'"[\x21\x23-\x7e]{1,200}"')


class StorageError(Exception):
    """A store could not do what was asked. `code` is a stable word; `transient` says that trying again may help."""

    code: str = "storage_failed"
    transient: ClassVar[bool] = False

    def __init__(self, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or type(self).code


class ObjectMissing(StorageError):
    """Nothing lies under this key."""

    code = "object_missing"


class TooLarge(StorageError):
    """The object has more bytes than the caller allows."""

    code = "object_too_large"


class StorageFull(StorageError):
    """No room is left on the device or in the quota."""

    code = "storage_full"


class AccessDenied(StorageError):
    """The location exists, but these credentials or this user may not do this."""

    code = "access_denied"


class Unavailable(StorageError):
    """The network or the server failed; the same call may succeed later."""

    code = "storage_unavailable"
    transient = True


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What a store knows of an object without reading it. `modified_s` counts seconds since 1970 UTC."""

    key: str
    size_bytes: int
    etag: str
    modified_s: float


@dataclass(frozen=True, slots=True)
class Content:
    """The bytes of an object, and the validator that tells later whether they are these still; None: nothing tells."""

    data: bytes
    validator: str | None


@dataclass(frozen=True, slots=True)
class PutAddress:
    """Where an object may be PUT, and the headers that must come with it."""

    url: str
    headers: Mapping[str, str]


class Store(Protocol):
    """Objects under one root. Every method may raise StorageError; the message names the URI and what to do."""

    @property
    def uri(self) -> str:
        """The canonical root, without a trailing slash."""

    @property
    def ignores_case(self) -> bool:
        """Whether "A" and "a" are one key here, as on the file systems of macOS and Windows."""

    def put(
        self, key: str, data: bytes | Path, *, content_type: str = BINARY, metadata: Mapping[str, str] = NO_METADATA
    ) -> bool:
        """Write once, from memory or streamed from a file. True: written, whole and durable; False: the key exists
        already and is untouched.

        Metadata goes where the store has room for it (S3 headers); a folder keeps none.
        """

    def replace(self, key: str, data: bytes | Path, *, content_type: str = BINARY) -> None:
        """Write or overwrite at once, from memory or streamed from a file: readers see the old or the new, whole."""

    def get(self, key: str) -> bytes:
        """The whole object. Raises ObjectMissing."""

    def read(self, key: str, max_bytes: int) -> bytes:
        """The whole object, never holding more than `max_bytes` + 1. Raises ObjectMissing, TooLarge."""

    def read_unless(self, key: str, max_bytes: int, validator: str | None) -> Content | None:
        """As `read`, with the validator of these bytes; None where `validator` still holds: then none is read."""

    def open(self, key: str, start: int = 0) -> AbstractContextManager[BinaryIO]:
        """A binary stream of the object from byte `start` on, which exists. Raises ObjectMissing on entry."""

    def head(self, key: str) -> ObjectInfo | None:
        """What is known of the object, or None when the key is free."""

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Objects whose key starts with `prefix`, in constant memory, in an order that is the same every time.

        It is the byte order of the keys, except on servers that list a folder's keys together (SeaweedFS).
        """

    def delete(self, key: str) -> None:
        """Remove the object; a free key is no error."""

    def locate(self, key: str) -> str:
        """The absolute URI of a key, which `open_object` reads back."""

    def presign(self, key: str, life_s: int) -> str | None:
        """An https address that gives the object to whoever has it, for so long; None where the store has none."""

    def presign_put(self, key: str, life_s: int, sha256: str) -> PutAddress | None:
        """An address that takes these very bytes (a hexadecimal digest tells) from whoever has it, once, for so long.

        None where the store has none, or does not hold what comes to its digest.
        """

    def check_writable(self) -> None:
        """Write and remove a small object. Raises StorageError saying why results could not be written here."""


def strong_etag(etag: str | None) -> str | None:
    """An entity tag as HTTP writes it, where it vouches for every byte; None for a weak, missing or odd one."""
    return etag if etag and _STRONG_ETAG.fullmatch(etag) else None


def check_key(key: str, root_uri: str) -> str:
    """Return the key, or raise StorageError(code="key_invalid") when it could leave the root or name two objects."""
    parts = key.split("/")
    if not key or parts[0] == "" or ".." in parts or "." in parts:
        reason = "it must be a relative path without . or .."
    elif any(ord(character) < 32 or ord(character) == 127 for character in key):
        reason = "it holds a control character"
    elif len(key.encode("utf-8", "surrogateescape")) > MAX_KEY_BYTES:
        reason = f"it is longer than {MAX_KEY_BYTES} bytes"
    else:
        return key
    raise StorageError(f"{key[:200]!r} is no key in {root_uri}: {reason}", code="key_invalid")
