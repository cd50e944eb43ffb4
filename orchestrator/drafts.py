"""Drafts: what somebody dropped on the page New batch, kept until it is started or forgotten.

Owns where what was sent lies, beside the images of all uploads, and which column means what. A draft is named by the
digest of what was sent, so that the same files make the same draft. Refuses to judge rows: a dry run does.
"""

import csv
import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path, PurePosixPath

from orchestrator.catalogs import Catalogue, CatalogueError, Row
from orchestrator.catalogs.catalogue import IMAGE, KNOWN_COLUMNS, Problem, read_name
from orchestrator.catalogs.encoding import detect_encoding
from orchestrator.catalogs.opening import READERS
from orchestrator.catalogs.pictures import EXTENSIONS
from orchestrator.catalogs.relayed import SOURCE
from orchestrator.catalogs.sent import open_sent, unpack_images
from orchestrator.settings import Settings
from orchestrator.storage import ObjectMissing, Store, open_store
from orchestrator.submission import inputs_uri

FOLDER = "drafts"
DRAFT_MAX_BYTES = 4 << 20
SAMPLE_ROWS = 3
TABLES = (".csv", ".tsv")
LIKELY: Mapping[str, tuple[str, ...]] = {
    IMAGE: ("image_url", "image url", "photo", "picture", "img", "file", "filename", "path", "url", "src"),
    "custom_id": ("sku", "id", "article", "article_number", "product_id", "ean", "gtin", "name"),
}
"""What shops call them, the surest first."""
_ID = re.compile(r"[0-9a-f]{32}")
_STORED = re.compile(r"[0-9a-f]{64}(\.[a-z0-9]{1,5})?")


class DraftError(ValueError):
    """What was sent makes no batch; the message says what to send."""


@dataclass(frozen=True)
class SentFile:
    """A file as it came: its name, and where its bytes lie for the moment."""

    name: str
    path: Path


@dataclass(frozen=True)
class Draft:
    """`catalogue` is the key of the rows in the store of inputs; `images` are keys by the names they came with."""

    id: str
    name: str
    catalogue: str
    images: Mapping[str, str] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """The ending that tells how the rows are written."""
        return PurePosixPath(self.catalogue).suffix

    @property
    def of_images(self) -> bool:
        """Whether images came without a catalogue, so that the rows are of our own making."""
        return PurePosixPath(self.name).suffix.lower() != self.kind


def save(files: Sequence[SentFile], settings: Settings) -> Draft:
    """Store what was sent: one catalogue with or without its images, images alone, or a ZIP of images.

    Raises DraftError, CatalogueError, StorageError.
    """
    store = open_store(inputs_uri(settings), settings)
    kinds = {sent: PurePosixPath(sent.name.replace("\\", "/")).suffix.lower() for sent in files}
    rows = [sent for sent, kind in kinds.items() if kind in READERS or kind == ".zip"]
    pictures = [sent for sent, kind in kinds.items() if kind[1:] in EXTENSIONS]
    other = next((sent for sent in files if sent not in rows and sent not in pictures), None)
    if other is not None:
        raise DraftError(f"{other.name[:200]} is no catalogue and no image; send CSV, JSONL, Parquet, ZIP or images")
    if len(rows) > 1:
        raise DraftError(f"{rows[0].name[:200]} and {rows[1].name[:200]}: send one catalogue at a time")
    if not files:
        raise DraftError("nothing was sent: choose a catalogue, or images")
    images: dict[str, str] = {}
    for sent in pictures:
        name, key = _base(sent.name), _store_image(sent, store, settings)
        if images.setdefault(name, key) != key:
            raise DraftError(f"two different images are named {name[:200]}; rename one of them")
    if rows and kinds[rows[0]] == ".zip":
        return _save_archive(rows[0], store, settings)
    if rows:
        return _write(store, _base(rows[0].name), rows[0].path, kinds[rows[0]], images)
    name = _base(pictures[0].name) if len(images) == 1 else f"{len(images)} images"
    with tempfile.TemporaryDirectory(prefix="kontext-draft-") as folder:
        lines = Path(folder) / "images.jsonl"
        with lines.open("w", encoding="utf-8") as out:
            for image, key in images.items():
                out.write(json.dumps({IMAGE: key, SOURCE: image}) + "\n")
        return _write(store, name, lines, ".jsonl", {})


