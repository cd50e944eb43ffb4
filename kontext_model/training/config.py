"""The training configuration: a TOML file as frozen dataclasses.

Owns names, types and defaults. An unknown key or a value of the wrong type is an error that names it.
"""

import re
import tomllib
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from math import inf
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from kontext_model.image import FITS
from kontext_model.training.objective import ObjectiveConfig
from kontext_model.training.optimizer import OPTIMIZERS
from kontext_model.training.schedule import SCHEDULES

PRECISIONS = ("float32", "bfloat16")


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names the file and the key."""


@dataclass(frozen=True)
class DataConfig:
    """`source` is `wardrobe` or a path (CSV, JSONL, folder). `count` and `first_seed` are the wardrobe's.

    `fit` is how images whose aspect is not their canvas's get its size: `pad`, `crop` or `stretch`.
    """

    source: str = "wardrobe"
    count: int = 8192
    first_seed: int = 1_000_000
    fit: str = "pad"

    def __post_init__(self) -> None:
        _check("count", self.count, self.count >= 1, "at least 1")
        _check("fit", self.fit, self.fit in FITS, f"one of {', '.join(FITS)}")


@dataclass(frozen=True)
class Phase:
    """A stretch of the run at one canvas area. `schedule` is `cosine` or `constant`, `batch` that of one pass.

    Several processes share each pass: `batch` must be a multiple of their number. `text_length` cuts the prompts' T5
    states to that many tokens: a first phase learns faster when it reads only how a prompt begins. `fresh`, of the
    wardrobe alone, is how many triples, drawn for the phase, enter with each step and push out the oldest; with 0 the
    phase trains on `data.count` of them, whose latents are kept on disk.
    """

    area_px: int
    steps: int
    batch: int
    rate: float
    schedule: str = "cosine"
    warmup: int = 100
    text_length: int | None = None
    fresh: int = 0

    def __post_init__(self) -> None:
        _check("area_px", self.area_px, 256 <= self.area_px <= 4096**2, "from 256 (16×16) to 16777216 (4096×4096)")
        for name in ("steps", "batch"):
            _check(name, getattr(self, name), getattr(self, name) >= 1, "at least 1")
        _check("rate", self.rate, 0 < self.rate < inf, "above 0")
        _check("schedule", self.schedule, self.schedule in SCHEDULES, f"one of {', '.join(SCHEDULES)}")
        for name in ("warmup", "fresh"):
            _check(name, getattr(self, name), getattr(self, name) >= 0, "at least 0")
        _check("text_length", self.text_length, self.text_length is None or self.text_length >= 1, "at least 1")


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank training instead of full. `targets` are module names of the transformer, as peft takes them."""

    rank: int = 16
    alpha: float = 16.0
    targets: tuple[str, ...] = ("attn.to_k", "attn.to_q", "attn.to_v", "attn.to_out.0")

    def __post_init__(self) -> None:
        _check("rank", self.rank, self.rank >= 1, "at least 1")
        _check("alpha", self.alpha, 0 < self.alpha < inf, "above 0")
        _check("targets", list(self.targets), bool(self.targets), "at least one module name")

    @property
    def terms(self) -> dict[str, Any]:
        """What its weights mean nothing without, by key."""
        return {"lora.rank": self.rank, "lora.alpha": self.alpha, "lora.targets": sorted(self.targets)}


@dataclass(frozen=True)
class ValidationConfig:
    """A fixed set, edited every `every` steps (0: never) and laid out as a grid.

    `source` as in DataConfig; unset, the wardrobe from `first_seed` on where training draws it, else the first triples
    of the training set.
    """

    every: int = 500
    count: int = 6
    steps: int = 8
    source: str | None = None
    first_seed: int = 9_000_000

    def __post_init__(self) -> None:
        for name, least in (("every", 0), ("count", 1), ("steps", 1)):
            _check(name, getattr(self, name), getattr(self, name) >= least, f"at least {least}")


