"""The drawn world: same seed same picture, answers on the ground that the prompt names, masks that fit."""

import csv
import hashlib
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kontext_model.wardrobe import FLAT_LAY, GROUNDS, PROMPTS, draw, write_catalogue
from kontext_model.wardrobe.catalogue import write_triples
from kontext_model.wardrobe.colour import difference, to_lab
from kontext_model.wardrobe.score import blur, enclose, find_garment, ground_kind, is_pale, overlap, score, ssim

WHITE_SEEDS = (36, 45, 52, 56, 59, 72, 79, 81)
"""Seeds whose garment holds plain white cloth."""
DARK_SEED = 281


def _digest(seed: int, size: int) -> str:
    sample = draw(seed, size)
    return hashlib.sha256(sample.photo.tobytes() + sample.target.tobytes() + sample.mask.tobytes()).hexdigest()


def test_another_process_draws_the_same_sample_without_torch() -> None:
    code = (
        "import sys, hashlib\nfrom kontext_model.wardrobe import draw\ns = draw(11, 96)\n"
        "assert 'torch' not in sys.modules\n"
        "print(hashlib.sha256(s.photo.tobytes() + s.target.tobytes() + s.mask.tobytes()).hexdigest())"
    )
    root = Path(__file__).parents[3]
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert run.stdout.strip() == _digest(11, 96)


def test_seeds_differ_and_the_photo_does_not_depend_on_the_prompt() -> None:
    assert len({_digest(seed, 64) for seed in range(12)}) == 12
    photos = {draw(5, 64, kind).photo.tobytes() for kind in PROMPTS}
    assert len(photos) == 1


@pytest.mark.parametrize("kind", list(PROMPTS))
def test_the_answer_stands_on_the_ground_that_was_asked_for(kind: str) -> None:
    for seed in range(6):
        sample = draw(seed, 96, kind)
        assert sample.prompt in PROMPTS[kind]
        assert sample.target.getpixel((1, 1)) == GROUNDS[kind]
        assert 0.03 < (np.asarray(sample.mask) > 127).mean() < 0.9


def test_flat_lays_are_symmetric_and_inside_the_frame() -> None:
    for seed in range(24):
        sample = draw(seed, 128, "flat-lay")
        picture = np.asarray(sample.target).astype(int)
        assert (picture[:3] == 255).all() and (picture[:, :3] == 255).all()
        mirrored = np.abs(picture - picture[:, ::-1]).max(axis=2)
        assert (mirrored > 60).mean() < 0.035, f"seed {seed} is lopsided"


def test_white_garments_are_told_apart_by_their_outline() -> None:
    for seed in WHITE_SEEDS:
        sample = draw(seed, 128, "flat-lay")
        assert "white plain" in sample.garment.description
        lab, mask = to_lab(np.asarray(sample.target)), np.asarray(sample.mask) > 127
        assert overlap(enclose(find_garment(lab)), mask) > 0.93
        perfect = score(sample.target, sample)
        assert is_pale(lab, mask) and perfect.iou is None
        assert perfect.iou_white is not None and perfect.iou_white > 0.93


def test_dark_garments_are_measured_by_colour_alone() -> None:
    sample = draw(DARK_SEED, 128, "flat-lay")
    assert sample.garment.description == "navy plain dress"
    lab, mask = to_lab(np.asarray(sample.target)), np.asarray(sample.mask) > 127
    perfect = score(sample.target, sample)
    assert perfect.iou == overlap(find_garment(lab), mask) > 0.95 and perfect.iou_white is None
    # A hole in the middle counts as a hole: only white garments are filled.
    holed = sample.target.copy()
    holed.paste((255, 255, 255), (54, 54, 74, 74))
    inside = score(holed, sample).iou
    assert inside is not None and inside < perfect.iou


def test_every_size_and_shape_is_exact() -> None:
    for size in ((48, 96), (96, 48), (32, 32)):
        sample = draw(3, size)
        assert sample.photo.size == sample.target.size == sample.mask.size == size
    assert draw(3, 40).photo.size == (40, 40)


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="unknown prompt kind 'gray'"):
        draw(0, 64, "gray")
    with pytest.raises(ValueError, match="unknown style 'kilt'; known: dungarees"):
        draw(0, 64, style="kilt")
    with pytest.raises(ValueError, match="at least 32 pixels"):
        draw(0, (64, 16))


def test_drawing_keeps_up_with_training() -> None:
    draw(0, 256)
    started = time.process_time()
    for seed in range(20):
        draw(seed, 256)
    assert (time.process_time() - started) / 20 < 0.06


def test_the_flat_lay_prompt_is_the_documents() -> None:
    assert FLAT_LAY.startswith("Transform the input photo of a person wearing clothes")
    assert FLAT_LAY.endswith("No human remnants or AI artifacts.") and "(#FFFFFF)" in FLAT_LAY
    assert PROMPTS["flat-lay"][0] == FLAT_LAY


