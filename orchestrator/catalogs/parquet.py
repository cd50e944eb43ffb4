"""Parquet, read through pyarrow in batches.

Owns the casting of scalar columns to text. Refuses lists and structs in known columns; in others they are kept as JSON.
"""

import json
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.catalogs.catalogue import (
    BAD_TEXT,
    KNOWN_COLUMNS,
    MAX_CELL_CHARACTERS,
    CatalogueError,
    Problem,
    Row,
    read_header,
)

BATCH_ROWS = 4096
BUFFER_BYTES = 1 << 20
_KNOWN = frozenset(KNOWN_COLUMNS)


class ParquetTable:
    """An opened Parquet file. A row's line is its number, from 1."""

    warnings: tuple[str, ...] = ()

    def __init__(self, path: Path, uri: str, image_root: str) -> None:
        self.uri, self.image_root = uri, image_root
        self._path, self._name = path, PurePath(uri).name
        with self._open() as file:
            schema = file.schema_arrow
            self._rows = file.metadata.num_rows
        self.columns = read_header(schema.names, uri)
        for name, field in zip(self.columns, schema, strict=True):
            if name in _KNOWN and pa.types.is_nested(field.type):
                raise CatalogueError(f"{uri}, column {name}: holds {field.type}; expected text or numbers")

    def is_empty(self) -> bool:
        return bool(self._rows == 0)

    def rows(self, after_line: int = 0) -> Iterator[Row]:
        line = 0
        with self._open() as file:
            batches = file.iter_batches(BATCH_ROWS, use_threads=False)
            while True:
                try:
                    batch = next(batches)
                except StopIteration:
                    return
                except (pa.ArrowException, OSError) as error:
                    raise CatalogueError(
                        f"{self.uri}, row {line + 1}: the file is damaged from here on: {error}"
                    ) from None
                if line + len(batch) > after_line:
                    yield from self._read(batch, line, after_line)
                line += len(batch)

    def _read(self, batch: Any, line: int, after_line: int) -> Iterator[Row]:
        texts = [_read_column(column) for column in batch.columns]
        for record in zip(*texts, strict=True):
            line += 1
            if line > after_line:
                values = dict(zip(self.columns, record, strict=True))
                yield Row(line, values, self._find_problem(line, values))

    def _find_problem(self, line: int, values: dict[str, str | None]) -> Problem | None:
        for name, value in values.items():
            if value is None:
                continue
            where = f"{self._name}, row {line}, column {name}"
            if len(value) > MAX_CELL_CHARACTERS:
                reason = f"the value is longer than {MAX_CELL_CHARACTERS:,} characters; shorten it"
                return Problem("cell_too_long", f"{where}: {reason}", name)
            if not value.isprintable() and BAD_TEXT.search(value):
                return Problem("bad_text", f"{where}: holds a NUL character or bytes that are not UTF-8", name)
        return None

    def _open(self) -> Any:
        try:
            return pq.ParquetFile(self._path, buffer_size=BUFFER_BYTES, pre_buffer=False)
        except (pa.ArrowException, OSError) as error:
            raise CatalogueError(f"{self.uri} cannot be read as Parquet: {error}") from None


def _read_column(column: Any) -> list[str | None]:
    """The values of a column as text, None for null and for empty text."""
    if pa.types.is_nested(column.type):
        return [
            None if value is None else json.dumps(value, default=str, ensure_ascii=False)
            for value in column.to_pylist()
        ]
    try:
        texts = column.cast(pa.string()).to_pylist()
    except (pa.ArrowException, UnicodeDecodeError):
        texts = [_as_text(value) for value in column.to_pylist()]
    return [text or None for text in texts]


def _as_text(value: Any) -> str | None:
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    return None if value is None else str(value)
