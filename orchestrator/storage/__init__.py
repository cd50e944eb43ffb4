"""Where bytes lie: one protocol, two stores (S3 and a local folder), one conformance suite for both.

Owns keys, locations and the errors of storage. Refuses to overwrite a result: what exists stays.
"""

from orchestrator.storage.locations import open_object, open_store, split_uri
from orchestrator.storage.names import previews_key, result_name, sight_key
from orchestrator.storage.store import (
    AccessDenied,
    Content,
    ObjectInfo,
    ObjectMissing,
    PutAddress,
    StorageError,
    StorageFull,
    Store,
    TooLarge,
    Unavailable,
    strong_etag,
)

__all__ = [
    "AccessDenied",
    "Content",
    "ObjectInfo",
    "ObjectMissing",
    "PutAddress",
    "StorageError",
    "StorageFull",
    "Store",
    "TooLarge",
    "Unavailable",
    "open_object",
    "open_store",
    "previews_key",
    "result_name",
    "sight_key",
    "split_uri",
    "strong_etag",
]
