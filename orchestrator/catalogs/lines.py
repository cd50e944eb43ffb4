"""JSONL: one JSON object a line.

Owns the reading of JSON values as text: a number keeps its own spelling. Refuses lists and objects where a known column
wants one value; in other columns they are kept as JSON text.
"""

import json
from collections.abc import Iterator
from functools import lru_cache, partial
from itertools import chain, islice
from pathlib import Path, PurePath
from typing import Any

from orchestrator.catalogs.catalogue import (
    BAD_TEXT,
    KNOWN_COLUMNS,
    MAX_CELL_CHARACTERS,
    CatalogueError,
    Problem,
    Row,
    read_header,
    read_name,
)
from orchestrator.catalogs.encoding import detect_encoding

CHUNK_CHARACTERS = 1 << 18
HEADER_ROWS = 100
MAX_KEYS = 1000
_KNOWN = frozenset(KNOWN_COLUMNS)
# Numbers as they are written: 9007199254740993 and 2.50 stay so.
_decode = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=str).decode


class Lines:
    """An opened JSONL file. `columns` are the keys of the first rows."""

    def __init__(self, path: Path, uri: str, image_root: str) -> None:
        self.uri, self.image_root = uri, image_root
        self._path, self._name = path, PurePath(uri).name
        self._encoding = detect_encoding(path, uri)
        self.warnings = tuple(filter(None, [self._encoding.warning]))
        first = list(islice(self.rows(), HEADER_ROWS))
        good = [row.values for row in first if row.problem is None]
        if first and not good:
            problem = first[0].problem
            raise CatalogueError(f"no row can be read; the first: {problem.message if problem else ''}")
        self.columns = read_header(tuple(dict.fromkeys(chain.from_iterable(good))), uri) if good else ()

    def is_empty(self) -> bool:
        return not self.columns

    def rows(self, after_line: int = 0) -> Iterator[Row]:
        suspect = self._encoding.suspect
        with self._path.open(encoding=self._encoding.name, errors=self._encoding.errors, newline="\n") as stream:
            chunks = iter(partial(stream.readlines, CHUNK_CHARACTERS), [])
            for number, text in enumerate(chain.from_iterable(chunks), 1):
                if number > after_line and not text.isspace():
                    yield self._read(number, text, suspect)

    def _read(self, number: int, text: str, suspect: bool) -> Row:
        try:
            given = _decode(text)
        except json.JSONDecodeError as error:
            where = f"{self._name}, line {number}, character {error.pos + 1}"
            return Row(number, {}, Problem("bad_json", f"{where}: {error.msg}; each line must be one JSON object"))
        except RecursionError:
            return Row(number, {}, Problem("bad_json", f"{self._name}, line {number}: nested too deeply"))
        if not isinstance(given, dict):
            message = f"{self._name}, line {number}: {_kind(given)} where a JSON object is expected"
            return Row(number, {}, Problem("bad_json", message))
        values: dict[str, str | None] = {}
        problem = None
        for key, value in given.items():
            name = _read_key(key)
            if name in values or len(values) >= MAX_KEYS:
                problem = problem or self._refuse(
                    number, name, "duplicate_key", "the key stands twice, or too many keys do"
                )
            elif value.__class__ is str:
                values[name] = value or None
            elif value is None or isinstance(value, bool):
                values[name] = None if value is None else str(value).lower()
            elif name in _KNOWN:
                problem = self._refuse(number, name, "wrong_type", f"{_kind(value)} where one value is expected")
            else:
                try:
                    values[name] = json.dumps(json.loads(text)[key], ensure_ascii=False)
                except ValueError:  # Python reads no longer ones
                    problem = self._refuse(number, name, "bad_json", "a number of this line has more than 4,300 digits")
        if len(text) > MAX_CELL_CHARACTERS or suspect or "\\u" in text:
            problem = problem or self._check_texts(number, values)
        return Row(number, values, problem)

    def _check_texts(self, number: int, values: dict[str, str | None]) -> Problem | None:
        for name, value in values.items():
            if value and len(value) > MAX_CELL_CHARACTERS:
                reason = f"the value is longer than {MAX_CELL_CHARACTERS:,} characters; shorten it"
                return self._refuse(number, name, "cell_too_long", reason)
            if BAD_TEXT.search(value or "") or BAD_TEXT.search(name):
                reason = "holds a NUL character, half a surrogate pair or bytes that are not UTF-8"
                return self._refuse(number, name, "bad_text", reason)
        return None

    def _refuse(self, number: int, name: str, code: str, reason: str) -> Problem:
        printable = BAD_TEXT.sub("\ufffd", name[:80])
        return Problem(code, f"{self._name}, line {number}, column {printable}: {reason}", printable)


_read_key = lru_cache(4096)(read_name)


def _kind(value: Any) -> str:
    return {list: "a list", dict: "an object", str: "a single value", bool: "a single value"}.get(type(value), "null")
