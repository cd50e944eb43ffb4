"""What pages draw and write, and their thumbnails: figures that do not lie, pictures within bounds."""

import io
import os
from pathlib import Path

import pytest
from PIL import Image

from orchestrator.dashboard import wording
from orchestrator.dashboard.charts import Span, choose_step, nice, place, segments, throughput
from orchestrator.dashboard.overview import count_standing
from orchestrator.dashboard.thumbnails import NoThumbnail, Thumbnails, shrink, sweep
from orchestrator.settings import Settings
from orchestrator.state.queries import Group
from orchestrator.state.transitions import JobState, Stage


def picture(size: tuple[int, int], mode: str = "RGB", kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.new(mode, size, 0).save(stream, kind)
    return stream.getvalue()


def test_a_bar_is_full_and_shows_what_is_rare() -> None:
    parts = segments({"pending": 99_999, "failed": 1, "running": 0})
    assert [part.name for part in parts] == ["failed", "pending"]
    assert parts[0].width >= 0.5 and sum(part.width for part in parts) == pytest.approx(100)
    assert parts[1].x == pytest.approx(parts[0].width)
    assert segments({}) == []


def test_the_chart_s_columns_stay_within_it() -> None:
    chart = throughput([(60.0, 7, 2), (120.0, 3, 0)], 0.0, 180.0, 60.0)
    assert chart.top_per_min == 10
    first = chart.columns[0]
    assert (first.ok_y, first.ok_height) == (30, 70) and (first.bad_y, first.bad_height) == (10, 20)
    assert 100 / 3 < first.x < 200 / 3 and first.x + first.width < 200 / 3
    assert throughput([], 0.0, 60.0, 60.0).columns == []


def test_axes_end_at_round_numbers_and_intervals_are_usual() -> None:
    assert [nice(value) for value in (0, 0.3, 1, 9, 11, 26, 1000)] == [1, 0.5, 1, 10, 20, 50, 1000]
    assert [choose_step(span) for span in (10, 3600, 86_400)] == [1, 60, 1800]


def test_the_way_of_a_job_lies_on_one_axis() -> None:
    spans = place([Span("sample", "sample", "w", 0, 15.0, 20.0), Span("encode", "encode", "w", 0, 10.0, 15.0)])
    assert [(span.stage, span.x, span.width) for span in spans] == [("encode", 0, 50), ("sample", 50, 50)]
    assert place([]) == []


def test_a_backlog_that_is_worked_on_is_no_cause_for_alarm() -> None:
    late = {Group(Stage.SAMPLE, "r", "", "x"): 40}
    queued = {(JobState.QUEUED, Stage.SAMPLE): 250, (JobState.RUNNING, Stage.SAMPLE): 0}
    assert count_standing(late, queued) == 40
    assert count_standing(late, {**queued, (JobState.RUNNING, Stage.DECODE): 4}) == 0


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0.42, "0.42 s"), (8.26, "8.3 s"), (59.7, "1 min 00 s"), (125, "2 min 05 s"), (12_000, "3 h 20 min"),
     (190_000, "2 d 4 h"),
     (None, "–")],
)  # fmt: skip
def test_durations(seconds: float | None, told: str) -> None:
    assert wording.duration(seconds) == told


def test_a_share_is_whole_only_when_all_is_done() -> None:
    assert [wording.share(part, 1000) for part in (0, 1, 500, 999, 1000)] == ["0 %", "<1 %", "50 %", "99 %", "100 %"]
    assert wording.share(0, 0) == "0 %"


def test_figures_read_the_same_everywhere() -> None:
    assert [wording.size(size) for size in (0, 999, 1500, 2_340_000_000)] == ["0 B", "999 B", "1.5 kB", "2.3 GB"]
    assert [wording.ago(then, 1000.0) for then in (999.5, 960, 100, None)] == [
        "just now",
        "40 s ago",
        "15 min ago",
        "–",
    ]
    assert [wording.axis(value) for value in (20.0, 2.5, 1000.0)] == ["20", "2.5", "1,000"]
    assert (wording.plural(1, "job"), wording.plural(1200, "job")) == ("1 job", "1,200 jobs")


def test_a_thumbnail_is_small_whole_and_on_white() -> None:
    small = Image.open(io.BytesIO(shrink(picture((800, 400), "RGBA"), 96, 10**6)))
    assert (small.format, small.size) == ("WEBP", (96, 48))
    assert small.convert("RGB").getpixel((5, 5)) == (255, 255, 255)
    assert Image.open(io.BytesIO(shrink(picture((10, 10), "P", "GIF"), 96, 10**6))).size == (10, 10)


@pytest.mark.parametrize("data", [b"", b"<html>", picture((40, 40))[:60], picture((2000, 600))])
def test_what_is_no_picture_or_too_large_has_no_thumbnail(data: bytes) -> None:
    with pytest.raises(NoThumbnail):
        shrink(data, 96, 10**6)


def test_formats_that_photos_do_not_come_in_are_refused() -> None:
    with pytest.raises(NoThumbnail):
        shrink(picture((10, 10), kind="PPM"), 96, 10**6)


@pytest.mark.parametrize("image", ["https://shop/a.jpg", "/etc/passwd", "../secret.png", "a/../../b.png", "~/x.png"])
def test_a_thumbnail_never_leaves_the_catalogue_s_folder(settings: Settings, tmp_path: Path, image: str) -> None:
    with pytest.raises(NoThumbnail):
        Thumbnails(settings).source(image, str(tmp_path), "x", 96)


def test_a_thumbnail_is_made_once(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture((300, 300)))
    kept = Thumbnails(settings)
    first = kept.source("a.png", str(tmp_path), "digest", 96)
    (tmp_path / "a.png").unlink()
    assert kept.source("a.png", str(tmp_path), "digest", 96) == first


def test_the_cache_keeps_what_was_looked_at_last(tmp_path: Path) -> None:
    for number in range(10):
        path = tmp_path / "ab" / f"{number}.webp"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x" * 100)
        os.utime(path, (number, number))
    os.utime(tmp_path / "ab" / "0.webp", (99, 99))
    assert sweep(tmp_path, 1000) == 1000
    assert sweep(tmp_path, 500) == 400
    assert sorted(path.stem for path in tmp_path.glob("*/*")) == ["0", "7", "8", "9"]