@dataclass(frozen=True)
class TrainingConfig:
    """Everything a run depends on. `checkpoint` is the folder or hub id that training starts from, `out` where the run
    lives. `revision` is a hub id's branch, tag or commit (a run stays with the commit that it began with), or the
    content digest that a folder must have.

    `optimizer` is `adamw` or `muon`, of which `betas` are AdamW's share. `guidance` is one value, or low and high
    between which each sample draws. `device` is `cpu`, `cuda` or `cuda:NUMBER`; several processes each take a GPU of
    their own. With `precision` bfloat16 the passes run in it, the trained weights stay float32, and what a LoRA leaves
    alone is loaded in it. `gradient_checkpointing` trades a third of the speed for most of the activations' memory.
    `compile` the blocks: a first minute that every later step is faster for.
    """

    checkpoint: str
    out: str
    phases: tuple[Phase, ...]
    data: DataConfig = field(default_factory=DataConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    lora: LoraConfig | None = None
    revision: str | None = None
    seed: int = 0
    accumulation: int = 1
    clip: float = 1.0
    optimizer: str = "adamw"
    weight_decay: float = 0.01
    betas: tuple[float, ...] = (0.9, 0.99)
    decay: float = 0.999
    guidance: tuple[float, ...] = (2.5,)
    prompt_dropout: float = 0.05
    precision: str = "float32"
    gradient_checkpointing: bool = False
    compile: bool = False
    device: str = "cpu"
    save_every_s: float = 60.0

    def __post_init__(self) -> None:
        _check("phases", list(self.phases), bool(self.phases), "at least one phase")
        for number, phase in enumerate(self.phases):
            drawn = not phase.fresh or self.data.source == "wardrobe"
            _check(f"phases[{number}].fresh", phase.fresh, drawn, "0, as nothing but the wardrobe can be drawn anew")
        _check("accumulation", self.accumulation, self.accumulation >= 1, "at least 1")
        _check("clip", self.clip, self.clip > 0, "above 0")
        _check("optimizer", self.optimizer, self.optimizer in OPTIMIZERS, f"one of {', '.join(OPTIMIZERS)}")
        _check("weight_decay", self.weight_decay, 0 <= self.weight_decay < inf, "at least 0")
        two = len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas)
        _check("betas", list(self.betas), two, "two values from 0, below 1")
        _check("decay", self.decay, 0 <= self.decay < 1, "from 0, below 1")
        rising = len(self.guidance) in (1, 2) and 0 <= self.guidance[0] <= self.guidance[-1] < inf
        _check("guidance", list(self.guidance), rising, "one value from 0, or two that rise")
        _check("prompt_dropout", self.prompt_dropout, 0 <= self.prompt_dropout <= 1, "from 0 to 1")
        _check("precision", self.precision, self.precision in PRECISIONS, f"one of {', '.join(PRECISIONS)}")
        known = re.fullmatch(r"cpu|cuda(:[0-9]+)?", self.device) is not None
        _check("device", self.device, known, "cpu, cuda or cuda:NUMBER")
        _check("save_every_s", self.save_every_s, self.save_every_s >= 0, "at least 0")

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        return sum(phase.steps for phase in self.phases)

    @property
    def cached_areas_px(self) -> tuple[int, ...]:
        """Areas of the phases that train on triples whose latents are kept, the smallest first."""
        return tuple(sorted({phase.area_px for phase in self.phases if not phase.fresh}))

    def phase_at(self, step: int) -> tuple[Phase, int]:
        """The phase of a step (from 0) and the step's number within it."""
        for phase in self.phases:
            if step < phase.steps:
                return phase, step
            step -= phase.steps
        raise ValueError(f"the run has no step {step}")


def read_config(path: Path) -> TrainingConfig:
    """Read a TOML file; relative paths in it count from the working folder. Raises ConfigError."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: {error}") from error
    try:
        config: TrainingConfig = _build(TrainingConfig, table, "")
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{path}: {error}") from error
    return config


def _build(kind: Any, table: Any, where: str) -> Any:
    if not isinstance(table, dict):
        raise ValueError(f"{where or 'the file'} must be a table, not {table!r}")
    dot = f"{where}." if where else ""
    hints = get_type_hints(kind)
    unknown = sorted(table.keys() - hints.keys())
    if unknown:
        raise ValueError(
            f"unknown key {dot + unknown[0]!r}; known: {', '.join(dot + each.name for each in fields(kind))}"
        )
    for each in fields(kind):
        if each.name not in table and each.default is MISSING and each.default_factory is MISSING:
            raise ValueError(f"the key {dot + each.name!r} is missing")
    values = {name: _convert(hints[name], value, f"{dot}{name}") for name, value in table.items()}
    try:
        return kind(**values)
    except ValueError as error:
        raise ValueError(f"{dot}{error}") from error


def _convert(hint: Any, value: Any, where: str) -> Any:
    if isinstance(hint, UnionType):
        hint = next(each for each in get_args(hint) if each is not type(None))
    if is_dataclass(hint):
        return _build(hint, value, where)
    if get_origin(hint) is tuple:
        if not isinstance(value, list):
            raise ValueError(f"{where} must be a list, not {value!r}")
        return tuple(_convert(get_args(hint)[0], each, f"{where}[{number}]") for number, each in enumerate(value))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not hint:
        raise ValueError(f"{where} must be of type {hint.__name__}, not {value!r}")
    return value


def _check(name: str, value: object, holds: bool, expected: str) -> None:
    if not holds:
        raise ValueError(f"{name} must be {expected}, not {value!r}")
