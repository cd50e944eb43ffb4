"""Plates: a grid of pictures with captions, and the plot of quality against steps and seconds."""

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from kontext_model.wardrobe.evaluation import Run

GAP_PX, CAPTION_PX = 6, 22
PAPER, INK = (112, 116, 124), (255, 255, 255)


def draw_grid(
    cells: Sequence[tuple[Sequence[Image.Image], str]], titles: Sequence[str], across: int = 3
) -> Image.Image:
    """Cells of pictures of one size side by side, each with its caption, `across` of them in a row."""
    width, height = cells[0][0][0].size
    across = min(across, len(cells))
    wide, high = len(titles) * (width + GAP_PX) + GAP_PX, height + CAPTION_PX + GAP_PX
    down = -(-len(cells) // across)
    sheet = Image.new("RGB", (across * wide, CAPTION_PX + down * high), PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for number, (pictures, words) in enumerate(cells):
        left, top = number % across * wide + GAP_PX, CAPTION_PX + number // across * high
        for place, picture in enumerate(pictures):
            x = left + place * (width + GAP_PX)
            sheet.paste(picture, (x, top))
            if number < across:
                pen.text((x, 3), titles[place], INK, font)
        while len(words) > 1 and pen.textlength(words, font) > wide - 2 * GAP_PX:
            words = words[:-2] + "…"
        pen.text((left, top + height + 2), words, INK, font)
    return sheet


def draw_plot(runs: Sequence[Run], bars: Mapping[str, float], path: Path) -> bool:
    """Quality against steps and against seconds; False, with nothing drawn, where matplotlib is not installed.

    `bars` are drawn dotted, by the figure's name."""
    if importlib.util.find_spec("matplotlib") is None:
        return False
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(9, 6), layout="constrained")
    axes = drawing.subplots(2, 2, sharex="col", sharey="row")
    rows = ((("psnr", "PSNR", "#ce343a"),), (("iou", "mask IoU", "#3a70c4"), ("ssim", "SSIM", "#3a8e56")))
    scales: tuple[Sequence[float], ...] = ([run.steps for run in runs], [run.seconds_an_image for run in runs])
    for across, places in enumerate(scales):
        for down, series in enumerate(rows):
            axis = axes[down][across]
            for name, label, colour in series:
                known = [(x, run.all[name], run.steps) for x, run in zip(places, runs, strict=True) if name in run.all]
                axis.plot([x for x, _, _ in known], [y for _, y, _ in known], "o-", color=colour, label=label)
                if name in bars:
                    axis.axhline(bars[name], color=colour, linestyle=":", linewidth=1)
                for x, y, steps in known if across else ():
                    axis.annotate(str(steps), (x, y), textcoords="offset points", xytext=(5, 5), fontsize=8)
            axis.set_xscale("log", base=2) if across == 0 else axis.set_xlim(left=0)
            axis.grid(alpha=0.25)
    axes[1][0].set_xticks([run.steps for run in runs], [str(run.steps) for run in runs])
    axes[1][0].set_xlabel("steps")
    axes[1][1].set_xlabel("seconds an image; numbers are steps")
    axes[0][0].set_ylabel("PSNR, dB")
    axes[1][0].set_ylabel("mask IoU and SSIM, 0 to 1")
    axes[1][0].legend()
    drawing.suptitle("Quality on held-out samples; dotted: the bar")
    drawing.savefig(path, dpi=110)
    return True
