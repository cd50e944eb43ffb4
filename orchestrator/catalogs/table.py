"""CSV and TSV, read with the standard csv module.

Owns where a record starts, also among quoted line breaks, and what happens after a broken quote: the record is one bad
row, and reading goes on with the line below its first. Refuses to guess at cells: too many or too few is a bad row.
"""

import csv
import re
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path, PurePath
from typing import TextIO

from orchestrator.catalogs.catalogue import BAD_TEXT, IMAGE, CatalogueError, Problem, Row, read_header, read_name
from orchestrator.catalogs.encoding import detect_encoding

CHUNK_CHARACTERS = 1 << 18
# Lines kept to go back to after a broken record, and how long a record may be before its quote counts as never closed.
KEPT_CHARACTERS = 8_000_000
MAX_RECORD_CHARACTERS = 4_000_000


class Table:
    """An opened CSV or TSV file. `uri` names it to people; `path` is where its bytes lie."""

    def __init__(self, path: Path, uri: str, image_root: str) -> None:
        self.uri, self.image_root = uri, image_root
        self._path, self._name = path, PurePath(uri).name
        self._encoding = detect_encoding(path, uri)
        own = "\t" if uri.lower().endswith(".tsv") else ","
        self._delimiter = next((each for each in dict.fromkeys((own, ",", ";", "\t")) if self._fits(each)), own)
        header, self._header_line = self._read_header(self._delimiter)
        self.columns = read_header(header, uri)
        odd = f"{uri}: cells are separated by {self._delimiter!r}, not {own!r}" if self._delimiter != own else None
        self.warnings = tuple(filter(None, (self._encoding.warning, odd)))

    def is_empty(self) -> bool:
        return next(self.rows(), None) is None

    def rows(self, after_line: int = 0) -> Iterator[Row]:
        with self._open() as stream:
            lines = _Lines(stream)
            line: int | None = self._header_line + 1
            while line is not None:
                line = yield from self._read_from(lines, line, after_line)

    def _read_from(self, lines: "_Lines", line: int, after_line: int) -> Generator[Row, None, int | None]:
        """Rows up to the first broken record; returns the line to go on from, None at the end of the file."""
        columns, width, suspect = self.columns, len(self.columns), self._encoding.suspect
        make = partial(tuple.__new__, Row)  # three times as fast as Row(…)
        reader = csv.reader(lines.after(line - 1), delimiter=self._delimiter, strict=True)
        above, start = line - 1, line
        try:
            for record in reader:
                if start > after_line:
                    cells = [cell or None for cell in record] if "" in record else record
                    values: dict[str, str | None] = dict(zip(columns, cells))  # noqa: B905 - the width is checked below
                    if len(record) == width and not suspect:
                        if cells is record or any(record):
                            yield make((start, values, None))
                    elif any(record):
                        yield Row(start, values, self._find_problem(start, len(record), values))
                start = above + reader.line_num + 1
        except csv.Error as error:
            row, line = self._explain(lines, start, above + reader.line_num, str(error))
            if start > after_line:
                yield row
            return line
        return None

    def _explain(self, lines: "_Lines", start: int, end: int, error: str) -> tuple[Row, int]:
        """The row of a broken record that starts on a line, and the line to go on from."""
        if not lines.keeps(start):
            message = f"{self._name}, line {start}: this record is too long to read"
            return Row(start, {}, Problem("record_too_long", message)), end + 1
        record, end, closed = _take_record(lines.after(start - 1), start)
        cells = _take_cells(record, self._delimiter)
        values = {name: cell or None for name, cell in zip(self.columns, cells, strict=False)}
        column = self.columns[len(cells)] if len(cells) < len(self.columns) else None
        if closed and "field limit" in error:
            code, hint, line = (
                "cell_too_long",
                f"longer than {csv.field_size_limit():,} characters; shorten it",
                end + 1,
            )
        elif closed:
            code, hint, line = "bad_quote", "text follows a closing quote; write a quote inside a cell twice", start + 1
        else:
            hint = "a quote is opened and never closed; close it, or write a quote inside a cell twice"
            code, line = "unclosed_quote", start + 1
        message = f"{self._name}, line {start}, column {column or len(cells) + 1}: {hint}"
        return Row(start, values, Problem(code, message, column)), line

    def _find_problem(self, line: int, width: int, values: dict[str, str | None]) -> Problem | None:
        where = f"{self._name}, line {line}"
        if width != len(self.columns):
            hint = (
                "put quotes around a cell that holds a comma"
                if width > len(self.columns)
                else "fill up with empty cells"
            )
            message = f"{where}: {width} cells where the header has {len(self.columns)} columns; {hint}"
            return Problem("wrong_column_count", message)
        for name, value in values.items():
            if value and (found := BAD_TEXT.search(value)):
                what = (
                    "a NUL character"
                    if found[0] == "\0"
                    else f"the byte 0x{ord(found[0]) & 0xFF:02X}, which is not UTF-8"
                )
                message = f"{where}, column {name}, character {found.start() + 1}: holds {what}"
                return Problem("bad_text", f"{message}; correct the cell and save the file as UTF-8", name)
        return None

    def _fits(self, delimiter: str) -> bool:
        return IMAGE in map(read_name, self._read_header(delimiter)[0])

    def _read_header(self, delimiter: str) -> tuple[list[str], int]:
        """The first record that is not blank, and its last line."""
        with self._open() as stream:
            reader = csv.reader(_Lines(stream).after(0), delimiter=delimiter, strict=True)
            try:
                return next(record for record in reader if any(record)), reader.line_num
            except StopIteration:
                raise CatalogueError(f"{self.uri} is empty; expected a header with a column 'image'") from None
            except csv.Error as error:
                raise CatalogueError(
                    f"{self.uri}, line {reader.line_num}: the header cannot be read: {error}"
                ) from None

    def _open(self) -> TextIO:
        return self._path.open(encoding=self._encoding.name, errors=self._encoding.errors, newline="")


