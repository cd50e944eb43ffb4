"""From a URI to a store: `s3://bucket/prefix`, `file:///path` or a folder's path.

Owns the spelling of locations. Refuses other schemes, so that a typing error is not a folder called "s4:".
"""

import os
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from orchestrator.settings import Settings
from orchestrator.storage.folder import FolderStore
from orchestrator.storage.s3 import S3Store
from orchestrator.storage.store import StorageError, Store

_SCHEME = re.compile(r"^([a-zA-Z][a-zA-Z0-9+.-]+):")
_BUCKET = re.compile(r"^[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]$")


def open_store(uri: str, settings: Settings) -> Store:
    """Open the store whose root is `uri`; nothing is read or written yet.

    Raises StorageError(code="location_invalid") saying what was expected.
    """
    uri = str(uri)
    if uri.startswith("s3://"):
        bucket, _, prefix = uri.removeprefix("s3://").partition("/")
        if not _BUCKET.match(bucket):
            raise _wrong(
                uri, "a bucket name has 3 to 63 lower-case letters, digits, dots or dashes: s3://bucket/prefix"
            )
        return S3Store(bucket, prefix.strip("/"), local_url=settings.local_s3_url)
    return FolderStore(read_path(uri))


def open_object(uri: str, settings: Settings) -> tuple[Store, str]:
    """The store and the key of one object, from the absolute URI that `Store.locate` gave."""
    root, key = split_uri(uri)
    return open_store(root, settings), key


def split_uri(uri: str) -> tuple[str, str]:
    """Split an object's URI into a root that `open_store` takes and a key: bucket and key, or folder and file name."""
    if uri.startswith("s3://"):
        bucket, _, key = uri.removeprefix("s3://").partition("/")
        root = f"s3://{bucket}"
    else:
        path = read_path(uri)
        root, key = str(path.parent), path.name
    if not key:
        raise _wrong(uri, "it names no object")
    return root, key


def read_path(uri: str) -> Path:
    """The absolute path that a plain path or a file:// URI names; symbolic links stay as they are."""
    scheme = _SCHEME.match(uri)
    if "\0" in uri or not uri:
        raise _wrong(uri, "expected a folder, file:///folder or s3://bucket/prefix")
    if scheme and scheme[1].lower() == "file":
        parts = urlsplit(uri)
        if parts.netloc not in {"", "localhost"}:
            raise _wrong(uri, "a file URI has three slashes: file:///folder")
        uri = unquote(parts.path)
    elif scheme and "://" in uri:
        raise _wrong(uri, f"{scheme[1]}:// is not supported; use a folder, file:///folder or s3://bucket/prefix")
    return Path(os.path.abspath(os.path.expanduser(uri)))


def _wrong(uri: str, reason: str) -> StorageError:
    return StorageError(f"{uri!r} is no location: {reason}", code="location_invalid")
