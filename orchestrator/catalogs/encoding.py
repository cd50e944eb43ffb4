"""In which encoding a text file is written, found by reading its bytes once.

Owns the guess and the words that tell the user of it. Refuses a file whose lines do not end, which no reader could
hold in memory.
"""

import codecs
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from orchestrator.catalogs.catalogue import CatalogueError

CHUNK_BYTES = 1 << 20
MAX_LINE_BYTES = 64 << 20
_SIGNATURES = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_WORKBOOK = b"PK\x03\x04"
_ESCAPED = re.compile("[\udc80-\udcff]")
_WIDE = re.compile("[\u0080-\ud7ff\ue000-\U0010ffff]")
# Bytes that Windows-1252 leaves undefined.
_UNDEFINED = re.compile(rb"[\x81\x8d\x8f\x90\x9d]")


@dataclass(frozen=True)
class Encoding:
    """A codec, how to decode what does not fit it, whether rows may hold what is no text, a warning for the user."""

    name: str
    errors: str = "strict"
    suspect: bool = False
    warning: str | None = None


@dataclass
class _Tally:
    """What one pass over the bytes has seen: bytes that are no UTF-8, letters beyond ASCII, NULs."""

    bad: int = 0
    wide: int = 0
    first_bad_line: int = 0
    undefined: bool = False
    nul: bool = False


def detect_encoding(path: Path, uri: str) -> Encoding:
    """Read the file once, in constant memory.

    A byte order mark decides; else UTF-8 if it fits; else Windows-1252 (Latin-1 where that has no letter), with a
    warning. A file that is UTF-8 but for a few bytes stays UTF-8: only the rows that hold them are bad. Raises
    CatalogueError for an empty file, an Excel workbook, or a line beyond 64 MiB.
    """
    with path.open("rb") as stream:
        start = stream.read(4)
    if not start.removeprefix(codecs.BOM_UTF8):
        raise CatalogueError(f"{uri} is empty; expected a header with a column 'image', then a row for each image")
    if start == _WORKBOOK:
        raise CatalogueError(f"{uri} is an Excel workbook; save it as CSV UTF-8 and pass that")
    for signature, name in _SIGNATURES:
        if start.startswith(signature):
            return Encoding(name, "replace")
    if 0 in start[:2]:  # every other byte of plain letters, without a byte order mark
        return Encoding("utf-16-be" if start[0] == 0 else "utf-16-le", "replace")
    tally = _Tally()
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    for line, chunk in _read_chunks(path, uri):
        _note(tally, chunk, decoder.decode(chunk), line)
        last = line
    _note(tally, b"", decoder.decode(b"", True), last)
    return _judge(tally, start.startswith(codecs.BOM_UTF8), uri)


def _judge(tally: _Tally, marked: bool, uri: str) -> Encoding:
    name = "utf-8-sig" if marked else "utf-8"
    if not tally.bad:
        return Encoding(name, suspect=tally.nul)
    where = f"{uri}, line {tally.first_bad_line}: not UTF-8"
    if marked or tally.wide > tally.bad:
        return Encoding(name, "surrogateescape", True, f"{where}; the rows with such bytes fail, the others are read")
    name, called = ("latin-1", "Latin-1") if tally.undefined else ("cp1252", "Latin-1 (Windows-1252)")
    warning = f"{where}; the file is read as {called}. If letters look wrong, save it as UTF-8"
    return Encoding(name, suspect=tally.nul, warning=warning)


def _note(tally: _Tally, chunk: bytes, text: str, line: int) -> None:
    tally.nul = tally.nul or b"\0" in chunk
    if text.isascii():
        return
    found = _ESCAPED.findall(text)
    if found and not tally.bad:
        tally.first_bad_line = line + text.count("\n", 0, text.index(found[0]))
    tally.bad += len(found)
    tally.wide += len(_WIDE.findall(text))
    tally.undefined = tally.undefined or _UNDEFINED.search(chunk) is not None


def _read_chunks(path: Path, uri: str) -> Iterator[tuple[int, bytes]]:
    """Chunks of the file with the number of the line on which each begins."""
    line, line_bytes = 1, 0
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            yield line, chunk
            end = max(chunk.rfind(b"\n"), chunk.rfind(b"\r"))
            line_bytes = len(chunk) - 1 - end if end >= 0 else line_bytes + len(chunk)
            line += chunk.count(b"\n")
            if line_bytes > MAX_LINE_BYTES:
                raise CatalogueError(f"{uri}, line {line}: longer than {MAX_LINE_BYTES >> 20} MiB; is this text?")
