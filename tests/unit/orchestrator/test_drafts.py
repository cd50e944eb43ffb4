"""Drafts: what was dropped is kept whole, whatever its size, and found again by its id."""

import io
import os
import tracemalloc
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from PIL import Image

from kontext_model.revision import Defaults
from orchestrator import drafts
from orchestrator.catalogs import CatalogueError
from orchestrator.drafts import Draft, DraftError, SentFile
from orchestrator.row_reader import CUSTOM_ID, LINE, RowReader
from orchestrator.settings import Settings
from orchestrator.state.bulk import COLUMNS, JobRow

MB = 1 << 20
MESSAGE = COLUMNS.index("message")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home", results_uri=str(tmp_path / "results"))


def read(draft: Draft, settings: Settings) -> tuple[list[str | None], dict[int, str]]:
    """What a batch of a draft would hold: its custom_ids as they are stored, and what is told of bad lines."""
    with drafts.fetch(draft, settings) as path:
        catalogue = drafts.open_draft(draft, path, {}, settings)
        reader = RowReader("", catalogue, Defaults(), {"prompt": "x"})
        rows, stored = list(catalogue.rows()), dict[str | None, JobRow]()

        def insert(jobs: Sequence[JobRow]) -> list[JobRow]:
            return [job for job in jobs if stored.setdefault(job[CUSTOM_ID], job) is not job]

        reader.place(rows, [reader.read(row) for row in rows], insert)
    return list(stored), {job[LINE]: job[MESSAGE] for job in stored.values() if job[MESSAGE]}


def send(folder: Path, files: Mapping[str, bytes]) -> list[SentFile]:
    """Files as a browser sends them, their bytes in a folder."""
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return [SentFile(name, folder / name) for name in files]


