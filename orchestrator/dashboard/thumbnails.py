"""Thumbnails: small WebP pictures of sources and results, made once and kept on disk.

Owns the cache below the home, which never grows beyond its bound: what was not looked at for longest goes. Refuses
pictures of more bytes or pixels than the settings allow, formats that photos do not come in, and the web: of a picture
at an https address a worker, whose guard decides where it may go, has kept a small one.
"""

import hashlib
import io
import os
import threading
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from PIL import Image, ImageOps

from orchestrator.settings import Settings
from orchestrator.storage import open_object, open_store

WIDTHS_PX = (96, 320, 640, 1280)
"""The sizes there are, so that nobody fills the disk with all others."""
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
CACHE_BYTES = 512 << 20
# Once the bound is reached, room is made for a while, not for one picture.
KEPT_SHARE = 0.8
QUALITY = 82
# Decoding is work for a core: more at once only make each other wait.
AT_ONCE = 2
PAPER = "#ffffff"


class NoThumbnail(RuntimeError):
    """There is nothing to show; the message says why."""


class Thumbnails:
    """Makes thumbnails and keeps them. Safe to call from several threads; any number of processes share a folder."""

    def __init__(self, settings: Settings, *, cache_bytes: int = CACHE_BYTES) -> None:
        self._settings, self._most_bytes = settings, cache_bytes
        self._folder = settings.home / "thumbnails"
        self._turn = threading.BoundedSemaphore(AT_ONCE)
        self._lock = threading.Lock()
        self._held_bytes: int | None = None

    def tag(self, content: str, width_px: int) -> str:
        """What names a thumbnail of this content at this width: its entity tag, and its file."""
        return hashlib.sha256(f"1:{content}:{width_px}".encode()).hexdigest()[:32]

    def stored(self, uri: str, content: str, width_px: int) -> bytes:
        """The thumbnail of what a worker stored; `content` tells versions apart. Raises NoThumbnail, StorageError."""

        def read() -> bytes:
            store, key = open_object(uri, self._settings)
            return store.read(key, self._settings.max_image_bytes)

        return self._keep(self.tag(content, width_px), width_px, read)

    def source(self, image: str, image_root: str, content: str, width_px: int) -> bytes:
        """A source's thumbnail, of a path below the catalogue's folder or an s3:// URI.

        `content` tells its versions apart: its sha256, where a worker has read it. Raises NoThumbnail, StorageError.
        """
        if "://" in image and not image.startswith("s3://"):
            raise NoThumbnail("pages fetch nothing from the web")
        if not image.startswith("s3://") and (image.startswith(("/", "~")) or ".." in image.split("/")):
            raise NoThumbnail("the picture lies outside its catalogue's folder")

        def read() -> bytes:
            if image.startswith("s3://"):
                store, key = open_object(image, self._settings)
            else:
                store, key = open_store(image_root, self._settings), _plain(image)
            return store.read(key, self._settings.max_image_bytes)

        return self._keep(self.tag(content, width_px), width_px, read)

    def _keep(self, tag: str, width_px: int, read: Callable[[], bytes]) -> bytes:
        path = self._folder / tag[:2] / f"{tag}.webp"
        with suppress(OSError):
            data = path.read_bytes()
            os.utime(path)  # looked at: it stays
            return data
        with self._turn:
            data = shrink(read(), width_px, self._settings.max_image_px)
        with suppress(OSError):  # a full or read-only disk costs time, not the page
            self._store(path, data)
        return data

    def _store(self, path: Path, data: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}-{threading.get_ident()}")
        partial.write_bytes(data)
        partial.replace(path)
        with self._lock:
            if self._held_bytes is not None:
                self._held_bytes += len(data)
            if self._held_bytes is None or self._held_bytes > self._most_bytes:
                self._held_bytes = sweep(self._folder, self._most_bytes)


def shrink(data: bytes, width_px: int, max_px: int) -> bytes:
    """A picture's WebP, upright, on white, at most so wide and high. Raises NoThumbnail for what is no picture."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata; a bomb is refused below, by its header
            with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
                if opened.width * opened.height > max_px:
                    raise NoThumbnail(f"{opened.width} × {opened.height} are more pixels than {max_px:,}")
                opened.draft("RGB", (2 * width_px, 2 * width_px))  # JPEG decodes to about this size, much faster
                picture = ImageOps.exif_transpose(opened)
                picture.thumbnail((width_px, width_px), Image.Resampling.LANCZOS)
                flat = Image.new("RGB", picture.size, PAPER)
                cut = picture.convert("RGBA") if picture.has_transparency_data else None
                flat.paste(cut or picture.convert("RGB"), mask=cut)
    except NoThumbnail:
        raise
    except Exception as error:  # Pillow's decoders raise whatever they met in a broken file
        raise NoThumbnail(f"the picture cannot be read: {type(error).__name__}") from error
    stream = io.BytesIO()
    flat.save(stream, "WEBP", quality=QUALITY, method=4)
    return stream.getvalue()


def sweep(folder: Path, most_bytes: int) -> int:
    """Delete what was not looked at for longest until the rest fits; gives the bytes that are left."""
    files = []
    for path in folder.glob("*/*"):
        with suppress(OSError):
            status = path.stat()
            files.append((status.st_mtime, status.st_size, path))
    held = sum(size for _, size, _ in files)
    if held <= most_bytes:
        return held
    for _, size, path in sorted(files):
        if held <= most_bytes * KEPT_SHARE:
            break
        with suppress(OSError):
            path.unlink()
            held -= size
    return held


def _plain(image: str) -> str:
    return "/".join(part for part in image.split("/") if part not in {"", "."})
