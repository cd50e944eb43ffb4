"""A folder of images, or an S3 prefix, as a catalogue: each image is a row.

Owns which files count as images. Refuses hidden files and folders.
"""

from collections.abc import Iterator

from orchestrator.catalogs.catalogue import BAD_TEXT, IMAGE, CatalogueError, Problem, Row
from orchestrator.storage import StorageError, Store

EXTENSIONS = frozenset({"jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff", "gif"})


class Pictures:
    """Images below a store's root, with their sub-folders, in the order of their paths. A row's line is its number."""

    columns = (IMAGE,)
    warnings: tuple[str, ...] = ()

    def __init__(self, store: Store) -> None:
        self._store = store
        self.uri = self.image_root = store.uri

    def is_empty(self) -> bool:
        return next(self.rows(), None) is None

    def rows(self, after_line: int = 0) -> Iterator[Row]:
        line = 0
        try:
            for info in self._store.list():
                if _is_image(info.key):
                    line += 1
                    if line > after_line:
                        yield self._read(line, info.key)
        except StorageError as error:
            raise CatalogueError(f"{self.uri} cannot be listed after {line} images: {error}") from error

    def _read(self, line: int, key: str) -> Row:
        if key.isprintable():
            return Row(line, {IMAGE: key}, None)
        shown = BAD_TEXT.sub("\ufffd", key)
        if shown == key and not any(ord(character) < 32 or ord(character) == 127 for character in key):
            return Row(line, {IMAGE: key}, None)
        message = (
            f"{self.uri}, image {line}: the name {shown!r} holds control characters or is not UTF-8; rename the file"
        )
        return Row(line, {IMAGE: shown}, Problem("bad_file_name", message, IMAGE))


def _is_image(key: str) -> bool:
    if any(part.startswith(".") for part in key.split("/")):
        return False
    _, dot, extension = key.rpartition(".")
    return bool(dot) and extension.lower() in EXTENSIONS