def test_a_large_catalogue_is_streamed_and_comes_back_as_it_was(settings: Settings, tmp_path: Path) -> None:
    sent = tmp_path / "spring.csv"
    row = b"https://images.example.com/" + b"x" * 997 + b"\n"
    sent.write_bytes(b"image\n" + row * (24 * MB // len(row)))
    tracemalloc.start()
    try:
        draft = drafts.save([SentFile("spring.csv", sent)], settings)
        with drafts.fetch(drafts.load(draft.id, settings), settings) as path:
            peak_bytes = tracemalloc.get_traced_memory()[1]
            assert path.suffix == ".csv" and path.read_bytes() == sent.read_bytes()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 8 * MB


def test_the_same_files_make_the_same_draft(settings: Settings, tmp_path: Path) -> None:
    sent = tmp_path / "spring.csv"
    sent.write_text("image\na.jpg\n")
    first, second = (drafts.save([SentFile("spring.csv", sent)], settings) for _ in range(2))
    assert first == second
    sent.write_text("image\nb.jpg\n")
    assert drafts.save([SentFile("spring.csv", sent)], settings).id != first.id


@pytest.mark.parametrize("draft_id", ["0" * 32, "../../secret", ""])
def test_a_draft_that_there_is_not_is_an_error(settings: Settings, draft_id: str) -> None:
    with pytest.raises(DraftError, match="drop the files again"):
        drafts.load(draft_id, settings)


def test_of_two_images_of_one_name_none_is_lost_unsaid(settings: Settings, tmp_path: Path) -> None:
    paths = [tmp_path / f"{folder}-front.jpg" for folder in ("dress", "shirt")]
    for number, path in enumerate(paths):
        Image.new("RGB", (16, 16), (number * 200, 0, 0)).save(path)
    with pytest.raises(DraftError, match=r"two different images are named front\.jpg; rename one"):
        drafts.save([SentFile("front.jpg", path) for path in paths], settings)
    assert drafts.save([SentFile("front.jpg", paths[0])] * 2, settings).name == "front.jpg"


TABLE = b"image,prompt\nphotos/dress.jpg,front\nphotos/dress.jpg,back\n"


@pytest.mark.parametrize(
    ("files", "ids"),
    [
        ({"spring.csv": TABLE, "dress.jpg": b"1"}, ["photos/dress", "photos/dress-3"]),
        ({"spring.csv": TABLE.replace(b"prompt", b"file"), "dress.jpg": b"1"}, ["photos/dress", "photos/dress-3"]),
        ({"dress.jpg": b"1", "dress.png": b"2"}, ["dress", "dress-2"]),
        ({"looks.zip": b""}, ["looks/dress", "looks/dress-2"]),
        ({"own.jsonl": b'{"image": "s3://shop/a.jpg", "file": "b"}\n'}, ["a"]),
    ],
)
def test_rows_without_an_id_get_one_each(
    settings: Settings, tmp_path: Path, files: dict[str, bytes], ids: list[str]
) -> None:
    if "looks.zip" in files:
        with zipfile.ZipFile(archive := io.BytesIO(), "w") as opened:
            opened.writestr("looks/dress.jpg", b"1")
            opened.writestr("/looks/dress.png", b"2")
        files = {"looks.zip": archive.getvalue()}
    assert read(drafts.save(send(tmp_path, files), settings), settings) == (ids, {})


def test_a_quote_that_is_never_closed_fails_its_row_alone(settings: Settings, tmp_path: Path) -> None:
    rows = b"".join(b"s3://shop/%d.jpg,%s\n" % (number, b"x" * 1000) for number in range(200))
    draft = drafts.save(send(tmp_path, {"c.csv": b'image,note\ns3://shop/a.jpg,ok\nb.jpg,"open\n' + rows}), settings)
    with drafts.fetch(draft, settings) as path:
        assert drafts.read_columns(path) == (["image", "note"], [["s3://shop/a.jpg", "ok"]])
    ids, told = read(draft, settings)
    assert len(ids) == 202 and list(told) == [3] and "a quote is opened and never closed" in told[3]


def zip_of(method: int, sizes: Sequence[int]) -> bytes:
    """An archive of images that are nothing but zeros, of these sizes."""
    with zipfile.ZipFile(archive := io.BytesIO(), "w", method) as opened:
        for number, size_bytes in enumerate(sizes):
            opened.writestr(f"{number}.png", bytes([number]) * size_bytes)
    return archive.getvalue()


@pytest.mark.parametrize(
    ("method", "sizes", "told"),
    [
        (
            zipfile.ZIP_DEFLATED,
            [MB] * 4 + [1],
            r"bomb\.zip unpacks to 4,194,305 bytes .* than the 4,194,304 allowed",
        ),
        (zipfile.ZIP_BZIP2, [MB], r"bomb\.zip: 0\.png is packed by another method than deflate"),
        (zipfile.ZIP_LZMA, [MB], r"bomb\.zip: 0\.png is packed by another method than deflate"),
        (zipfile.ZIP_DEFLATED, [1, MB + 1], r"bomb\.zip: 1\.png is larger than 1,048,576 bytes"),
    ],
)
def test_an_archive_that_unpacks_to_more_than_it_may_is_refused(
    settings: Settings, tmp_path: Path, method: int, sizes: Sequence[int], told: str
) -> None:
    bounded = settings.model_copy(update={"max_upload_bytes": MB, "max_image_bytes": MB})
    with pytest.raises(CatalogueError, match=told):
        drafts.save(send(tmp_path, {"bomb.zip": zip_of(method, sizes)}), bounded)
    stored = [path.stat().st_size for path in (tmp_path / "results").rglob("*.png")]
    assert sum(stored) <= 1, "nothing is stored before the whole is known to be small enough"


def test_an_archive_may_unpack_to_four_times_what_may_be_sent(settings: Settings, tmp_path: Path) -> None:
    bounded = settings.model_copy(update={"max_upload_bytes": MB, "max_image_bytes": MB})
    draft = drafts.save(send(tmp_path, {"looks.zip": zip_of(zipfile.ZIP_DEFLATED, [MB] * 4)}), bounded)
    assert read(draft, bounded)[0] == ["0", "1", "2", "3"]


@pytest.mark.parametrize("bound", [MB, 64 * MB])
def test_an_image_of_any_size_costs_no_memory(settings: Settings, tmp_path: Path, bound: int) -> None:
    sent = SentFile("dress.jpg", tmp_path / "sent")
    sent.path.touch()
    os.truncate(sent.path, 24 * MB)
    tracemalloc.start()
    try:
        if bound < 24 * MB:
            with pytest.raises(DraftError, match=r"dress\.jpg is larger than 1,048,576 bytes"):
                drafts.save([sent], settings.model_copy(update={"max_image_bytes": bound}))
        else:
            drafts.save([sent], settings)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 8 * MB
