"""From a location to the reader that fits it.

Owns the choice by file name, and fetching a catalogue that lies in S3: it is copied to a temporary file first, since
ingestion reads with pauses that no connection outlives. Refuses kinds it does not know.
"""

import difflib
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path

from orchestrator.catalogs.catalogue import Catalogue, CatalogueError
from orchestrator.catalogs.lines import Lines
from orchestrator.catalogs.parquet import ParquetTable
from orchestrator.catalogs.pictures import Pictures
from orchestrator.catalogs.table import Table
from orchestrator.settings import Settings
from orchestrator.storage import ObjectMissing, StorageError, open_store
from orchestrator.storage.locations import read_path

READERS: Mapping[str, Callable[[Path, str, str], Catalogue]] = {
    ".csv": Table,
    ".tsv": Table,
    ".jsonl": Lines,
    ".ndjson": Lines,
    ".parquet": ParquetTable,
}
_KINDS = f"expected {', '.join(READERS)}, a folder of images, or an S3 prefix that ends in a slash"


def open_catalogue(uri: str | Path, settings: Settings) -> Catalogue:
    """Open a catalogue by its name: CSV, TSV, JSONL, Parquet, a folder of images, in a file or in S3.

    Raises CatalogueError, naming the file, and the line and column where there are any, when there is no such file, its
    kind is unknown, it is empty or unreadable, it has no `image` column, or a column stands twice.
    """
    try:
        return _open_s3(str(uri), settings) if str(uri).startswith("s3://") else _open_local(str(uri), settings)
    except OSError as error:
        raise CatalogueError(f"{error.filename or uri} cannot be read: {error.strerror or error}") from error
    except StorageError as error:
        raise CatalogueError(str(error)) from error


def _open_local(uri: str, settings: Settings) -> Catalogue:
    path = read_path(uri)
    if path.is_dir():
        os.scandir(path).close()  # raises when it may not be read
        return Pictures(open_store(str(path), settings))
    reader = _choose_reader(str(path))
    if not path.exists():
        near = difflib.get_close_matches(path.name, os.listdir(path.parent) if path.parent.is_dir() else [], n=1)
        raise CatalogueError(f"{path} does not exist{f'; did you mean {near[0]}?' if near else ''}")
    if not path.is_file():
        raise CatalogueError(f"{path} is no file and no folder; {_KINDS}")
    return reader(path, str(path), str(path.parent))


def _open_s3(uri: str, settings: Settings) -> Catalogue:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    if not key or key.endswith("/"):
        return Pictures(open_store(uri, settings))
    reader = _choose_reader(uri)
    path = _download(uri, f"s3://{bucket}", key, settings)
    try:
        catalogue = reader(path, uri, uri.rpartition("/")[0])
    except BaseException:
        path.unlink()
        raise
    weakref.finalize(catalogue, path.unlink, missing_ok=True)
    return catalogue


def _choose_reader(uri: str) -> Callable[[Path, str, str], Catalogue]:
    suffix = Path(uri).suffix.lower()
    if suffix in {".xls", ".xlsx", ".ods"}:
        raise CatalogueError(f"{uri}: save the sheet as CSV UTF-8 and pass that")
    if suffix not in READERS:
        exists = uri.startswith("s3://") or os.path.exists(uri)
        raise CatalogueError(
            f"{uri}: unknown kind of catalogue; {_KINDS}" if exists else f"{uri} does not exist; {_KINDS}"
        )
    return READERS[suffix]


def _download(uri: str, root: str, key: str, settings: Settings) -> Path:
    descriptor, name = tempfile.mkstemp(prefix="kontext-", suffix=Path(key).suffix)
    try:
        with open(descriptor, "wb") as target, open_store(root, settings).open(key) as source:
            shutil.copyfileobj(source, target, 1 << 20)
    except BaseException as error:
        os.unlink(name)
        if isinstance(error, ObjectMissing):
            raise CatalogueError(f"{uri} does not exist; for all images below it, end the prefix in a slash") from error
        raise
    return Path(name)