def test_a_catalogue_mixes_shapes_prompts_and_formats(tmp_path: Path) -> None:
    path = write_catalogue(tmp_path / "demo", 12, 96, seed=4)
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len({row["custom_id"] for row in rows}) == 12
    shapes, formats = set(), set()
    for row in rows:
        with Image.open(path.parent / row["image"]) as picture:
            shapes.add((picture.width > picture.height) - (picture.width < picture.height))
            formats.add(picture.format)
            assert abs(picture.width * picture.height / 96**2 - 1) < 0.05
        assert (row["preset"] == "flat-lay") != bool(row["prompt"])
    assert shapes == {-1, 0, 1} and formats == {"JPEG", "PNG"}
    before = path.read_bytes()
    assert write_catalogue(tmp_path / "demo", 12, 96, seed=4).read_bytes() == before


def test_ciede2000_gives_the_published_values() -> None:
    # Sharma, Wu and Dalal, 2005, table 1.
    pairs = [
        ((50.0, 2.6772, -79.7751), (50.0, 0.0, -82.7485), 2.0425),
        ((50.0, -1.3802, -84.2814), (50.0, 0.0, -82.7485), 1.0000),
        ((50.0, 2.5, 0.0), (50.0, 0.0, -2.5), 4.3065),
        ((50.0, 2.5, 0.0), (61.0, -5.0, 29.0), 22.8977),
        ((60.2574, -34.0099, 36.2677), (60.4626, -34.1751, 39.4387), 1.2644),
        ((2.0776, 0.0795, -1.1350), (0.9033, -0.0636, -0.5514), 0.9082),
    ]
    for one, other, expected in pairs:
        assert difference(np.array(one), np.array(other)) == pytest.approx(expected, abs=1e-4)
    assert to_lab(np.array((255, 255, 255), np.uint8)) == pytest.approx((100, 0, 0), abs=1e-3)


def test_the_answer_itself_scores_full_marks_and_the_photo_does_not() -> None:
    for kind in ("flat-lay", "grey", "background"):
        sample = draw(17, 128, kind)
        best, worst = score(sample.target, sample), score(sample.photo, sample)
        assert best.psnr == 99 and best.ssim == pytest.approx(1) and best.followed and best.delta_e == 0
        assert not worst.followed and worst.psnr < 20
        assert kind == "background" or (best.iou or best.iou_white or 0) > 0.95
        assert best.white_border == (1 if kind == "flat-lay" else None)


def test_ssim_is_that_of_the_paper() -> None:
    picture = np.asarray(draw(2, 64).photo)
    noise = np.random.default_rng(0).integers(-40, 40, picture.shape)
    noisy = np.clip(picture + noise, 0, 255).astype(np.uint8)
    bell = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    window = np.outer(bell, bell) / bell.sum() ** 2
    x, y = (pixels.astype(float) @ (0.299, 0.587, 0.114) for pixels in (picture, noisy))
    values = []
    for top, left in np.ndindex(54, 54):
        a, b = x[top : top + 11, left : left + 11], y[top : top + 11, left : left + 11]
        ma, mb = (window * a).sum(), (window * b).sum()
        va, vb, vab = (
            (window * (a - ma) ** 2).sum(),
            (window * (b - mb) ** 2).sum(),
            (window * (a - ma) * (b - mb)).sum(),
        )
        values.append((2 * ma * mb + 6.5025) * (2 * vab + 58.5225) / ((ma**2 + mb**2 + 6.5025) * (va + vb + 58.5225)))
    assert ssim(picture, noisy) == pytest.approx(np.mean(values), abs=1e-9) and np.mean(values) < 0.9
    assert blur(np.ones((20, 30))) == pytest.approx(np.ones((10, 20)))


def test_the_ground_is_told_by_the_border() -> None:
    for kind, colour in GROUNDS.items():
        assert ground_kind(to_lab(np.full((32, 32, 3), colour, np.uint8))) == kind
    assert ground_kind(to_lab(np.full((32, 32, 3), (90, 40, 40), np.uint8))) is None


def test_dungarees_are_drawn_only_on_demand_and_change_nothing_else() -> None:
    plain, styled = draw(7, 96), draw(7, 96, style="dungarees")
    assert styled.garment.kind == "dungarees" and styled.garment.description.endswith("dungarees")
    assert (styled.person, styled.prompt) == (plain.person, plain.prompt)
    assert styled.photo.tobytes() != plain.photo.tobytes()
    assert all(draw(seed, 32).garment.kind != "dungarees" for seed in range(20))
    for seed in range(6):
        sample = draw(seed, 68, "flat-lay", style="dungarees")
        figures = score(sample.target, sample)
        assert figures.iou is not None and figures.iou > 0.95
        picture = np.asarray(sample.target).astype(int)
        assert (picture[:3] == 255).all() and (picture[:, :3] == 255).all()
        assert (np.abs(picture - picture[:, ::-1]).max(axis=2) > 60).mean() < 0.035


def test_triples_are_files_that_training_reads(tmp_path: Path) -> None:
    path = write_triples(tmp_path, 3, 64, first_seed=50, style="dungarees")
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for number, row in enumerate(rows):
        sample = draw(50 + number, 64, style="dungarees")
        assert row["prompt"] == sample.prompt
        for column, picture in (("condition", sample.photo), ("target", sample.target)):
            with Image.open(tmp_path / row[column]) as stored:
                assert stored.tobytes() == picture.tobytes()
    assert len(rows) == 3
