"""Evaluates a checkpoint on held-out wardrobe samples.

Owns which samples, how they are edited and timed, and the means; `report` prints and draws them. Imports torch, which
no module that draws the wardrobe may do.
"""

import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from kontext_model.canvas import Canvas
from kontext_model.editor import MAX_TOGETHER, KontextEditor
from kontext_model.lora import Adapters, open_lora
from kontext_model.text import CutPromptWarning
from kontext_model.wardrobe.score import Score, score
from kontext_model.wardrobe.world import STYLES, Sample, choose_kind, draw

HELD_OUT_SEED = 900_000_000
"""Evaluation draws this seed and those after it, and nothing else does: training triples start at 1,000,000, the
autoencoder's fit at 5,000,000, validation at 9,000,000, the decoder's crops at 10,000,000 times its run's seed, what
the decoder settles on at 40,000,000."""
SHOWN = {"flat-lay": 6, "grey": 3, "background": 3}
"""How many samples of each prompt the grid shows: the first by seed, whatever became of them."""
OnProgress = Callable[[int, int], object]


@dataclass(frozen=True)
class Question:
    """What is measured.

    `side_px` None takes the checkpoint's own; `sweep` adds step counts; `style` is one of the wardrobe's that the
    training does not draw; `lora` a file, folder or hub id.
    """

    checkpoint: str | Path
    count: int = 200
    side_px: int | None = None
    steps: int = 8
    sweep: tuple[int, ...] = ()
    device: str = "cpu"
    lora: str | Path | None = None
    style: str | None = None

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"count must be at least 1, not {self.count}")
        if self.style is not None and self.style not in STYLES:
            raise ValueError(f"unknown style {self.style!r}; known: {', '.join(STYLES)}")
        if any(steps < 1 for steps in self.step_counts):
            raise ValueError(f"step counts must be at least 1, not {', '.join(map(str, self.step_counts))}")
        if self.side_px is not None and (self.side_px < 32 or self.side_px % 16):
            raise ValueError(f"the side in pixels must be a multiple of 16 from 32 on, not {self.side_px}")

    @property
    def step_counts(self) -> tuple[int, ...]:
        """Every step count that is run, rising."""
        return tuple(sorted({self.steps, *self.sweep}))


def read_counts(words: str) -> tuple[int, ...]:
    """Step counts from "1,2,4". Raises ValueError for anything else."""
    try:
        return tuple(int(word) for word in words.split(",") if word.strip())
    except ValueError:
        raise ValueError(
            f"step counts must be numbers with commas between them, such as 1,2,4, not {words!r}"
        ) from None


@dataclass(frozen=True)
class Run:
    """One step count: seconds an image in units of MAX_TOGETHER (encode, sample, decode), and means."""

    steps: int
    seconds_an_image: float
    all: dict[str, float]
    by_prompt: dict[str, dict[str, float]]
    by_garment: dict[str, dict[str, float]]


@dataclass(frozen=True)
class Shown:
    """A sample of the grid, and by step count what the checkpoint made of it and how good that is."""

    sample: Sample
    results: dict[int, tuple[Image.Image, Score]]


@dataclass(frozen=True)
class Mark:
    """A sample without its pictures: what was asked of what, and the score by step count."""

    prompt_kind: str
    garment_kind: str
    scores: dict[int, Score]


@dataclass(frozen=True)
class Evaluation:
    """The answer to a question."""

    question: Question
    revision: str
    side_px: int
    threads: int
    runs: tuple[Run, ...]
    shown: tuple[Shown, ...]

    @property
    def main(self) -> Run:
        """The run at the question's own step count."""
        return next(run for run in self.runs if run.steps == self.question.steps)


