"""Decoding in a process of its own: hostile files end as errors of their jobs, whatever they do to their decoder."""

import io
import os
import signal
import struct
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from tests.waiting import PATIENCE_S, wait_until
from workers import decoder
from workers.decoder import Decoders
from workers.photo import open_photo
from workers.source import SourceError

MAX_PX = 20_000_000


@pytest.fixture(scope="module")
def decoders() -> Iterator[Decoders]:
    """Decoders with a second of CPU for a photo; none of them is left at the end."""
    before = children()
    decoders = Decoders(MAX_PX, cpu_s=1.0)
    yield decoders
    decoders.close()
    assert children() == before


def children() -> list[int]:
    """The decoders that run, by pid."""
    found = psutil.Process().children()
    return sorted(child.pid for child in found if child.is_running() and "workers.decoder" in " ".join(child.cmdline()))


def encode(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def refuse(decoders: Decoders, data: bytes) -> SourceError:
    with pytest.raises(SourceError) as caught:
        decoders.open(data)
    return caught.value


def scans(count: int, side_px: int = 2000) -> bytes:
    """A progressive JPEG whose last scan stands there so many times: small, and a pass over all pixels for each."""
    data = encode(Image.new("RGB", (side_px, side_px), "red"), "JPEG", progressive=True)
    last, end = data.rindex(b"\xff\xda"), data.rindex(b"\xff\xd9")
    return data[:last] + data[last:end] * count + data[end:]


def greedy_tiff(tags: int = 20_000, size_bytes: int = 4 << 20) -> bytes:
    """A TIFF in which every one of thousands of tags says that the whole file is its value."""
    head = struct.pack("<2sHIH", b"II", 42, 8, tags)
    sized = [(256, 3, 1, 64), (257, 3, 1, 64), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 8)]
    entries = sized + [(1000 + number, 7, size_bytes - 1000, 8) for number in range(tags - len(sized))]
    directory = b"".join(struct.pack("<HHII", *entry) for entry in entries) + struct.pack("<I", 0)
    return (head + directory).ljust(size_bytes, b"\0")


def test_a_photo_is_what_it_is_without_a_process(decoders: Decoders) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 400, 4), dtype=np.uint8))
    for data in (encode(noise), encode(noise.convert("CMYK"), "JPEG"), encode(noise.convert("L"), "TIFF")):
        assert decoders.open(data).tobytes() == open_photo(data, MAX_PX).tobytes()


def test_a_refusal_comes_through(decoders: Decoders) -> None:
    error = refuse(decoders, b"%PDF-1.7")
    assert (error.code, error.error_class) == ("image_unreadable", "input")
    assert "looks like a PDF" in str(error)
    assert refuse(decoders, b"").code == "image_empty"


def test_many_threads_get_their_own_pictures(decoders: Decoders) -> None:
    colours = [(shade, 255 - shade, shade // 2) for shade in range(0, 240, 6)]
    photos = [encode(Image.new("RGB", (32 + number, 64), colour)) for number, colour in enumerate(colours)]
    with ThreadPoolExecutor(8) as threads:
        pictures = list(threads.map(decoders.open, photos))
    assert [picture.getpixel((9, 9)) for picture in pictures] == colours
    assert [picture.width for picture in pictures] == [32 + number for number in range(len(colours))]


def test_the_largest_photo_fits_into_the_memory_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder, "BASE_BYTES", 64 << 20)
    side_px = 2500
    roomy = Decoders(side_px * side_px)
    try:
        grey = np.zeros((side_px, side_px), np.uint16)
        for picture in (Image.new("RGBA", (side_px, side_px)), Image.fromarray(grey), Image.new("LA", (side_px,) * 2)):
            assert roomy.open(encode(picture, compress_level=1)).size == (side_px, side_px)
    finally:
        roomy.close()


def test_endless_scans_end_at_the_limit_of_time(decoders: Decoders) -> None:
    bomb = scans(5000)
    assert len(bomb) < 20 << 20
    started_s = time.monotonic()
    error = refuse(decoders, bomb)
    assert (error.code, error.error_class) == ("image_too_heavy", "input")
    assert "more than 1 s of CPU" in str(error)
    assert time.monotonic() - started_s < 60
    assert decoders.open(scans(1, 64)).size == (64, 64), "the next photo is decoded"


def test_a_file_ends_at_the_limit_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder, "BASE_BYTES", 8 << 20)
    monkeypatch.setattr(decoder, "BYTES_PER_PX", 1)
    narrow = Decoders(MAX_PX)
    error = refuse(narrow, encode(Image.new("RGBA", (4400, 4400)), compress_level=1))
    assert (error.code, error.error_class) == ("image_too_heavy", "input")
    assert "of memory" in str(error)
    assert narrow.open(scans(1, 64)).size == (64, 64)
    narrow.close()


