"""Rows that another machine's reader read, on their way to us: written there, read here as they were.

Owns both sides of that form: a line that tells the columns, then one line a row with its number, its values, its
problem, and under which name its image was sent. So a remote catalogue keeps its lines, its bad rows and its names.
Refuses, as a whole, what no reader of ours wrote.
"""

import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from orchestrator.catalogs.catalogue import (
    BAD_TEXT,
    IMAGE,
    MAX_CELL_CHARACTERS,
    CatalogueError,
    Problem,
    Row,
    read_header,
)
from orchestrator.catalogs.lines import MAX_KEYS

SUFFIX = ".rows"
SOURCE = "file"
"""The column that keeps a sent image's own name, unless the catalogue has one of that name."""
LINE_MAX = 2**31 - 1
RECORD_MAX_CHARACTERS = 16 << 20
MESSAGE_MAX_CHARACTERS = 4000
STORED_NAME = r"^[0-9a-f]{64}(\.[a-z0-9]{1,5})?$"


class _Header(BaseModel):
    model_config = ConfigDict(extra="forbid")
    columns: list[str] = Field(min_length=1, max_length=MAX_KEYS)
    warnings: list[str] = Field([], max_length=100)


class _Problem(BaseModel):
    model_config = ConfigDict(extra="forbid")
    code: str = Field(pattern=r"^[a-z_]{1,50}$")
    message: str = Field(max_length=MESSAGE_MAX_CHARACTERS)
    column: str | None = Field(None, max_length=500)


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid")
    line: int = Field(ge=1, le=LINE_MAX)
    values: dict[str, str | None] = Field(max_length=MAX_KEYS)
    problem: _Problem | None = None
    sent: str | None = Field(None, pattern=STORED_NAME)


_read_record = TypeAdapter(_Record).validate_json


def write_header(file: TextIO, columns: Sequence[str], warnings: Sequence[str]) -> None:
    """Write the first line."""
    file.write(json.dumps({"columns": list(columns), "warnings": list(warnings)}) + "\n")


def write_row(file: TextIO, row: Row, sent: str | None = None) -> None:
    """Write one row; `sent` is the name under which its image was sent."""
    record: dict[str, Any] = {"line": row.line, "values": row.values}
    if row.problem is not None:
        code, message, column = row.problem.code, row.problem.message, row.problem.column
        # What is no text stays here: it would be replaced there too, once the row has failed.
        record["values"] = {_clean(name): value and _clean(value) for name, value in row.values.items()}
        record["problem"] = {
            "code": code, "message": _clean(message)[:MESSAGE_MAX_CHARACTERS], "column": column and _clean(column),
        }  # fmt: skip
    if sent is not None:
        record["sent"] = sent
    file.write(json.dumps(record) + "\n")


def _clean(text: str) -> str:
    return BAD_TEXT.sub("\ufffd", text)


class Relayed:
    """A catalogue of such rows, opened. Images that were sent lie under `image_root`."""

    def __init__(self, path: Path, uri: str, image_root: str) -> None:
        self.uri, self.image_root, self._path = uri, image_root, path
        with self._open() as stream:
            try:
                header = _Header.model_validate_json(stream.readline(RECORD_MAX_CHARACTERS))
            except ValidationError as error:
                raise self._wrong(1, error) from None
        given = read_header(header.columns, uri)
        self.named_by = SOURCE if SOURCE not in given else f"kontext_{SOURCE}"
        self.columns = (*given, self.named_by)
        self.warnings = tuple(header.warnings)

    def is_empty(self) -> bool:
        return next(self.rows(), None) is None

    def rows(self, after_line: int = 0) -> Iterator[Row]:
        last = 0
        with self._open() as stream:
            stream.readline(RECORD_MAX_CHARACTERS)
            for number, text in enumerate(iter(partial(stream.readline, RECORD_MAX_CHARACTERS), ""), 2):
                try:
                    record = _read_record(text)
                except ValidationError as error:
                    raise self._wrong(number, error) from None
                if record.line <= last:
                    raise CatalogueError(f"{self.uri}, record {number}: line {record.line} does not follow {last}")
                last = record.line
                if last > after_line:
                    yield self._as_row(record)

    def _as_row(self, record: _Record) -> Row:
        values = dict(record.values)
        if record.sent is not None:
            values[self.named_by], values[IMAGE] = values.get(IMAGE), record.sent
        problem = record.problem and Problem(record.problem.code, record.problem.message, record.problem.column)
        return Row(record.line, values, problem or self._check_texts(record.line, values))

    def _check_texts(self, line: int, values: dict[str, str | None]) -> Problem | None:
        for name, value in values.items():
            if len(value or "") > MAX_CELL_CHARACTERS:
                return Problem("cell_too_long", f"{self.uri}, line {line}: a value is too long", None)
            if BAD_TEXT.search(value or "") or BAD_TEXT.search(name):
                return Problem("bad_text", f"{self.uri}, line {line}: a value holds what is no text", None)
        return None

    def _open(self) -> TextIO:
        return self._path.open(encoding="utf-8", errors="replace", newline="\n")

    def _wrong(self, number: int, error: ValidationError) -> CatalogueError:
        found = error.errors()[0]
        place = ".".join(map(str, found["loc"]))
        return CatalogueError(f"{self.uri}, record {number}: {place or 'no JSON'}: {found['msg']}")
