"""Source images: from the reference in a catalogue to bytes, and from bytes to a picture.

Owns where a reference may point: below the catalogue's folder or prefix, into S3, or to an allowed https host. Refuses
everything else, and files beyond the size limit. Pictures are opened by `workers.photo`, https by `workers.download`.
"""

import os

from orchestrator.settings import Settings
from orchestrator.storage import ObjectMissing, StorageError, TooLarge, open_object, open_store, split_uri
from workers.download import download
from workers.photo import open_photo
from workers.source_error import SourceError

__all__ = ["SourceError", "fetch", "open_photo", "resolve"]


def resolve(reference: str, image_root: str) -> str:
    """The absolute form of a reference: an s3:// or https:// URI, or a path below `image_root`, links followed.

    `image_root` is the catalogue's folder or `s3://bucket/prefix`. Raises SourceError: `path_outside_catalogue` for an
    absolute path and for one that climbs out, by `..` or by a link; `unsupported_scheme`; `image_missing` for no name.
    """
    scheme = reference.partition("://")[0].lower() if "://" in reference else ""
    if scheme in {"s3", "https"}:
        return f"{scheme}{reference[len(scheme) :]}"
    if scheme:
        raise _refuse(
            "unsupported_scheme", f"{reference[:300]}: {scheme}:// is not supported; use a path, s3:// or https://"
        )
    if not reference.strip("/. ") or "\0" in reference:
        raise _refuse("image_missing", f"{reference[:300]!r} names no image")
    parts = reference.split("/")
    if reference.startswith(("/", "~")) or ".." in parts:
        raise _outside(reference, image_root)
    below = "/".join(part for part in parts if part not in {"", "."})
    if image_root.startswith("s3://"):
        return f"{image_root.rstrip('/')}/{below}"
    root = os.path.realpath(image_root)
    path = os.path.realpath(os.path.join(root, below))
    if os.path.commonpath([root, path]) != root:
        raise _outside(reference, image_root)
    return path


def fetch(reference: str, image_root: str, settings: Settings) -> bytes:
    """The bytes of an image, at most `settings.max_image_bytes` of them.

    Raises SourceError, its message naming the reference: what `resolve` refuses, `image_missing`, `image_too_large`,
    what the network does, and the codes of storage. A network or server that fails is `transient`, the rest `input`.
    """
    uri = resolve(reference, image_root)
    if uri.startswith("https://"):
        return download(uri, settings)
    try:
        if uri.startswith("s3://"):
            store, key = open_object(uri, settings)
        else:
            folder, key = split_uri(uri)
            store = open_store(folder, settings)
        return store.read(key, settings.max_image_bytes)
    except ObjectMissing as error:
        raise _refuse("image_missing", f"{reference[:300]}: {error}; correct the path or add the image") from error
    except TooLarge as error:
        raise _refuse("image_too_large", f"{reference[:300]}: {error} (KONTEXT_MAX_IMAGE_BYTES)") from error
    except StorageError as error:
        raise SourceError(
            error.code, "transient" if error.transient else "input", f"{reference[:300]}: {error}"
        ) from error


def _outside(reference: str, image_root: str) -> SourceError:
    hint = "give a path relative to the catalogue, s3:// or https://"
    return _refuse("path_outside_catalogue", f"{reference[:300]} lies outside {image_root}; {hint}")


def _refuse(code: str, message: str) -> SourceError:
    return SourceError(code, "input", message)
