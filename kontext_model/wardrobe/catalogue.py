"""Wardrobe pictures as files: a demo catalogue, and triples to train on.

Owns file names and the mix of shapes. Overwrites what an earlier call with the same arguments wrote.
"""

import csv
from pathlib import Path

from kontext_model.wardrobe.prompts import PROMPTS
from kontext_model.wardrobe.world import draw

# Mostly square, as the small checkpoint was trained.
SHAPES = ((1, 1), (1, 1), (3, 4), (1, 1), (1, 1), (4, 3))
COLUMNS = ("image", "custom_id", "preset", "prompt", "seed", "description")


def write_catalogue(folder: Path, count: int, size_px: int = 512, seed: int = 0) -> Path:
    """Write `count` photos (area about size_px²; JPEG, every fourth PNG) and their catalogue; gives catalogue.csv.

    Most rows name the preset `flat-lay`; every sixth asks for light grey, every ninth for another background.
    """
    photos = folder / "photos"
    photos.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(count):
        across, down = SHAPES[number % len(SHAPES)]
        unit = size_px / (across * down) ** 0.5
        sample = draw(seed + number, (round(across * unit), round(down * unit)), "flat-lay")
        kind = "background" if number % 9 == 7 else "grey" if number % 6 == 4 else "flat-lay"
        name = f"look-{number + 1:0{max(3, len(str(count)))}d}"
        path = photos / f"{name}.{'png' if number % 4 == 3 else 'jpg'}"
        sample.photo.save(path, quality=92)
        preset, prompt = ("flat-lay", "") if kind == "flat-lay" else ("", PROMPTS[kind][0])
        rows.append((f"photos/{path.name}", name, preset, prompt, number, sample.garment.description))
    catalogue = folder / "catalogue.csv"
    with catalogue.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(rows)
    return catalogue


def write_triples(folder: Path, count: int, size_px: int, first_seed: int, style: str | None = None) -> Path:
    """Write `count` triples (condition, prompt, target) from `first_seed` on, as one would one's own; gives the CSV.

    The CSV appears last and whole.
    """
    rows = []
    for part in ("condition", "target"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        sample = draw(first_seed + number, size_px, style=style)
        names = [f"{part}/{number:05d}.png" for part in ("condition", "target")]
        for name, picture in zip(names, (sample.photo, sample.target), strict=True):
            picture.save(folder / name, compress_level=1)
        rows.append((names[0], sample.prompt, names[1]))
    path = folder / "triples.csv"
    partial = path.with_suffix(".partial")
    with partial.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("condition", "prompt", "target"), *rows])
    partial.replace(path)
    return path
