"""Evaluates a checkpoint on held-out wardrobe samples.

Owns which samples, the tables, the plot and the grid. Imports torch: nothing else in the wardrobe may import it.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from kontext_model.canvas import Canvas
from kontext_model.editor import KontextEditor
from kontext_model.wardrobe.score import Score, score
from kontext_model.wardrobe.world import Sample, draw

HELD_OUT_SEED = 900_000_000
"""Evaluation's first seed; training's stay far below."""
TOGETHER = 8


@dataclass(frozen=True)
class Edited:
    """One held-out sample, what the checkpoint made of it, and how good that is."""

    sample: Sample
    result: Image.Image
    score: Score


def evaluate(
    checkpoint: Path,
    folder: Path,
    count: int = 200,
    steps: Sequence[int] = (8,),
    side_px: int | None = None,
    device: str = "cpu",
    report: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Edit `count` held-out samples at each step count; write report.json, grid.png and quality.png into the folder.

    `side_px` is the side of the square pictures (default: from the checkpoint's area). Gives what report.json holds.
    """
    editor = KontextEditor.open(checkpoint, device=device)
    side = side_px or round(editor.defaults.area_px**0.5 / 16) * 16
    folder.mkdir(parents=True, exist_ok=True)
    runs = []
    for number in steps:
        began_s = time.perf_counter()
        edited = list(_edit(editor, side, count, number))
        seconds = (time.perf_counter() - began_s) / count
        runs.append({"steps": number, "seconds_an_image": round(seconds, 3), **_tables(edited)})
        figures = runs[-1]["all"]
        report(
            f"{number} steps  {'  '.join(f'{name} {value}' for name, value in figures.items())}  {seconds:.2f} s/image"
        )
        _draw_grid(edited).save(folder / f"grid-{number}-steps.png")
    table = {"checkpoint_revision": editor.revision, "side_px": side, "count": count, "runs": runs}
    (folder / "report.json").write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
    _draw_plot(runs).save(folder / "quality.png")
    return table


def _edit(editor: KontextEditor, side: int, count: int, steps: int) -> Iterator[Edited]:
    canvas = Canvas(side, side)
    for first in range(0, count, TOGETHER):
        samples = [draw(HELD_OUT_SEED + number, side) for number in range(first, min(count, first + TOGETHER))]
        condition = editor.encode_images([sample.photo for sample in samples], canvas)
        embeds = editor.encode_text([sample.prompt for sample in samples])
        tokens = editor.sample(
            condition, embeds, canvas, [sample.seed for sample in samples], steps, editor.defaults.guidance
        )
        for sample, result in zip(samples, editor.decode(tokens, canvas), strict=True):
            yield Edited(sample, result, score(result, sample))


def _tables(edited: list[Edited]) -> dict[str, Any]:
    kinds = sorted({each.sample.prompt_kind for each in edited})
    flat = [each for each in edited if each.sample.prompt_kind != "background"]
    garments = sorted({each.sample.garment.kind for each in flat})
    return {
        "all": summarise([each.score for each in edited]),
        "by_prompt": {
            kind: summarise([each.score for each in edited if each.sample.prompt_kind == kind]) for kind in kinds
        },
        "by_garment": {
            kind: summarise([each.score for each in flat if each.sample.garment.kind == kind]) for kind in garments
        },
    }


def summarise(scores: Sequence[Score]) -> dict[str, float]:
    """Means over those scores that have the figure; ΔE as the median of medians."""
    table: dict[str, float] = {"count": len(scores)}
    for name in asdict(scores[0]):
        values = [float(getattr(each, name)) for each in scores if getattr(each, name) is not None]
        if values:
            table[name] = round(float(np.median(values) if name == "delta_e" else np.mean(values)), 4)
    return table


def _draw_grid(edited: list[Edited], rows: int = 6, across: int = 4) -> Image.Image:
    """Photo | result | answer, the first of them."""
    shown = edited[: rows * across]
    width, height = shown[0].result.size
    sheet = Image.new("RGB", (across * (3 * width + 16), -(-len(shown) // across) * (height + 8)), (112, 116, 124))
    for number, each in enumerate(shown):
        x, y = number % across * (3 * width + 16) + 4, number // across * (height + 8) + 4
        for place, picture in enumerate((each.sample.photo, each.result, each.sample.target)):
            sheet.paste(picture, (x + place * (width + 2), y))
    return sheet


def _draw_plot(runs: list[dict[str, Any]], width: int = 720, height: int = 400) -> Image.Image:
    """Quality against steps and seconds: IoU and SSIM on the scale 0 to 1, PSNR in 40ths of a decibel scale."""
    picture = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(picture)
    left, top, right, bottom = 60, 24, width - 150, height - 56
    pen.rectangle((left, top, right, bottom), outline=(180, 180, 180))
    for tenth in range(0, 11, 2):
        y = bottom - (bottom - top) * tenth / 10
        pen.text((left - 30, y - 6), f"{tenth / 10:.1f}", fill=(90, 90, 90))
        pen.line((left, y, right, y), fill=(232, 232, 232))
    places = [left + (right - left) * (number + 0.5) / len(runs) for number in range(len(runs))]
    for x, run in zip(places, runs, strict=True):
        pen.text((x - 24, bottom + 8), f"{run['steps']} steps\n{run['seconds_an_image']:.2f} s", fill=(60, 60, 60))
    series = (
        ("iou", 1, "IoU", (58, 112, 196)),
        ("ssim", 1, "SSIM", (58, 142, 86)),
        ("psnr", 40, "PSNR / 40 dB", (206, 52, 58)),
    )
    for row, (name, scale, label, colour) in enumerate(series):
        dots = [
            (x, bottom - (bottom - top) * run["all"].get(name, 0) / scale) for x, run in zip(places, runs, strict=True)
        ]
        if len(dots) > 1:
            pen.line(dots, fill=colour, width=3)
        for x, y in dots:
            pen.ellipse((x - 4, y - 4, x + 4, y + 4), fill=colour)
        pen.text((right + 14, top + 20 * row), label, fill=colour)
    return picture
