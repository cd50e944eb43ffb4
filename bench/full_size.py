"""Seconds an image at the published size of FLUX.1 Kontext [dev], against diffusers' own pipeline, on a graphics card.

`python -m bench.full_size` needs a card of 40 GB and no files: the weights are random, which takes the time of trained
ones. Step caches that look at values (`first_block`, `magcache`) are left out: over random weights they would skip what
no trained model lets them skip. Each figure is printed, and written to `--json`, as soon as it is measured.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import FluxKontextPipeline
from PIL import Image
from torch import Tensor

from bench.random_weights import PUBLISHED, SEED, Size, Subject, build_subject, count_flops
from kontext_model import KontextEditor, latents
from kontext_model.acceleration import PLAIN, Acceleration, apply
from kontext_model.canvas import Canvas
from kontext_model.checkpoint import DTYPES, Checkpoint, silence
from kontext_model.revision import Defaults

FLOOR_TFLOPS = 790.0
"""TFLOP/s of a large bf16 matrix product on an H100 or H200: the floor is an image whose every FLOP runs at that."""
CASES: Mapping[str, Acceleration | None] = MappingProxyType(
    {
        "stock": None,
        "ours": PLAIN,
        "cudnn": Acceleration(attention="cudnn"),
        "taylorseer": Acceleration(step_cache="taylorseer"),
        "compile": Acceleration(compile=True),
    }
)
"""What is measured, by name; None is diffusers' pipeline, the others our editor."""
USUAL_CASES = ("stock", "ours", "taylorseer", "compile")
WARM_STEPS = 2
TEXT_PARTS = ("tokenizer", "text_encoder", "tokenizer_2", "text_encoder_2")


@dataclass(frozen=True)
class Edited:
    """An edit's last latents (1, canvas.tokens, 64) and its picture."""

    latents: Tensor
    picture: Image.Image


Edit = Callable[[int], Edited]
"""Edits the subject in so many steps."""


@dataclass
class Record:
    """What was measured of a case; `*_apart` are the largest differences from the first picture of `stock`.

    Latents are compared relative to stock's largest value, pictures in levels of 255.
    """

    seconds: list[float] = field(default_factory=list)
    peak_bytes: int = 0
    compile_s: float | None = None
    latents_apart: float | None = None
    levels_apart: int | None = None
    error: str = ""

    def summarise(self, floor_s: float) -> dict[str, Any]:
        """With the median and the share of the floor, as the JSON has it."""
        median_s = statistics.median(self.seconds) if self.seconds else None
        return {"median_s": median_s, "floor_share": median_s and floor_s / median_s, **vars(self)}


def main(arguments: Sequence[str] | None = None, size: Size = PUBLISHED) -> int:
    """Measure and print; 1 when a case could not be measured."""
    given = _parse(arguments)
    device = torch.device(given.device)
    flops = count_flops(size, given.size) * given.steps
    head = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "size": str(given.size),
        "steps": given.steps,
        "dtype": given.dtype,
        "flops": flops,
        "floor_s": flops / given.floor_tflops / 1e12,
    }
    _say(json.dumps(head))
    bench = Bench(build_subject(size, given.size, device, DTYPES[given.dtype]), given.steps, head, given.json)
    names = [name for name in CASES if name in (given.case or USUAL_CASES)]
    bench.measure([name for name in names if name != "compile"], given.runs)
    bench.measure([name for name in names if name == "compile"], given.runs)  # last: blocks stay compiled
    for name, record in bench.records.items():
        _say(json.dumps({"case": name, **record.summarise(bench.floor_s)}))
    return 1 if any(record.error for record in bench.records.values()) else 0


