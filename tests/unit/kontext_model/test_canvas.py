"""Canvases: which size a photo is edited at."""

import math
import subprocess
import sys

import pytest
from diffusers.pipelines.flux.pipeline_flux_kontext import PREFERRED_KONTEXT_RESOLUTIONS
from hypothesis import given
from hypothesis import strategies as st

from kontext_model.canvas import Canvas, choose, list_canvases

areas = st.integers(64 * 64, 2048 * 2048)
sides = st.integers(1, 20_000)


def test_at_the_reference_area_the_canvases_are_those_of_diffusers() -> None:
    found = [(each.width_px, each.height_px) for each in list_canvases(1024 * 1024)]
    assert found == PREFERRED_KONTEXT_RESOLUTIONS


@given(sides, sides)
def test_the_choice_is_that_of_diffusers(width_px: int, height_px: int) -> None:
    aspect = width_px / height_px
    _, width, height = min((abs(aspect - w / h), w, h) for w, h in PREFERRED_KONTEXT_RESOLUTIONS)
    assert choose(width_px, height_px, 1024 * 1024) == Canvas(width, height)


@given(areas)
def test_scaled_canvases_keep_multiples_of_16_the_area_and_the_aspect(area_px: int) -> None:
    for canvas in list_canvases(area_px):
        assert canvas.width_px % 16 == 0 and canvas.height_px % 16 == 0
        # The preferred sizes are up to 1.4 % off the area themselves; rounding then moves each side by up to 8 px.
        width, height = canvas.width_px, canvas.height_px
        assert (width - 8) * (height - 8) / 1.015 <= area_px <= (width + 8) * (height + 8) * 1.015
    widest = list_canvases(area_px)[-1]
    assert abs(math.log(widest.width_px / widest.height_px) - math.log(1568 / 672)) <= 17 / widest.height_px


@given(areas, sides, sides)
def test_the_choice_has_the_nearest_aspect(area_px: int, width_px: int, height_px: int) -> None:
    chosen = choose(width_px, height_px, area_px)
    distance = abs(width_px / height_px - chosen.width_px / chosen.height_px)
    assert distance == min(abs(width_px / height_px - c.width_px / c.height_px) for c in list_canvases(area_px))


@given(sides, sides, st.integers(1, 4096), st.integers(1, 4096))
def test_an_asked_size_is_rounded_to_16_and_never_zero(
    width: int, height: int, ask_width: int, ask_height: int
) -> None:
    canvas = choose(width, height, 256 * 256, ask_width, ask_height)
    assert abs(canvas.width_px - ask_width) <= 8 or canvas.width_px == 16
    assert abs(canvas.height_px - ask_height) <= 8 or canvas.height_px == 16


def test_one_asked_side_lets_the_other_follow_the_photo() -> None:
    assert choose(600, 800, 65536, width_px=96) == Canvas(96, 128)
    assert choose(600, 800, 65536, height_px=96) == Canvas(80, 96)
    assert choose(5000, 1, 65536, width_px=64) == Canvas(64, 16)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1, 5000, 65536, 64, None), "a photo of 1x5000 px makes a canvas of 64x320000 px"),
        ((10, 10, 65536, 0, None), "width must be from 1 to 4096 px, not 0"),
        ((10, 10, 65536, None, 5000), "height must be from 1 to 4096 px, not 5000"),
        ((0, 10, 65536, None, None), "source width must be at least 1 px, not 0"),
        ((10, 10, 100, None, None), "area must be from 256 to 16777216 px, not 100"),
    ],
)
def test_a_size_that_cannot_be_is_an_error(
    arguments: tuple[int, int, int, int | None, int | None], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        choose(*arguments)


def test_a_canvas_reads_back_what_it_prints() -> None:
    assert str(Canvas(256, 192)) == "256x192"
    assert Canvas.parse("256x192") == Canvas(256, 192)
    assert Canvas(256, 192).tokens == 16 * 12
    assert Canvas(48, 96) < Canvas(64, 64)


@pytest.mark.parametrize(
    "text", ["", "256", "256x", "256X192", "0x16", "-16x16", "250x192", "16x999999", " 16x16", "١٦x١٦"]
)
def test_other_texts_are_no_canvas(text: str) -> None:
    with pytest.raises(ValueError):
        Canvas.parse(text)


def test_an_aspect_over_two_percent_off_needs_padding() -> None:
    square = Canvas(256, 256)
    assert not square.needs_padding(1000, 1000)
    assert not square.needs_padding(1019, 1000) and not square.needs_padding(1000, 1019)
    assert square.needs_padding(1021, 1000) and square.needs_padding(1000, 1021)


def test_the_control_plane_may_import_canvas_and_revision_without_torch() -> None:
    code = (
        "import sys, kontext_model, kontext_model.canvas, kontext_model.revision;"
        "print([name for name in ('torch', 'PIL', 'numpy', 'diffusers', 'transformers') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