@pytest.mark.parametrize("kind", ["chunks", "text", "tags", "loop", "frames"])
def test_an_odd_file_ends_within_the_limits(decoders: Decoders, kind: str) -> None:
    """A picture or a refusal; this process pays neither with time nor with memory."""
    picture = encode(Image.new("RGB", (64, 64), "red"))
    cut, before_bytes = picture.index(b"IDAT") - 4, psutil.Process().memory_info().rss
    text = chunk(b"iTXt", b"k\0\1\0\0\0" + zlib.compress(b"x" * (60 << 20)))
    data = {
        "chunks": picture[:cut] + chunk(b"tEXt", b"k\0v") * 300_000 + picture[cut:],
        "text": picture[:cut] + text * 3 + picture[cut:],
        "tags": greedy_tiff(),
        "loop": struct.pack("<2sHIHI", b"II", 42, 8, 0, 8),
        "frames": encode(Image.new("P", (16, 16)), "GIF", save_all=True, append_images=[Image.new("P", (16, 16))] * 99),
    }[kind]
    started_s = time.monotonic()
    try:
        decoders.open(data)
    except SourceError as error:
        assert error.error_class == "input"
    assert time.monotonic() - started_s < 60
    assert psutil.Process().memory_info().rss - before_bytes < 64 << 20


@pytest.mark.parametrize(
    ("number", "code", "error_class"),
    [(signal.SIGSEGV, "image_unreadable", "input"), (signal.SIGKILL, "decoder_died", "transient")],
)
def test_a_decoder_that_dies_takes_one_photo_with_it(number: int, code: str, error_class: str) -> None:
    decoders = Decoders(MAX_PX, cpu_s=30)
    before = children()
    with ThreadPoolExecutor(1) as threads:
        held = threads.submit(refuse, decoders, scans(5000))
        wait_until(lambda: children() != before, "it runs")
        [pid] = set(children()) - set(before)
        wait_until(lambda: psutil.Process(pid).cpu_times().user > 0.5, "it decodes")
        os.kill(pid, number)
        error = held.result(PATIENCE_S)
    assert (error.code, error.error_class) == (code, error_class)
    assert decoders.open(scans(1, 64)).size == (64, 64)
    decoders.close()
    assert children() == before


def test_a_decoder_that_is_given_no_time_is_given_up() -> None:
    decoders = Decoders(MAX_PX, cpu_s=60, wall_s=0.3)
    error = refuse(decoders, scans(3000))
    assert (error.code, error.error_class) == ("decoder_died", "transient")
    decoders.close()


def test_a_decoder_holds_no_secret(decoders: Decoders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "S3cret")
    monkeypatch.setenv("KONTEXT_DATABASE_URL", "postgresql://u:S3cret@db/x")
    before = set(children())
    fresh = Decoders(MAX_PX)
    fresh.open(scans(1, 64))
    [pid] = set(children()) - before
    assert b"S3cret" not in Path(f"/proc/{pid}/environ").read_bytes()
    assert b"AWS_" not in Path(f"/proc/{pid}/environ").read_bytes()
    fresh.close()


def test_a_decoder_outlives_a_stop_and_ends_with_its_worker(decoders: Decoders) -> None:
    fresh, before = Decoders(MAX_PX), set(children())
    fresh.open(scans(1, 64))
    [pid] = set(children()) - before
    for number in (signal.SIGTERM, signal.SIGINT):
        os.kill(pid, number)
    assert fresh.open(scans(1, 64)).size == (64, 64)
    assert pid in children()
    fresh.close()
    assert not psutil.pid_exists(pid)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