def evaluate(question: Question, on_progress: OnProgress = lambda done, count: None) -> Evaluation:
    """Edit the held-out samples at every step count and score them; nothing is written.

    `on_progress` hears how many samples are done, and of how many. Raises CheckpointError or LoraError for a checkpoint
    or LoRA that cannot be used.
    """
    editor = KontextEditor.open(question.checkpoint, device=question.device)
    side = question.side_px or round(editor.defaults.area_px**0.5 / 16) * 16
    shown_numbers = _choose_shown(question.count)
    seconds = dict.fromkeys(question.step_counts, 0.0)
    marks: list[Mark] = []
    shown: list[Shown] = []
    with _adapted(editor, question.lora):
        _edit(editor, [draw(0, side)], side, (1,))  # the first call of a process is slow
        for first in range(0, question.count, MAX_TOGETHER):
            numbers = range(first, min(question.count, first + MAX_TOGETHER))
            samples = [draw(HELD_OUT_SEED + number, side, style=question.style) for number in numbers]
            made = _edit(editor, samples, side, question.step_counts)
            for place, sample in enumerate(samples):
                results = {steps: (each[place], score(each[place], sample)) for steps, (each, _) in made.items()}
                scores = {steps: figures for steps, (_, figures) in results.items()}
                marks.append(Mark(sample.prompt_kind, sample.garment.kind, scores))
                if numbers[place] in shown_numbers:
                    shown.append(Shown(sample, results))
            for steps, (_, taken_s) in made.items():
                seconds[steps] += taken_s
            on_progress(numbers.stop, question.count)
    runs = tuple(_sum_up(steps, taken_s / question.count, marks) for steps, taken_s in seconds.items())
    return Evaluation(question, editor.revision, side, torch.get_num_threads(), runs, tuple(shown))


def _adapted(editor: KontextEditor, lora: str | Path | None) -> AbstractContextManager[None]:
    if lora is None:
        return nullcontext()
    return Adapters(editor.checkpoint.transformer).applied(open_lora(lora))


def _edit(
    editor: KontextEditor, samples: Sequence[Sample], side: int, step_counts: Sequence[int]
) -> dict[int, tuple[list[Image.Image], float]]:
    """Pictures and seconds by step count; encoding, done once, counts for each."""
    canvas, began_s = Canvas(side, side), time.perf_counter()
    condition = editor.encode_images([sample.photo for sample in samples], canvas)
    with warnings.catch_warnings():
        # The longest wording exceeds what a small text encoder reads; the model was trained on it cut.
        warnings.simplefilter("ignore", CutPromptWarning)
        embeds = editor.encode_text([sample.prompt for sample in samples])
    if editor.checkpoint.device.type == "cuda":
        torch.cuda.synchronize(editor.checkpoint.device)  # else the first sampling waits for what is encoded
    encoding_s = time.perf_counter() - began_s
    made = {}
    for steps in step_counts:
        began_s = time.perf_counter()
        seeds = [sample.seed for sample in samples]
        tokens = editor.sample(condition, embeds, canvas, seeds, steps, editor.defaults.guidance)
        made[steps] = (editor.decode(tokens, canvas), encoding_s + time.perf_counter() - began_s)
    return made


def _choose_shown(count: int) -> frozenset[int]:
    """The first held-out samples of each prompt."""
    by_kind: dict[str, list[int]] = {kind: [] for kind in SHOWN}
    for number in range(count):
        by_kind[choose_kind(HELD_OUT_SEED + number)].append(number)
    return frozenset(number for kind, numbers in by_kind.items() for number in numbers[: SHOWN[kind]])


def _sum_up(steps: int, seconds: float, marks: Sequence[Mark]) -> Run:
    """Means over everything, by prompt, and by garment among the flat lays."""

    def split(name: str, chosen: Sequence[Mark]) -> dict[str, dict[str, float]]:
        groups: dict[str, list[Score]] = defaultdict(list)
        for mark in chosen:
            groups[getattr(mark, name)].append(mark.scores[steps])
        return {key: summarise(groups[key]) for key in sorted(groups)}

    flat = [mark for mark in marks if mark.prompt_kind != "background"]
    everything = summarise([mark.scores[steps] for mark in marks])
    return Run(steps, round(seconds, 4), everything, split("prompt_kind", marks), split("garment_kind", flat))


def summarise(scores: Sequence[Score]) -> dict[str, float]:
    """Means over those scores that have the figure; of ΔE the median."""
    table: dict[str, float] = {"count": len(scores)}
    for name in asdict(scores[0]):
        values = [float(getattr(each, name)) for each in scores if getattr(each, name) is not None]
        if values:
            table[name] = round(float(np.median(values) if name == "delta_e" else np.mean(values)), 4)
    return table


def as_json(evaluation: Evaluation) -> dict[str, Any]:
    """What report.json holds, less the bars."""
    question = evaluation.question
    return {
        "checkpoint": str(question.checkpoint),
        "revision": evaluation.revision,
        "lora": str(question.lora) if question.lora else None,
        "style": question.style,
        "side_px": evaluation.side_px,
        "count": question.count,
        "first_seed": HELD_OUT_SEED,
        "steps": question.steps,
        "device": question.device,
        "threads": evaluation.threads,
        "unit": MAX_TOGETHER,
        "runs": [asdict(run) for run in evaluation.runs],
    }
