"""A ZIP that is written as it is sent, to whoever reads it: stored, not compressed, with ZIP64 where it needs it.

Owns its memory: one piece of one entry, whatever the number and size of entries. What the directory at its end has to
say of each lies in a temporary file until then: 22 bytes and the name. Refuses to look whether a name comes twice.
"""

import copy
import struct
import tempfile
import zipfile
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

CHUNK_BYTES = 1 << 18
_HELD_BYTES = 1 << 20
_ENTRY = struct.Struct("<QQIH")  # where it begins, its bytes, their CRC-32, the length of its name


class Archive:
    """Add entries one after the other, then `finish`; what each call yields is to be sent, in order.

    A context manager: its temporary files go at the end.
    """

    def __init__(self) -> None:
        self._pipe, self._entries = _Pipe(), _Entries()
        self._zip = zipfile.ZipFile(self._pipe, "w", zipfile.ZIP_STORED, allowZip64=True)  # type: ignore[call-overload]
        self._zip.filelist, self._zip.NameToInfo = self._entries, _Forgetful()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._zip.close()
        self._pipe.file.close()
        self._entries.file.close()

    def add(self, name: str, pieces: Iterator[bytes]) -> Iterator[bytes]:
        """One entry. What `pieces` raises is raised, with what came before it in the entry."""
        with self._zip.open(name, "w", force_zip64=True) as entry:
            for piece in pieces:
                entry.write(piece)
                yield from self._pipe.take()

    def finish(self) -> Iterator[bytes]:
        """The directory."""
        self._zip.close()
        yield from self._pipe.take()


class _Pipe:
    """What the ZIP writer writes to, taken out in pieces. It cannot seek: an entry's size follows it."""

    def __init__(self) -> None:
        self.file = tempfile.SpooledTemporaryFile(_HELD_BYTES)  # noqa: SIM115

    def write(self, data: Any) -> int:
        return self.file.write(data)

    def flush(self) -> None:
        """Nothing is held back."""

    def take(self) -> Iterator[bytes]:
        self.file.seek(0)
        while piece := self.file.read(CHUNK_BYTES):
            yield piece
        self.file.seek(0)
        self.file.truncate()


class _Entries(list[zipfile.ZipInfo]):
    """The writer's list of entries, which are all alike but for five values each: those alone are kept, in a file."""

    def __init__(self) -> None:
        super().__init__()
        self.file = tempfile.SpooledTemporaryFile(_HELD_BYTES)  # noqa: SIM115
        self._first: zipfile.ZipInfo | None = None
        self._count = 0

    def append(self, entry: zipfile.ZipInfo) -> None:
        if self._first is None:
            self._first = entry
        name = entry.filename.encode()
        self.file.write(_ENTRY.pack(entry.header_offset, entry.file_size, entry.CRC, len(name)) + name)
        self._count += 1

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[zipfile.ZipInfo]:
        self.file.seek(0)
        while header := self.file.read(_ENTRY.size):
            offset, size, crc, length = _ENTRY.unpack(header)
            entry = copy.copy(self._first)
            assert entry is not None
            entry.filename = entry.orig_filename = self.file.read(length).decode()
            entry.header_offset, entry.file_size, entry.compress_size, entry.CRC = offset, size, size, crc
            yield entry


class _Forgetful(dict[str, zipfile.ZipInfo]):
    """The writer's index of names, which only readers ask."""

    def __setitem__(self, name: str, entry: zipfile.ZipInfo) -> None:
        """Keep nothing."""
