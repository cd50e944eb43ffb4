"""The contact sheet: what is on it, and what it survives."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from sqlalchemy import Engine

from kontext_model.revision import CheckpointRef, Defaults
from orchestrator.batches import Request, create_batch, ingest
from orchestrator.catalogs import open_catalogue
from orchestrator.contact_sheet import (
    CARD_PX,
    FRAME_PX,
    GAP_PX,
    GUTTER_PX,
    HEADER_PX,
    MARGIN_PX,
    Card,
    draw_sheet,
    write_sheet,
)  # fmt: skip
from orchestrator.progress import look
from orchestrator.settings import Settings
from orchestrator.state.database import open_database
from orchestrator.state.tables import metadata

RED, BLUE = (200, 30, 30), (30, 30, 200)


def plain(colour: tuple[int, int, int], width_px: int = 64, height_px: int = 64) -> Image.Image:
    return Image.new("RGB", (width_px, height_px), colour)


def draw(folder: Path, *cards: Card, more: int = 0) -> Image.Image:
    draw_sheet(cards, folder / "sheet.png", title="rows.csv", facts="batch b", more=more)
    with Image.open(folder / "sheet.png") as sheet:
        return sheet.convert("RGB")


def centre(column: int, frame: int, row_top_px: int = MARGIN_PX + HEADER_PX) -> tuple[int, int]:
    left = MARGIN_PX + column * (CARD_PX + GUTTER_PX) + frame * (FRAME_PX + GAP_PX)
    return left + FRAME_PX // 2, row_top_px + FRAME_PX // 2


def test_source_stands_left_of_result(tmp_path: Path) -> None:
    sheet = draw(tmp_path, *[Card(f"look-{n}", "a prompt", plain(RED), plain(BLUE)) for n in range(2)])
    for column in range(2):
        assert sheet.getpixel(centre(column, 0)) == RED
        assert sheet.getpixel(centre(column, 1)) == BLUE
    assert sheet.getpixel((4, 4)) == (255, 255, 255)


def test_pictures_keep_their_aspect(tmp_path: Path) -> None:
    sheet = draw(tmp_path, Card("wide", "", plain(RED, 90, 30), None))
    x, y = centre(0, 0)
    assert sheet.getpixel((x, y - FRAME_PX // 6 + 4)) == RED
    assert sheet.getpixel((x, y - FRAME_PX // 6 - 4)) != RED


def has_red_ink(sheet: Image.Image) -> bool:
    return any(red > 150 and green < 90 and blue < 90 for _, (red, green, blue) in sheet.getcolors(1 << 24) or [])


def test_a_failed_job_shows_its_error_in_red(tmp_path: Path) -> None:
    assert not has_red_ink(draw(tmp_path, Card("a", "text", plain(BLUE), None)))
    assert has_red_ink(draw(tmp_path, Card("a", "text", plain(BLUE), None, "image_missing: gone")))


@pytest.mark.parametrize("text", ["", "x" * 5000, "a\nb\tc", "夏のドレス", "é" * 400, "\U0001f457 dress", "a " * 3000])
def test_any_text_is_drawn_within_the_sheet(tmp_path: Path, text: str) -> None:
    sheet = draw(tmp_path, Card(text, text, plain(RED), None, None), Card(text, text, None, None, text or None))
    right = sheet.crop((sheet.width - MARGIN_PX + 8, 0, sheet.width, sheet.height))
    assert right.getcolors() == [(right.width * right.height, (255, 255, 255))]


@pytest.fixture
def engine(settings: Settings) -> Iterator[Engine]:
    engine = open_database(f"sqlite:///{settings.home / 'state.db'}")
    metadata.create_all(engine)
    yield engine
    engine.dispose()


def write_batch_sheet(engine: Engine, settings: Settings, folder: Path, *images: str) -> Image.Image:
    catalogue_path = folder / "rows.csv"
    catalogue_path.write_text("image,custom_id\n" + "".join(f"{image},id-{n}\n" for n, image in enumerate(images)))
    catalogue = open_catalogue(str(catalogue_path), settings)
    checkpoint = CheckpointRef("c", None, "r" * 40, Defaults(area_px=4096))
    request = Request({"prompt": "x"}, str(folder / "results"), checkpoint, "float32/v1")
    batch = ingest(engine, create_batch(engine, catalogue, request), catalogue, request)
    write_sheet(engine, look(engine, batch.id), settings, folder / "sheet.png", seconds=1.0)
    with Image.open(folder / "sheet.png") as sheet:
        return sheet.convert("RGB")


def test_sheet_of_a_batch_shows_the_first_jobs_only(engine: Engine, settings: Settings, tmp_path: Path) -> None:
    plain(RED).save(tmp_path / "a.png")
    small = write_batch_sheet(engine, settings, tmp_path, *["a.png"] * 24)
    large = write_batch_sheet(engine, settings, tmp_path, *["a.png"] * 60)
    assert small.getpixel(centre(2, 0)) == RED
    assert large.size == small.size


def test_sources_outside_the_catalogue_or_broken_leave_an_empty_frame(
    engine: Engine, settings: Settings, tmp_path: Path
) -> None:
    plain(RED).save(tmp_path / "secret.png")
    inside = tmp_path / "inside"
    inside.mkdir()
    plain(RED).save(inside / "good.png")
    (inside / "broken.png").write_bytes(b"no picture")
    sheet = write_batch_sheet(engine, settings, inside, "../secret.png", "broken.png", "./good.png")
    assert [sheet.getpixel(centre(column, 0)) == RED for column in range(3)] == [False, False, True]
