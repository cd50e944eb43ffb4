"""Source images: from the reference in a catalogue to bytes.

Owns where a reference may point: below the catalogue's folder or prefix, into S3, or to an allowed https host. Refuses
everything else, and files beyond the size limit. https is `workers.download`'s.
"""

import re

from orchestrator.settings import Settings
from orchestrator.storage import Content, ObjectMissing, StorageError, TooLarge, open_store, split_uri
from workers.download import download
from workers.source_error import SourceError, show

__all__ = ["SourceError", "check_digest", "fetch", "locate", "resolve"]
INPUTS = "/inputs"
"""The end of the folder that holds images sent to the API, each under its SHA-256."""
_SENT = re.compile(r"([0-9a-f]{64})(\.[a-z0-9]{1,5})?")


def resolve(reference: str, image_root: str) -> tuple[str, str]:
    """The root of a store and the key in it that a path or an s3:// URI names.

    `image_root` is the catalogue's folder or `s3://bucket/prefix`; a path lies below it. Raises SourceError:
    `path_outside_catalogue` for an absolute path and for one that climbs out by `..` (the store refuses links that do);
    `unsupported_scheme`; `image_missing` for no name.
    """
    scheme = _scheme(reference)
    if scheme == "s3":
        return split_uri(f"s3{reference[2:]}")
    if scheme:
        raise _refuse(
            "unsupported_scheme", f"{show(reference)}: {scheme}:// is not supported; use a path, s3:// or https://"
        )
    if not reference.strip("/. ") or "\0" in reference:
        raise _refuse("image_missing", f"{show(reference)!r} names no image")
    parts = reference.split("/")
    if reference.startswith(("/", "~")) or ".." in parts:
        raise _outside(reference, image_root)
    return image_root, "/".join(part for part in parts if part not in {"", "."})


def locate(reference: str, image_root: str) -> str:
    """The one spelling of where an image lies, whichever catalogue names it. Raises SourceError as `resolve` does."""
    if _scheme(reference) == "https":
        return f"https{reference[5:]}"
    root, key = resolve(reference, image_root)
    return f"{root.rstrip('/')}/{key}"


def fetch(reference: str, image_root: str, settings: Settings, validator: str | None = None) -> Content | None:
    """The bytes of an image, at most `settings.max_image_bytes` of them, with what tells later whether they changed.

    None where `validator`, which an earlier content came with, still holds: then no byte of the image was read.
    Raises SourceError, its message naming the reference: what `resolve` refuses, `image_missing`, `image_too_large`,
    what the network does, and the codes of storage. A network or server that fails is `transient`, the rest `input`.
    """
    if _scheme(reference) == "https":
        return download(f"https{reference[5:]}", settings, validator)
    try:
        root, key = resolve(reference, image_root)
        return open_store(root, settings).read_unless(key, settings.max_image_bytes, validator)
    except ObjectMissing as error:
        raise _refuse("image_missing", f"{show(reference)}: {error}; correct the path or add the image") from error
    except TooLarge as error:
        raise _refuse("image_too_large", f"{show(reference)}: {error} (KONTEXT_MAX_IMAGE_BYTES)") from error
    except StorageError as error:
        if error.code == "key_outside":
            raise _outside(reference, image_root) from error
        raise SourceError(
            error.code, "transient" if error.transient else "input", f"{show(reference)}: {error}"
        ) from error


def check_digest(reference: str, image_root: str, sha256: str) -> None:
    """Raise SourceError `wrong_digest` for an image that was sent to the API and is not what its name says.

    Whoever may write to the store by himself cannot so put another picture under a name that others rely on.
    """
    sent = _SENT.fullmatch(reference) if image_root.rstrip("/").endswith(INPUTS) else None
    if sent is not None and sent[1] != sha256:
        hint = "somebody has replaced it; remove it there and send the image again"
        raise _refuse("wrong_digest", f"{show(reference)}: the bytes in {image_root} have another SHA-256; {hint}")


def _scheme(reference: str) -> str:
    return reference.partition("://")[0].lower() if "://" in reference else ""


def _outside(reference: str, image_root: str) -> SourceError:
    hint = "give a path relative to the catalogue, s3:// or https://"
    return _refuse("path_outside_catalogue", f"{show(reference)} lies outside {image_root}; {hint}")


def _refuse(code: str, message: str) -> SourceError:
    return SourceError(code, "input", message)
