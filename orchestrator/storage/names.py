"""File names for results: from any custom_id to a name that is safe on every file system.

Owns the one rule that two different ids never share a name. Refuses nothing: every id has a name.
"""

import hashlib
import re
import unicodedata

SUFFIX = ".png"
MAX_NAME_BYTES = 200
MAX_PART_BYTES = 120
DIGEST_CHARACTERS = 16
_STEM_BYTES = MAX_NAME_BYTES - len(SUFFIX) - 1 - DIGEST_CHARACTERS

_UNSAFE = re.compile(r'[\x00-\x1f\x7f<>:"\\|?*\ud800-\udfff\u0080-\u009f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff]')
# Reserved by Windows, whatever follows the first dot.
_RESERVED = re.compile(r"(?i)^(con|prn|aux|nul|conin\$|conout\$|clock\$|(com|lpt)[0-9¹²³])\s*(\.|$)")

# Endings that this module gives: an id that has one of itself must not stand where another's result goes.
_CLAIMED = re.compile(rf"(~[0-9a-f]{{{DIGEST_CHARACTERS}}}|(?i:\.take[0-9]+))$")


def result_name(custom_id: str, take: int = 1, *, ignore_case: bool = False) -> str:
    """Name the result of a job: sub-folders kept, `.png` added: "a/b c" -> "a/b c.png", its take 2 "a/b c.take2.png".

    At most 200 bytes of UTF-8. An id that had to be altered or shortened carries a digest of the whole id, so that no
    two ids collide. `ignore_case` (give it `store.ignores_case`) does the same to every id that is not in lower case:
    there "IMG_1" and "img_1" are one file.
    """
    ending = f".take{take}" if take > 1 else ""
    parts = (_make_safe(part) for part in custom_id.split("/") if part not in {"", ".", ".."})
    stem = _cut("/".join(parts), _STEM_BYTES - len(ending)).rstrip("/. ")
    if not stem or stem != custom_id or _CLAIMED.search(stem) or (ignore_case and stem != stem.casefold()):
        digest = hashlib.sha256(custom_id.encode("utf-8", "surrogatepass")).hexdigest()[:DIGEST_CHARACTERS]
        stem = f"{stem or 'result'}~{digest}"
    return stem + ending + SUFFIX


def previews_key(custom_id: str, take: int = 1, *, ignore_case: bool = False) -> str:
    """Where the previews of a result lie, in the same store: no result's name begins with a dot."""
    return f".previews/{result_name(custom_id, take, ignore_case=ignore_case)}"


def sight_key(image_sha256: str) -> str:
    """Where a small picture of a source from the web lies, beside the results of its batch."""
    return f".sights/{image_sha256}.webp"


def _make_safe(part: str) -> str:
    part = _cut(_UNSAFE.sub("_", unicodedata.normalize("NFC", part)).strip(), MAX_PART_BYTES)
    # A folder called a.png would stand where the result of the id "a" goes.
    if _RESERVED.match(part) or part.startswith(".") or part.lower().endswith(SUFFIX):
        part = f"_{part.strip('.')}_"
    return part or "_"


def _cut(text: str, max_bytes: int) -> str:
    return text.encode()[:max_bytes].decode("utf-8", "ignore").rstrip(". ")