class Bench:
    """Runs cases over one subject and keeps what it measured."""

    def __init__(self, subject: Subject, steps: int, head: Mapping[str, Any], file: Path | None) -> None:
        self.subject, self.steps, self.head, self.file = subject, steps, head, file
        self.floor_s: float = head["floor_s"]
        self.records: dict[str, Record] = {}
        self._edits: dict[str, Edit] = {}
        self._arranged = ""
        self._reference: Edited | None = None

    def measure(self, names: Iterable[str], runs: int) -> None:
        """Warm each case, then run them in turns. One that fails is recorded and left out."""
        for turn in range(runs + 1):
            for name in names:
                record = self.records.setdefault(name, Record())
                if record.error:
                    continue
                try:
                    self._run(name, record) if turn else self._warm(name, record)
                except Exception as error:  # of a kernel, a compiler, the memory; the others are measured all the same
                    record.error = " ".join(str(error).split())[:500] or type(error).__name__
                    _say(f"{name} failed: {record.error}")
                self._write()

    def _warm(self, name: str, record: Record) -> None:
        acceleration = CASES[name]
        self._edits[name] = make_stock(self.subject) if acceleration is None else make_ours(self.subject, acceleration)
        seconds = self._time(name, WARM_STEPS)[0]
        if name == "compile":
            record.compile_s = seconds - self._time(name, WARM_STEPS)[0]
            _say(f"{name}: {record.compile_s:.1f} s to compile")

    def _run(self, name: str, record: Record) -> None:
        if self.subject.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.subject.device)
        seconds, edited = self._time(name, self.steps)
        if not torch.isfinite(edited.latents).all():
            raise FloatingPointError("the latents hold NaN or infinity")
        record.seconds.append(seconds)
        if self.subject.device.type == "cuda":
            record.peak_bytes = max(record.peak_bytes, torch.cuda.max_memory_allocated(self.subject.device))
        if name == "stock" and self._reference is None:
            self._reference = edited
        if self._reference is not None:
            relative, levels = compare(edited, self._reference)
            record.latents_apart = max(record.latents_apart or 0.0, relative)
            record.levels_apart = max(record.levels_apart or 0, levels)
        apart = "" if record.latents_apart is None else f", latents {record.latents_apart:.2e} from stock's"
        _say(
            f"{name}: {seconds:.2f} s, {self.floor_s / seconds:.1%} of the floor, "
            f"peak {record.peak_bytes / 1e9:.1f} GB{apart}"
        )

    def _time(self, name: str, steps: int) -> tuple[float, Edited]:
        """An edit and its seconds, without the arranging."""
        if self._arranged != name:
            arrange(self.subject, CASES[name])
            self._arranged = name
        self._wait()
        start = time.perf_counter()
        edited = self._edits[name](steps)
        self._wait()
        return time.perf_counter() - start, edited

    def _wait(self) -> None:
        if self.subject.device.type == "cuda":
            torch.cuda.synchronize(self.subject.device)

    def _write(self) -> None:
        if self.file is not None:
            cases = {name: record.summarise(self.floor_s) for name, record in self.records.items()}
            self.file.write_text(json.dumps({**self.head, "cases": cases}, indent=2) + "\n", encoding="utf-8")


def arrange(subject: Subject, acceleration: Acceleration | None) -> None:
    """Leave the models as opening them does: diffusers' VAE is contiguous, ours has its channels last.

    Raises RuntimeError when an acceleration cannot be had.
    """
    subject.vae.to(memory_format=torch.contiguous_format if acceleration is None else torch.channels_last)
    models = {"transformer": subject.transformer, "vae": subject.vae}
    with silence():
        missed = apply(PLAIN if acceleration is None else acceleration, models, subject.device)
    if missed:
        raise RuntimeError("; ".join(missed))


def make_stock(subject: Subject) -> Edit:
    """diffusers' pipeline, called as its documentation shows it."""
    pipeline = FluxKontextPipeline(
        transformer=subject.transformer, vae=subject.vae, scheduler=subject.scheduler, **dict.fromkeys(TEXT_PARTS)
    )
    pipeline.set_progress_bar_config(disable=True)
    canvas = subject.canvas

    def edit(steps: int) -> Edited:
        last: list[Tensor] = []

        def keep(pipeline: Any, step: int, timestep: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            last[:] = [tensors["latents"]]
            return {}

        picture = pipeline(
            image=subject.photo,
            prompt_embeds=subject.text.sequence,
            pooled_prompt_embeds=subject.text.pooled,
            latents=latents.pack(latents.draw_noise(SEED, canvas)),
            num_inference_steps=steps,
            guidance_scale=Defaults.guidance,
            width=canvas.width_px,
            height=canvas.height_px,
            max_area=canvas.area_px,
            _auto_resize=False,
            callback_on_step_end=keep,
        ).images[0]
        return Edited(last[0], picture)

    return edit


def make_ours(subject: Subject, acceleration: Acceleration) -> Edit:
    """Our editor's stages over the very same models."""
    defaults = Defaults(area_px=subject.canvas.area_px, text_length=subject.text.sequence.shape[1])
    models = {"transformer": subject.transformer, "vae": subject.vae, "scheduler": subject.scheduler}
    # The encode stage wants all its parts; the texts are embedded already.
    absent = dict.fromkeys(TEXT_PARTS, "not opened")
    editor = KontextEditor(
        Checkpoint("random", defaults, subject.device, subject.dtype, acceleration, **models, **absent)
    )

    def edit(steps: int) -> Edited:
        condition = editor.encode_images([subject.photo], subject.canvas)
        tokens = editor.sample(condition, subject.text, subject.canvas, [SEED], steps, Defaults.guidance)
        return Edited(tokens, editor.decode(tokens, subject.canvas)[0])

    return edit


def compare(edited: Edited, reference: Edited) -> tuple[float, int]:
    """The largest difference of the latents, relative to the reference's largest value, and of the pictures' levels."""
    expected = reference.latents.float()
    relative = (edited.latents.float() - expected).abs().max() / expected.abs().max()
    levels = [np.asarray(each.picture, dtype=np.int16) for each in (edited, reference)]
    return float(relative), int(np.abs(levels[0] - levels[1]).max())


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.full_size", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=Canvas.parse, default=Canvas(1024, 1024), help="of photo and picture, in pixels")
    parser.add_argument("--steps", type=int, default=Defaults.steps)
    parser.add_argument("--runs", type=int, default=2, help="of each case; medians are told")
    parser.add_argument("--case", choices=CASES, action="append", help=f"default: {', '.join(USUAL_CASES)}")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--floor-tflops", type=float, default=FLOOR_TFLOPS)
    parser.add_argument("--json", type=Path, help="a file for the figures")
    return parser.parse_args(arguments)


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
