"""An evaluation as tables, files and pictures.

Owns the bars, the words of the figures, and which files there are. Refuses to measure; `plates` draws.
"""

import json
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kontext_model.wardrobe.evaluation import Evaluation, Question, Run, Shown, as_json, evaluate
from kontext_model.wardrobe.plates import draw_grid, draw_plot

BAR_SIDE_PX, BAR_STEPS = 256, 8


@dataclass(frozen=True)
class Figure:
    """A figure in words: how it is printed, and the bar it must reach; `at_most` where less is better."""

    name: str
    label: str
    form: str
    bar: float | None = None
    at_most: bool = False

    def reached(self, value: float) -> bool | None:
        """Whether the bar is reached; None without one."""
        if self.bar is None:
            return None
        return value <= self.bar if self.at_most else value >= self.bar

    def verdict(self, value: float | None) -> str:
        """Such as "≥ 0.90  reached"."""
        if value is None or self.bar is None:
            return ""
        sign = "≤" if self.at_most else "≥"
        return f"{sign} {self.form.format(self.bar):<8} {'reached' if self.reached(value) else 'MISSED'}"


FIGURES = (
    Figure("iou", "garment mask IoU", "{:.3f}", 0.90),
    Figure("iou_white", "… white garments", "{:.3f}"),
    Figure("white_border", "white border", "{:.1%}", 0.99),
    Figure("psnr", "PSNR, dB", "{:.2f}", 20.0),
    Figure("ssim", "SSIM", "{:.3f}"),
    Figure("delta_e", "ΔE2000 in the mask", "{:.2f}", 8.0, at_most=True),
    Figure("followed", "right prompt followed", "{:.1%}", 0.98),
    Figure("seconds", "seconds an image", "{:.2f}", 1.0, at_most=True),
)
"""What is printed, in this order. White garments can hardly be told from their ground by colour: they stand apart,
measured by what their outline encloses."""


def show(question: Question, folder: Path, as_object: bool = False, report: Callable[[str], None] = print) -> None:
    """Evaluate, write into the folder and report tables, or with `as_object` one JSON object; progress on stderr."""
    evaluation = evaluate(question, Progress())
    table = write(evaluation, folder)
    if as_object:
        report(json.dumps(table, ensure_ascii=False))
        return
    for line in lay_out_tables(evaluation):
        report(line)
    report(f"\n{', '.join(path.name for path in sorted(folder.glob('*')) if path.is_file())} in {folder}")


class Progress:
    """Progress on stderr: a line that is written over on a terminal, one every half minute elsewhere."""

    def __init__(self) -> None:
        self.began_s, self.told_s = time.monotonic(), 0.0

    def __call__(self, done: int, count: int) -> None:
        now_s, terminal = time.monotonic(), sys.stderr.isatty()
        if not terminal and now_s - self.told_s < 30 and done < count:
            return
        self.told_s = now_s
        left_s = (now_s - self.began_s) / done * (count - done)
        line = f"{done}/{count} samples, {left_s / 60:.1f} min left"
        print(f"\r{line:<40}" if terminal else line, end="" if terminal and done < count else "\n", file=sys.stderr)


