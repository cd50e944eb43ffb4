"""A batch on its way to a server: rows of a catalogue of this machine with their images, items, or a catalogue's URI.

Owns that one submission makes one batch, however often it is cut off: its Idempotency-Key is kept in a folder until the
server has said that it holds every row, and the same call finds it there. Rows go through a temporary file: memory does
not grow with them.
"""

import hashlib
import json
import secrets
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

import httpx2

from orchestrator.catalogs import Catalogue, Problem, Row
from orchestrator.catalogs.catalogue import IMAGE
from orchestrator.catalogs.relayed import SUFFIX, write_header, write_row
from orchestrator.client.errors import ApiError
from orchestrator.client.sending import PATIENCE_S, LocalImage, Sender, Sending
from orchestrator.client.shapes import Asked, Batch, DryRun
from orchestrator.client.transport import CONNECT_S, WRITE_S, Transport
from orchestrator.storage import StorageError, Store

PAGE_ROWS = 256
STORING_S = 900.0
"""How long a server may take over the rows of one request."""
POST = "POST /v1/batches"
IN_PROGRESS = frozenset({409})
"""A call before this one, that was cut off here, is still being worked on there."""
IN_DOUBT = frozenset({401, 403, *IN_PROGRESS})
"""Answers that do not say whether a call before this one made a batch: the key may have been revoked since."""


@dataclass(frozen=True)
class Progress:
    """Rows read so far, and how far their images are."""

    rows: int
    images: Sending


Tell = Callable[[Progress], None]


def submit_catalogue(
    transport: Transport, catalogue: Catalogue, images: Store, asked: Asked, memory: "Memory", tell: Tell
) -> Batch:
    """Send a catalogue's rows, before them the images that they name by a path; these lie in `images`.

    An image that is missing or too large fails its own row. Raises ApiError, CatalogueError, StorageError.
    """
    with _spool() as (path, file):
        bytes_total = sum(_sizes(catalogue, images))
        _write_rows(transport, catalogue, images, bytes_total, file, tell)
        with memory.keep(transport.server, _digest(path), asked) as key:
            batch: Batch = transport.parse(Batch, _post_file(transport, path, catalogue.uri, asked, key), POST)
            return batch


def dry_run_catalogue(transport: Transport, catalogue: Catalogue, images: Store, asked: Asked) -> DryRun:
    """What a catalogue would become; no image is sent, but whether each is there is looked at."""
    with _spool() as (path, file):
        write_header(file, catalogue.columns, catalogue.warnings)
        for row in catalogue.rows():
            found = _find(row, images)
            write_row(file, row._replace(problem=found) if isinstance(found, Problem) else row)
        file.flush()
        answer = _post_file(transport, path, catalogue.uri, asked, None, dry_run="true")
        told: DryRun = transport.parse(DryRun, answer, POST)
        return told


def submit_items(transport: Transport, items: Iterable[Mapping[str, Any]], asked: Asked, key: str | None) -> Batch:
    """Send rows given one by one, each with `image` and any column that a catalogue may have."""
    with _spool() as (path, file):
        file.write(json.dumps(_members(asked))[:-1] + ', "items": [')
        for number, item in enumerate(items):
            file.write(f"{',' if number else ''}\n{json.dumps(dict(item))}")
        file.write("]}")
        file.flush()
        with path.open("rb") as stream:
            size = path.stat().st_size
            return _post_json(transport, lambda: {"content": _from_start(stream)}, size, key or new_key())


def submit_uri(transport: Transport, uri: str, asked: Asked, memory: "Memory") -> Batch:
    """Make a batch of a catalogue that the server reads itself: `s3://…`, or for administrators a path of its disk."""
    body = json.dumps({**_members(asked), "catalogue": uri}).encode()
    with memory.keep(transport.server, hashlib.sha256(body).hexdigest(), asked) as key:
        return _post_json(transport, lambda: {"content": body}, len(body), key)


def dry_run_uri(transport: Transport, uri: str, asked: Asked) -> DryRun:
    """What such a catalogue would become."""
    body = {**_members(asked), "catalogue": uri, "dry_run": True}
    told: DryRun = transport.read(DryRun, "POST", "/v1/batches", json=body, again=True, timeout=_timeout())
    return told