def load(draft_id: str, settings: Settings) -> Draft:
    """A draft by its id. Raises DraftError when there is none."""
    if not _ID.fullmatch(draft_id):
        raise DraftError("there is no such draft; drop the files again")
    store = open_store(inputs_uri(settings), settings)
    try:
        told = json.loads(store.read(f"{FOLDER}/{draft_id}.json", DRAFT_MAX_BYTES))
    except ObjectMissing:
        raise DraftError("there is no such draft any more; drop the files again") from None
    return Draft(draft_id, told["name"], told["catalogue"], told["images"])


@contextmanager
def fetch(draft: Draft, settings: Settings) -> Iterator[Path]:
    """The draft's rows as a local file, for as long as the context lasts. Raises StorageError."""
    store = open_store(inputs_uri(settings), settings)
    with tempfile.TemporaryDirectory(prefix="kontext-draft-") as folder:
        path = Path(folder) / f"rows{draft.kind}"
        with store.open(draft.catalogue) as source, path.open("wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
        yield path


def read_columns(path: Path) -> tuple[list[str], list[list[str]]]:
    """The header of a table as written, and its first rows. Raises CatalogueError."""
    sample: list[list[str]] = []
    with _Header(path) as header, suppress(csv.Error):  # a row that cannot be read: the dry run names it
        sample.extend(islice(header.reader, SAMPLE_ROWS))
    return header.names, sample


def guess_columns(names: Sequence[str]) -> dict[str, str]:
    """Which column means what: known names as they are, and what shops call the picture."""
    found = {known: name for name in names if (known := read_name(name)) in KNOWN_COLUMNS}
    told = {name.strip().lower(): name for name in names}
    for meaning, likely in LIKELY.items():
        nearest = next((told[name] for name in likely if name in told), None)
        if meaning not in found and nearest is not None:
            found[meaning] = nearest
    return found


def open_draft(draft: Draft, path: Path, columns: Mapping[str, str], settings: Settings) -> Catalogue:
    """The draft as a catalogue; `columns` says which column of a table means what. Raises CatalogueError."""
    if draft.kind in TABLES and columns:
        renamed = path.with_name(f"renamed{draft.kind}")
        rename_header(path, renamed, columns)
        path = renamed
    version = f"{draft.id}:{json.dumps(dict(columns), sort_keys=True)}"
    sent = open_sent(path, _with_kind(draft.name, draft.kind), inputs_uri(settings), version)
    return _Dropped(sent, draft)


def rename_header(path: Path, target: Path, columns: Mapping[str, str]) -> None:
    """Copy a table with other names above its columns; lines keep their numbers. Raises CatalogueError.

    `columns` is the meaning → the name as written. A column that has a meaning's name without having it steps aside.
    """
    meanings = {name: meaning for meaning, name in columns.items() if name}
    with _Header(path) as header, target.open("w", encoding=header.encoding, errors=header.errors, newline="") as out:
        names = [
            meanings.get(name, f"{name} (as given)" if read_name(name) in columns else name) for name in header.names
        ]
        csv.writer(out, delimiter=header.delimiter, lineterminator="\n").writerow(names)
        out.write("\n" * (header.reader.line_num - 1))
        for line in header.stream:
            out.write(line)


class _Header:
    """A table opened at its first row."""

    def __init__(self, path: Path) -> None:
        encoding = detect_encoding(path, path.name)
        self.encoding, self.errors = encoding.name, encoding.errors
        self.stream = path.open(encoding=encoding.name, errors=encoding.errors, newline="")
        try:
            first = self.stream.readline()
            self.delimiter = max((",", ";", "\t"), key=first.count)
            self.stream.seek(0)
            # readline, not iteration: what is left must be where the reader stopped.
            self.reader = csv.reader(iter(self.stream.readline, ""), delimiter=self.delimiter)
            self.names = next((record for record in self.reader if any(record)), [])
        except csv.Error as error:
            raise CatalogueError(f"{path.name}: the header cannot be read: {error}") from None
        if not self.names:
            raise CatalogueError("the table is empty; expected a header, and a row for each image")

    def __enter__(self) -> "_Header":
        return self

    def __exit__(self, *_: object) -> None:
        self.stream.close()


class _Dropped:
    """A catalogue whose images were sent with it: a row names one by its file's name, or lies elsewhere."""

    def __init__(self, catalogue: Catalogue, draft: Draft) -> None:
        self._catalogue, self._images = catalogue, draft.images
        self.uri, self.image_root = catalogue.uri, catalogue.image_root
        self.columns, self.warnings = catalogue.columns, catalogue.warnings
        self.named_by = SOURCE if draft.of_images else IMAGE
        if draft.images:
            self.named_by = SOURCE if SOURCE not in self.columns else f"kontext_{SOURCE}"
            self.columns = (*self.columns, self.named_by)
        self.version: str | None = getattr(catalogue, "version", None)

    def is_empty(self) -> bool:
        return self._catalogue.is_empty()

    def rows(self, after_line: int = 0) -> Iterator[Row]:
        for line, values, problem in self._catalogue.rows(after_line):
            image = values.get(IMAGE)
            if problem is not None or image is None or "://" in image or _STORED.fullmatch(image):
                yield Row(line, values, problem)
            elif (key := self._images.get(_base(image))) is not None:
                yield Row(line, {**values, self.named_by: image, IMAGE: key}, None)
            else:
                hint = (
                    "send it too" if self._images else "send the images with the catalogue, or name s3:// or https://"
                )
                told = f"{self.uri}, line {line}, column image: {image[:200]} was not sent; {hint}"
                yield Row(line, values, Problem("image_missing", told, IMAGE))


def _save_archive(sent: SentFile, store: Store, settings: Settings) -> Draft:
    with tempfile.TemporaryDirectory(prefix="kontext-draft-") as folder:
        lines = Path(folder) / "images.jsonl"
        unpack_images(sent.path, sent.name, store, lines, settings, version="")
        return _write(store, _base(sent.name), lines, ".jsonl", {})


def _store_image(sent: SentFile, store: Store, settings: Settings) -> str:
    if sent.path.stat().st_size > settings.max_image_bytes:
        raise DraftError(f"{sent.name[:200]} is larger than {settings.max_image_bytes:,} bytes")
    with sent.path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    key = f"{digest}{PurePosixPath(sent.name).suffix.lower()}"
    store.put(key, sent.path)
    return key


def _write(store: Store, name: str, rows: Path, kind: str, images: Mapping[str, str]) -> Draft:
    with rows.open("rb") as stream:
        key = f"{hashlib.file_digest(stream, 'sha256').hexdigest()}{kind}"
    store.replace(key, rows)  # streamed, and the same bytes whoever wrote them before
    told = json.dumps({"name": name[:200], "catalogue": key, "images": dict(images)}, sort_keys=True).encode()
    draft_id = hashlib.sha256(told).hexdigest()[:32]
    store.put(f"{FOLDER}/{draft_id}.json", told, content_type="application/json")
    return Draft(draft_id, name[:200], key, images)


def _base(name: str) -> str:
    return PurePosixPath(name.replace("\\", "/")).name


def _with_kind(name: str, kind: str) -> str:
    return name if PurePosixPath(name).suffix.lower() == kind else f"{name}{kind}"