def write(evaluation: Evaluation, folder: Path) -> dict[str, Any]:
    """Write report.json, grid.png and, of several step counts, steps.png and quality.png; gives what the JSON holds."""
    folder.mkdir(parents=True, exist_ok=True)
    table = as_json(evaluation) | {"bars": judge(evaluation)}
    (folder / "report.json").write_text(json.dumps(table, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    shown, main = evaluation.shown, evaluation.question.steps
    by_prompt = sorted(shown, key=lambda each: ("flat-lay", "grey", "background").index(each.sample.prompt_kind))
    cells = [
        ((each.sample.photo, each.results[main][0], each.sample.target), caption(each, main)) for each in by_prompt
    ]
    draw_grid(cells, ("photo", "result", "answer")).save(folder / "grid.png")
    if len(evaluation.runs) > 1:
        counts = [run.steps for run in evaluation.runs]
        rows = [
            (
                (each.sample.photo, *(each.results[steps][0] for steps in counts), each.sample.target),
                caption(each, main),
            )
            for each in by_prompt[:: max(1, len(by_prompt) // 4)]
        ]
        titles = ("photo", *(f"{steps} step{'s' * (steps > 1)}" for steps in counts), "answer")
        draw_grid(rows, titles, across=1).save(folder / "steps.png")
        bars = {each.name: each.bar for each in FIGURES if each.bar is not None}
        if not draw_plot(evaluation.runs, bars, folder / "quality.png"):
            print("quality.png is left out: pip install 'kontext-batch[plots]'", file=sys.stderr)
    return table


def judge(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Every figure that has a bar: value, bar, and whether it is reached."""
    values = figures_of(evaluation.main)
    return [
        {"figure": each.name, "value": values[each.name], "bar": each.bar, "reached": each.reached(values[each.name])}
        for each in FIGURES
        if each.bar is not None and each.name in values
    ]


def figures_of(run: Run) -> dict[str, float]:
    """A run's means over everything, seconds with them."""
    return run.all | {"seconds": run.seconds_an_image}


def lay_out_tables(evaluation: Evaluation) -> Iterable[str]:
    """The lines that a reader sees: figures against bars, then by prompt, garment and step count."""
    question, main = evaluation.question, evaluation.main
    extras = [
        f"style {question.style}" if question.style else "",
        f"LoRA {question.lora}" if question.lora else "",
    ]
    facts = [
        f"{question.checkpoint} {evaluation.revision[:12]}",
        *filter(None, extras),
        f"{question.count} held-out samples",
        f"{evaluation.side_px} px",
        f"{main.steps} steps",
        f"{question.device}, {evaluation.threads} threads",
    ]
    yield " · ".join(facts)
    if (evaluation.side_px, main.steps) != (BAR_SIDE_PX, BAR_STEPS):
        yield f"(the bars are set for {BAR_SIDE_PX} px and {BAR_STEPS} steps)"
    yield ""
    values = figures_of(main)
    for figure in FIGURES:
        value = values.get(figure.name)
        yield f"{figure.label:<24}{form(figure, value):>9}   {figure.verdict(value)}".rstrip()
    tables: list[tuple[str, dict[str, dict[str, float]]]] = [("prompt", main.by_prompt), ("garment", main.by_garment)]
    if len(evaluation.runs) > 1:
        tables.append(("steps", {str(run.steps): figures_of(run) for run in evaluation.runs}))
    for title, rows in tables:
        columns = [each for each in FIGURES if any(each.name in row for row in rows.values())]
        yield ""
        yield f"{title:<12}{'samples':>8}" + "".join(f"{_SHORT[each.name]:>10}" for each in columns)
        for name, row in rows.items():
            cells = "".join(f"{form(each, row.get(each.name)):>10}" for each in columns)
            yield f"{name:<12}{int(row['count']):>8}{cells}"


_SHORT = {
    "iou": "IoU", "iou_white": "IoU white", "white_border": "border", "psnr": "PSNR", "ssim": "SSIM",
    "delta_e": "ΔE", "followed": "followed", "seconds": "s/image",
}  # fmt: skip


def form(figure: Figure, value: float | None) -> str:
    """The value as the figure is printed; a dash without one."""
    return "–" if value is None else figure.form.format(value)


def caption(shown: Shown, steps: int) -> str:
    """What stands under a sample: prompt, figures, garment."""
    sample, score = shown.sample, shown.results[steps][1]
    overlaps = score.iou if score.iou is not None else score.iou_white
    iou = "" if overlaps is None else f" · IoU {overlaps:.2f}"
    # The built-in font has no Δ.
    return f"{sample.prompt_kind} · {score.psnr:.1f} dB{iou} · dE {score.delta_e:.1f} · {sample.garment.description}"
