"""`python -m kontext_model.wardrobe.lora_study CHECKPOINT FOLDER`: what a LoRA learns in ten minutes.

Draws triples of dungarees, which the wardrobe's training never shows, as files that could be anyone's; trains a LoRA on
them as `dungarees_lora.toml` says; and evaluates held-out dungarees without and with it. Started again after an
interruption it goes on.
"""

import argparse
import json
import os
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from kontext_model.revision import CheckpointError
from kontext_model.text import CutPromptWarning
from kontext_model.training.config import ConfigError, TrainingConfig, read_config
from kontext_model.training.shipping import export_lora
from kontext_model.training.trainer import Trainer
from kontext_model.training.triples import TripleError
from kontext_model.wardrobe.catalogue import write_triples
from kontext_model.wardrobe.evaluation import Evaluation, Question, as_json, evaluate
from kontext_model.wardrobe.plates import draw_grid
from kontext_model.wardrobe.report import FIGURES, Progress, caption, figures_of, form

STYLE, FIRST_SEED = "dungarees", 3_000_000
CONFIG = Path(__file__).with_name("dungarees_lora.toml")


def main(arguments: list[str] | None = None) -> int:
    """Run the study; 2 after a clear error."""
    parser = argparse.ArgumentParser(prog="python -m kontext_model.wardrobe.lora_study", description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--config", type=Path, default=CONFIG, help="what to train, and for how long")
    parser.add_argument("--triples", type=int, default=240)
    parser.add_argument("--count", type=int, default=60, help="held-out samples")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--threads", type=int, help="CPU threads; default: torch's choice")
    given = parser.parse_args(arguments)
    if given.threads:
        torch.set_num_threads(given.threads)
    # The longest wording exceeds what a small text encoder reads; the checkpoint was trained on it cut.
    warnings.simplefilter("ignore", CutPromptWarning)
    try:
        config = replace(read_config(given.config), checkpoint=str(given.checkpoint), out=str(given.folder / "run"))
        study(config, given.folder, given.triples, given.count, given.steps)
    except (CheckpointError, ConfigError, TripleError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def study(
    config: TrainingConfig,
    folder: Path,
    triples: int,
    count: int,
    steps: int,
    report: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Draw, train, export, compare; writes lora/, report.json and comparison.png into the folder, gives the JSON."""
    side = round(config.phases[-1].area_px ** 0.5 / 16) * 16
    source = folder / "triples" / "triples.csv"
    if not source.exists():
        write_triples(source.parent, triples, side, FIRST_SEED, STYLE)
    config = replace(config, data=replace(config.data, source=str(source)))
    trained = _train(config, report)
    lora = export_lora(config, folder / "lora") / "pytorch_lora_weights.safetensors"
    question = Question(config.checkpoint, count, side, steps, style=STYLE, device=config.device)
    without, with_lora = (evaluate(each, Progress()) for each in (question, replace(question, lora=lora)))
    for line in compare(without, with_lora):
        report(line)
    _draw(without, with_lora, folder / "comparison.png")
    table = {"training": trained, "without": as_json(without), "with": as_json(with_lora)}
    (folder / "report.json").write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
    report(f"\n{lora}\n{folder / 'comparison.png'}\n{folder / 'report.json'}")
    return table


def _train(config: TrainingConfig, report: Callable[[str], None]) -> dict[str, float]:
    """Train to the end; gives steps and minutes, of the clock and of all cores together."""
    began_s, began_cpu_s = time.monotonic(), time.process_time()
    trainer = Trainer(config, report=report)
    began = trainer.step
    trainer.train()
    minutes, cpu_minutes = (time.monotonic() - began_s) / 60, (time.process_time() - began_cpu_s) / 60
    report(
        f"trained steps {began} to {trainer.step} in {minutes:.1f} minutes ({cpu_minutes:.1f} of CPU time,"
        f" {torch.get_num_threads()} threads of {os.cpu_count()} cores)\n"
    )
    return {"steps": trainer.step - began, "minutes": round(minutes, 2), "cpu_minutes": round(cpu_minutes, 2)}


def compare(without: Evaluation, with_lora: Evaluation) -> list[str]:
    """A table of figures without and with the LoRA."""
    before, after = figures_of(without.main), figures_of(with_lora.main)
    lines = [
        f"{without.question.count} held-out {STYLE}, {without.side_px} px, {without.main.steps} steps",
        f"{'figure':<24}{'without':>10}{'with':>10}",
    ]
    for figure in FIGURES:
        if figure.name in before or figure.name in after:
            cells = "".join(f"{form(figure, each.get(figure.name)):>10}" for each in (before, after))
            lines.append(f"{figure.label:<24}{cells}")
    return lines


def _draw(without: Evaluation, with_lora: Evaluation, path: Path) -> None:
    steps = without.question.steps
    cells = [
        (
            (one.sample.photo, one.results[steps][0], other.results[steps][0], one.sample.target),
            f"with LoRA: {caption(other, steps)}",
        )
        for one, other in zip(without.shown, with_lora.shown, strict=True)
    ]
    draw_grid(cells, ("photo", "without LoRA", "with LoRA", "answer"), across=2).save(path)


if __name__ == "__main__":
    sys.exit(main())