class _Lines:
    """The lines of a file in chunks, the latest of them kept, so that reading can go back to a line."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._next_line, self._characters = 1, 0
        self._kept: deque[tuple[int, int, list[str]]] = deque()

    def after(self, line: int) -> Iterator[str]:
        """All lines below one that is kept, or 0, to the end of the file."""
        return chain.from_iterable(self._chunks(line + 1))

    def keeps(self, line: int) -> bool:
        """Whether reading can go back to this line."""
        return bool(self._kept) and self._kept[0][0] <= line

    def _chunks(self, line: int) -> Iterator[Iterable[str]]:
        for first, _, chunk in tuple(self._kept):
            yield _part(chunk, line - first)
        while chunk := self._stream.readlines(CHUNK_CHARACTERS):
            first, characters = self._next_line, sum(map(len, chunk))
            self._kept.append((first, characters, chunk))
            self._next_line += len(chunk)
            self._characters += characters
            while self._characters > KEPT_CHARACTERS and len(self._kept) > 1:
                self._characters -= self._kept.popleft()[1]
            yield _part(chunk, line - first)


def _part(chunk: list[str], skipped: int) -> Iterable[str]:
    return chunk if skipped <= 0 else map(chunk.__getitem__, range(skipped, len(chunk)))


def _take_record(lines: Iterator[str], start: int) -> tuple[str, int, bool]:
    """The text of one record, its last line, and whether its quotes are closed."""
    taken: list[str] = []
    characters = quotes = 0
    for line in lines:
        taken.append(line)
        characters += len(line)
        quotes += line.count('"')
        if quotes % 2 == 0:
            return "".join(taken), start + len(taken) - 1, True
        if characters > MAX_RECORD_CHARACTERS:
            break
    return taken[0], start, False


def _take_cells(record: str, delimiter: str) -> list[str]:
    """The cells before the first one that is too long or badly quoted."""
    pattern = re.compile(rf'"([^"]*(?:""[^"]*)*)("?)([^{delimiter}\r\n]*)|([^{delimiter}]*)')
    cells: list[str] = []
    position = 0
    while (found := pattern.match(record, position)) and found.end() < len(record):
        quoted, closing, rest, plain = found.groups()
        cell = (quoted or "").replace('""', '"') if plain is None else plain
        if len(cell) > csv.field_size_limit() or (plain is None and (rest or not closing)):
            break
        cells.append(cell)
        position = found.end() + 1
    return cells
