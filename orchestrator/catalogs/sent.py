"""Catalogues that were sent to us: a file of rows, a list of items, an archive of images.

Owns their opening under the name they came with. Relative images lie where uploads are stored. Refuses archives that
unpack to more than they may, and names that leave the archive.
"""

import hashlib
import json
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from orchestrator.catalogs.catalogue import IMAGE, Catalogue, CatalogueError, Row
from orchestrator.catalogs.lines import Lines
from orchestrator.catalogs.opening import READERS
from orchestrator.catalogs.pictures import EXTENSIONS
from orchestrator.catalogs.relayed import SOURCE
from orchestrator.settings import Settings
from orchestrator.storage import Store

ENTRIES_MAX = 100_000
# Photos hardly shrink in an archive; plain bitmaps do, and those of a large archive are let through.
UNPACKED_TIMES_SENT = 4
# The readers of the others unpack all that they are given at once, whatever its size.
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


@dataclass
class Sent:
    """A catalogue under another name, told apart by the digest of what was sent."""

    catalogue: Catalogue
    uri: str
    version: str

    @property
    def image_root(self) -> str:
        return self.catalogue.image_root

    @property
    def named_by(self) -> str:
        """The column by which people know a row's image."""
        return getattr(self.catalogue, "named_by", IMAGE)

    @property
    def columns(self) -> tuple[str, ...]:
        return self.catalogue.columns

    @property
    def warnings(self) -> tuple[str, ...]:
        return self.catalogue.warnings

    def rows(self, after_line: int = 0) -> Iterator[Row]:
        return self.catalogue.rows(after_line)

    def is_empty(self) -> bool:
        return self.catalogue.is_empty()


class _Unpacked(Lines):
    """The images of an archive, each known by its entry's name."""

    named_by = SOURCE


def open_items(lines: Path, image_root: str, version: str) -> Sent:
    """Items that `split_items` wrote out; a row's line is the item's number."""
    return Sent(Lines(lines, "items", image_root), "sent:items", version)


def open_sent(path: Path, name: str, image_root: str, version: str) -> Sent:
    """A file of rows, its kind told by its name. Raises CatalogueError."""
    shown = PurePosixPath(name.replace("\\", "/")).name[:200] or "catalogue"
    suffix = PurePosixPath(shown).suffix.lower()
    if suffix not in READERS:
        raise CatalogueError(f"{shown}: unknown kind of file; expected {', '.join(READERS)} or .zip with images")
    return Sent(READERS[suffix](path, shown, image_root), f"sent:{shown}", version)


def unpack_images(archive: Path, name: str, inputs: Store, lines: Path, settings: Settings, *, version: str) -> Sent:
    """Store each image of a ZIP as `<sha256>.<kind>` in `inputs`, once, and open a catalogue of them.

    Entries that are no images are left. Raises CatalogueError for what is no ZIP, is encrypted, packed otherwise than
    by deflate, or holds none, and, before anything is stored, for images that are more than 4 × `max_upload_bytes`
    together; an image larger than `max_image_bytes` is named. Raises StorageError.
    """
    max_bytes, max_total_bytes = settings.max_image_bytes, UNPACKED_TIMES_SENT * settings.max_upload_bytes
    shown = PurePosixPath(name.replace("\\", "/")).name[:200] or "archive.zip"
    count = 0
    try:
        with zipfile.ZipFile(archive) as opened, lines.open("w", encoding="utf-8") as rows:
            entries = [entry for entry in opened.infolist() if _is_image(entry)]
            _check_entries(shown, entries, max_total_bytes)
            for entry in entries:
                with opened.open(entry) as stream:
                    data = stream.read(max_bytes + 1)
                if len(data) > max_bytes:
                    raise CatalogueError(f"{shown}: {entry.filename[:200]} is larger than {max_bytes:,} bytes")
                key = f"{hashlib.sha256(data).hexdigest()}{PurePosixPath(entry.filename).suffix.lower()}"
                inputs.put(key, data)
                rows.write(json.dumps({IMAGE: key, SOURCE: entry.filename.lstrip("/")}) + "\n")
                count += 1
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError, EOFError, OSError) as error:
        raise CatalogueError(f"{shown} cannot be unpacked: {error}") from error
    if not count:
        raise CatalogueError(f"{shown} holds no images ({', '.join(sorted(EXTENSIONS))})")
    return Sent(_Unpacked(lines, shown, inputs.uri), f"sent:{shown}", version)


def _check_entries(shown: str, entries: Sequence[zipfile.ZipInfo], max_total_bytes: int) -> None:
    """Raise CatalogueError for an archive that must not be unpacked."""
    if len(entries) > ENTRIES_MAX:
        raise CatalogueError(f"{shown} holds {len(entries):,} images; {ENTRIES_MAX:,} are the most")
    other = next((entry for entry in entries if entry.compress_type not in METHODS), None)
    if other is not None:
        raise CatalogueError(f"{shown}: {other.filename[:200]} is packed by another method than deflate; pack it anew")
    # No entry unpacks to more than it says of itself: its reader stops there.
    total_bytes = sum(entry.file_size for entry in entries)
    if total_bytes > max_total_bytes:
        raise CatalogueError(
            f"{shown} unpacks to {total_bytes:,} bytes of images, more than the {max_total_bytes:,} allowed; send it "
            "in parts, or the images by themselves"
        )


def _is_image(entry: zipfile.ZipInfo) -> bool:
    parts = PurePosixPath(entry.filename).parts
    hidden = any(part.startswith((".", "__MACOSX")) for part in parts)
    return not entry.is_dir() and not hidden and PurePosixPath(entry.filename).suffix.lower()[1:] in EXTENSIONS
