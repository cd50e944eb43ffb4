"""Images on their way to a server: hashed here, asked about many at once, and sent where they are missing.

Owns the threads that do so and what is told meanwhile. An image goes straight into the server's store where that has
addresses, else through the server. Refuses to hold an image in memory, and to send one twice.
"""

import hashlib
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any, TypeVar

import httpx2
from pydantic import BaseModel

from orchestrator.client.errors import ApiError
from orchestrator.client.shapes import Upload
from orchestrator.client.transport import Transport
from orchestrator.storage import StorageError, Store

S = TypeVar("S")
T = TypeVar("T")
THREADS = 8
PATIENCE_S = 120.0
CHUNK_BYTES = 1 << 18
TELL_S = 0.2
# Answers of a store that will be the same for the next image.
REFUSED = frozenset({401, 403, 404, 405, 501})
# What an image alone is to blame for; its neighbours go on.
ITS_OWN = frozenset({"image_too_large"})


@dataclass(frozen=True)
class Sending:
    """How far images are on their way: bytes done of all there are, images sent, and those that lay there already."""

    bytes_total: int = 0
    bytes_done: int = 0
    sent: int = 0
    skipped: int = 0


@dataclass(frozen=True)
class LocalImage:
    """An image of this machine: a key of a store."""

    store: Store
    key: str
    size_bytes: int


class _Uploads(BaseModel):
    data: list[Upload]


class Stopped(Exception):
    """The caller gave up; what was on its way is left."""


class Sender:
    """Sends images in pages of at most a thousand. `tell` hears from the calling thread how far it is."""

    def __init__(self, transport: Transport, bytes_total: int, tell: Callable[[Sending], None]) -> None:
        self._transport, self._tell = transport, tell
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._now = Sending(bytes_total)
        self._direct = True

    def send(self, images: Sequence[LocalImage]) -> list[str | StorageError | ApiError]:
        """Bring images to the server; gives each one's name there, or what is wrong with it alone.

        Raises ApiError for what concerns all. Interrupted, it leaves what it has sent, which is skipped next time.
        """
        with ThreadPoolExecutor(THREADS) as threads:
            try:
                return self._send(images, threads)
            except BaseException:
                self._stop.set()
                threads.shutdown(wait=False, cancel_futures=True)
                raise

    def _send(self, images: Sequence[LocalImage], threads: ThreadPoolExecutor) -> list[str | StorageError | ApiError]:
        names: list[str | StorageError | ApiError] = self._each(self._hash, images, threads)
        wanted: dict[str, LocalImage] = {}
        for image, name in zip(images, names, strict=True):
            if isinstance(name, str) and name not in wanted:
                wanted[name] = image
            else:
                self._note(image.size_bytes)
        plan = self._plan(list(wanted))
        for upload in plan:
            if upload.exists:
                self._note(wanted[upload.name].size_bytes, skipped=1)
        missing = [upload for upload in plan if not upload.exists]
        done = self._each(lambda upload: self._put(upload, wanted[upload.name]), missing, threads)
        self._tell(self._now)
        wrong = {upload.name: error for upload, error in zip(missing, done, strict=True) if error is not None}
        return [wrong.get(name, name) if isinstance(name, str) else name for name in names]

    def _each(self, work: Callable[[S], T], items: Sequence[S], threads: ThreadPoolExecutor) -> list[T]:
        """The results of many calls, side by side; tells how far they are while they last."""
        futures = [threads.submit(work, item) for item in items]
        pending = set(futures)
        while pending:
            done, pending = wait(pending, TELL_S)
            self._tell(self._now)
            for future in done:
                future.result()  # the first error ends the others
        return [future.result() for future in futures]

    def _hash(self, image: LocalImage) -> str | StorageError:
        """The name of an image: the SHA-256 of its bytes, and its usual ending."""
        if self._stop.is_set():
            raise Stopped
        try:
            with image.store.open(image.key) as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()  # type: ignore[arg-type]
        except StorageError as error:
            return error
        ending = PurePosixPath(image.key).suffix.lower()
        usual = 1 < len(ending) <= 6 and ending[1:].isascii() and ending[1:].isalnum()
        return f"{digest}{ending if usual else ''}"

    def _plan(self, names: list[str]) -> list[Upload]:
        """Where each of these is to be sent, asked in one request."""
        if not names:
            return []
        asked = {"json": {"names": names}, "again": True, "patience_s": PATIENCE_S}
        plan: _Uploads = self._transport.read(_Uploads, "POST", "/v1/uploads", **asked)
        return plan.data

    def _put(self, upload: Upload, image: LocalImage) -> ApiError | None:
        """Send one image; gives what is wrong with it alone."""
        if not (upload.url and self._direct and upload.url.startswith("http") and self._put_into_store(upload, image)):
            headers = {"content-length": str(image.size_bytes), "content-type": "application/octet-stream"}
            given: dict[str, Any] = {"anew": self._content(image), "headers": headers, "patience_s": PATIENCE_S}
            try:
                self._transport.call("PUT", f"/v1/uploads/{upload.name}", **given)
            except ApiError as error:
                if error.code in ("wrong_digest", "cut_short"):
                    detail = f"{image.store.locate(image.key)} changed while it was sent; make the same call again"
                    raise ApiError(detail, where=error.where, code="image_changed", status=error.status) from error
                if error.code not in ITS_OWN:
                    raise
                return error
        self._note(0, sent=1)
        return None

    def _put_into_store(self, upload: Upload, image: LocalImage) -> bool:
        """Send one image to the store's own address; False where that did not work, and the server shall take it."""
        assert upload.url is not None
        headers = {**upload.headers, "content-length": str(image.size_bytes)}
        content = self._content(image)
        try:
            answer = self._transport.store("PUT", upload.url, headers=headers, **content())
        except (httpx2.ConnectError, httpx2.ConnectTimeout):
            self._direct = False  # an address that is none from here, as that of a server's embedded store
        except httpx2.TransportError:
            pass
        else:
            # 412: somebody else has sent the same one meanwhile.
            if answer.is_success or answer.status_code == 412:
                return True
            self._direct = answer.status_code not in REFUSED
        content.take_back()
        return False

    def _content(self, image: LocalImage) -> "_Content":
        return _Content(image, self._note, self._stop)

    def _note(self, size_bytes: int, *, sent: int = 0, skipped: int = 0) -> None:
        with self._lock:
            now = self._now
            done = now.bytes_done + size_bytes
            self._now = replace(now, bytes_done=done, sent=now.sent + sent, skipped=now.skipped + skipped)


class _Content:
    """An image's bytes for a request, from the beginning at each call, which takes back what the one before told."""

    def __init__(self, image: LocalImage, note: Callable[[int], None], stop: threading.Event) -> None:
        self._image, self._note, self._stop, self._told = image, note, stop, 0

    def __call__(self) -> dict[str, Iterator[bytes]]:
        if self._stop.is_set():
            raise Stopped
        self.take_back()
        return {"content": self._read()}

    def take_back(self) -> None:
        """Count as not sent what was sent in vain."""
        self._note(-self._told)
        self._told = 0

    def _read(self) -> Iterator[bytes]:
        with self._image.store.open(self._image.key) as stream:
            while chunk := stream.read(CHUNK_BYTES):
                if self._stop.is_set():
                    raise Stopped
                self._told += len(chunk)
                self._note(len(chunk))
                yield chunk