class Memory:
    """The keys of submissions that have not ended, in a folder; None: only as long as the call lasts.

    `until_forgotten` keeps the key of a submission that went well too, until `forget` is called.
    """

    def __init__(self, folder: Path | None, *, until_forgotten: bool = False) -> None:
        self._folder, self._until_forgotten = folder, until_forgotten
        self._path: Path | None = None

    @contextmanager
    def keep(self, server: str, rows_sha256: str, asked: Asked) -> Iterator[str]:
        """The Idempotency-Key of a submission: the one that an interrupted call left, else a new one.

        It is forgotten once the block ends well, or with an error that says that no batch was made.
        """
        if self._folder is None:
            yield new_key()
            return
        told = json.dumps([server, rows_sha256, asdict(asked)], sort_keys=True)
        self._path = self._folder / f"{hashlib.sha256(told.encode()).hexdigest()[:32]}.key"
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not self._path.exists():
            part = self._path.with_suffix(f".{new_key()}")
            part.write_text(new_key())
            part.replace(self._path)
        try:
            yield self._path.read_text()
        except ApiError as error:
            if error.callers_fault and error.status not in IN_DOUBT:
                self.forget()
            raise
        if not self._until_forgotten:
            self.forget()

    def forget(self) -> None:
        """The submission has ended: the same call makes another batch."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)


def new_key() -> str:
    """An Idempotency-Key that nobody has used."""
    return secrets.token_hex(16)


def _write_rows(
    transport: Transport, catalogue: Catalogue, images: Store, bytes_total: int, file: TextIO, tell: Tell
) -> None:
    """Write the rows to a file, each with the name of its image, which has been sent by then."""
    count = 0
    sender = Sender(transport, bytes_total, lambda now: tell(Progress(count, now)))
    write_header(file, catalogue.columns, catalogue.warnings)
    rows = catalogue.rows()
    while page := list(islice(rows, PAGE_ROWS)):
        found = [_find(row, images) for row in page]
        local = [image for image in found if isinstance(image, LocalImage)]
        names = iter(sender.send(local))
        for row, image in zip(page, found, strict=True):
            sent = next(names) if isinstance(image, LocalImage) else image
            if isinstance(sent, Exception):
                sent = Problem(sent.code, f"{(row.values[IMAGE] or '')[:300]}: {sent}", IMAGE)
            if isinstance(sent, Problem):
                write_row(file, row._replace(problem=sent))
            else:
                write_row(file, row, sent)
        count += len(page)
    file.flush()


def _find(row: Row, images: Store) -> LocalImage | Problem | None:
    """The local image that a row names, or why there is none; None for a row that names none."""
    name = row.values.get(IMAGE)
    if row.problem is not None or name is None or "://" in name:
        return None
    parts = [part for part in name.split("/") if part not in ("", ".")]
    hint = "give a path relative to the catalogue, s3:// or https://"
    outside = Problem("path_outside_catalogue", f"{name[:300]} lies outside {images.uri}; {hint}", IMAGE)
    if name.startswith(("/", "~")) or ".." in parts:
        return outside
    try:
        info = images.head("/".join(parts)) if parts else None
    except StorageError as error:
        return outside if error.code == "key_outside" else Problem(error.code, f"{name[:300]}: {error}", IMAGE)
    if info is None:
        place = f"{images.uri}/{'/'.join(parts)}"
        return Problem(
            "image_missing", f"{name[:300]}: {place} does not exist; correct the path or add the image", IMAGE
        )
    return LocalImage(images, info.key, info.size_bytes)


def _sizes(catalogue: Catalogue, images: Store) -> Iterator[int]:
    for row in catalogue.rows():
        if isinstance(image := _find(row, images), LocalImage):
            yield image.size_bytes


def _post_file(
    transport: Transport, path: Path, uri: str, asked: Asked, key: str | None, **fields: str
) -> httpx2.Response:
    name = f"{uri.rstrip('/').replace(chr(92), '/').rpartition('/')[2] or 'catalogue'}{SUFFIX}"
    data = {name: _as_field(value) for name, value in _members(asked).items()} | fields
    with path.open("rb") as stream:

        def anew() -> dict[str, Any]:
            stream.seek(0)
            return {"data": data, "files": {"file": (name, stream, "application/x-ndjson")}}

        return transport.call(
            "POST",
            "/v1/batches",
            again=True,
            also_again=IN_PROGRESS,
            patience_s=PATIENCE_S,
            headers={} if key is None else {"idempotency-key": key},
            timeout=_timeout(),
            anew=anew,
        )


def _post_json(transport: Transport, anew: Callable[[], dict[str, Any]], size: int, key: str) -> Batch:
    headers = {"idempotency-key": key, "content-type": "application/json", "content-length": str(size)}
    given = {"again": True, "also_again": IN_PROGRESS, "patience_s": PATIENCE_S, "timeout": _timeout()}
    batch: Batch = transport.read(Batch, "POST", "/v1/batches", headers=headers, anew=anew, **given)
    return batch


def _members(asked: Asked) -> dict[str, Any]:
    """What is asked, as the API's body has it; what is not asked is left out."""
    return {name: value for name, value in asdict(asked).items() if value is not None and value != {}}


def _as_field(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _from_start(stream: Any) -> Iterator[bytes]:
    stream.seek(0)
    while chunk := stream.read(1 << 18):
        yield chunk


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _timeout() -> httpx2.Timeout:
    return httpx2.Timeout(STORING_S, connect=CONNECT_S, write=WRITE_S)


@contextmanager
def _spool() -> Iterator[tuple[Path, TextIO]]:
    with tempfile.TemporaryDirectory(prefix="kontext-submit-") as folder:
        path = Path(folder) / "rows"
        with path.open("w+", encoding="utf-8", newline="\n") as file:
            yield path, file
