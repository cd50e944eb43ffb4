"""The ZIP that is written as it is sent: any reader opens it, and it costs no memory by the number of its entries."""

import tracemalloc
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.api.archive import Archive


def test_every_entry_is_found_as_it_was_sent(tmp_path: Path) -> None:
    sent = {"season/a.png": b"a" * 300_000, "ü 服.png": b"b", "empty.txt": b""}
    path = tmp_path / "results.zip"
    with Archive() as archive, path.open("wb") as file:
        for name, data in sent.items():
            for piece in archive.add(name, iter([data[:7], data[7:]])):
                assert len(piece) <= 1 << 19
                file.write(piece)
        file.writelines(archive.finish())
    with zipfile.ZipFile(path) as found:
        assert found.testzip() is None
        assert {entry.filename: found.read(entry) for entry in found.infolist()} == sent


def test_what_breaks_off_leaves_the_others_whole(tmp_path: Path) -> None:
    def break_off() -> Iterator[bytes]:
        yield b"half"
        raise OSError("the store is gone")

    path = tmp_path / "results.zip"
    with Archive() as archive, path.open("wb") as file:
        with pytest.raises(OSError, match="the store is gone"):
            file.writelines(archive.add("a.png", break_off()))
        file.writelines(archive.add("b.png", iter([b"whole"])))
        file.writelines(archive.finish())
    with zipfile.ZipFile(path) as found:
        assert found.testzip() is None and found.read("b.png") == b"whole"


def test_one_that_nobody_reads_to_its_end_leaves_no_files_open() -> None:
    with Archive() as archive:
        pieces = archive.add("a.png", iter([b"x" * (2 << 20)] * 2))
        next(pieces)
        pieces.close()  # type: ignore[attr-defined]


def test_very_many_entries_cost_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 1_000)  # a plain directory counts to 65,535
    path, count = tmp_path / "results.zip", 12_000
    with Archive() as archive, path.open("wb") as file:
        file.writelines(archive.add("first.png", iter([b"x"])))
        tracemalloc.start()
        for number in range(1, count):
            file.writelines(archive.add(f"season/SS27/dress-{number:07d}.png", iter([b"x"])))
        file.writelines(archive.finish())
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    with zipfile.ZipFile(path) as found:
        names = found.namelist()
        assert len(names) == len(set(names)) == count and found.read(names[-1]) == b"x"
    assert peak_bytes < 5 << 19, "the writer's own list would take 4 MB"
