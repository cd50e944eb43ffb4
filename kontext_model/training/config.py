"""The training configuration: a TOML file as frozen dataclasses.

Owns names, types and defaults. An unknown key or a value of the wrong type is an error that names it.
"""

import tomllib
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from kontext_model.training.objective import ObjectiveConfig


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names the file and the key."""


@dataclass(frozen=True)
class DataConfig:
    """`source` is `wardrobe` or a path (CSV, JSONL, folder). `count` and `first_seed` are the wardrobe's."""

    source: str = "wardrobe"
    count: int = 8192
    first_seed: int = 1_000_000
    fit: str = "pad"


@dataclass(frozen=True)
class Phase:
    """A stretch of the run at one canvas area. `schedule` is `cosine` or `constant`, `batch` that of one pass."""

    area_px: int
    steps: int
    batch: int
    rate: float
    schedule: str = "cosine"
    warmup: int = 100


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank training instead of full. `targets` are module names of the transformer, as peft takes them."""

    rank: int = 16
    alpha: float = 16.0
    targets: tuple[str, ...] = ("attn.to_k", "attn.to_q", "attn.to_v", "attn.to_out.0")


@dataclass(frozen=True)
class ValidationConfig:
    """A fixed set, edited every `every` steps (0: never) and laid out as a grid; seeds or rows apart from training."""

    every: int = 500
    count: int = 6
    steps: int = 8
    source: str = "wardrobe"
    first_seed: int = 9_000_000


@dataclass(frozen=True)
class TrainingConfig:
    """Everything a run depends on. `checkpoint` is the folder that training starts from, `out` where the run lives.

    `guidance` is one value, or low and high between which each sample draws. `device`, `dtype` as in KontextEditor.
    """

    checkpoint: str
    out: str
    phases: tuple[Phase, ...]
    data: DataConfig = field(default_factory=DataConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    lora: LoraConfig | None = None
    seed: int = 0
    accumulation: int = 1
    clip: float = 1.0
    weight_decay: float = 0.01
    betas: tuple[float, ...] = (0.9, 0.99)
    decay: float = 0.999
    guidance: tuple[float, ...] = (2.5,)
    prompt_dropout: float = 0.05
    precision: str = "float32"
    device: str = "cpu"
    save_every_s: float = 60.0

    def __post_init__(self) -> None:
        if not self.phases:
            raise ValueError("phases must hold at least one phase")
        if len(self.guidance) not in (1, 2):
            raise ValueError(f"guidance must be one value or two, not {len(self.guidance)}")
        if self.precision not in ("float32", "bfloat16"):
            raise ValueError(f"precision must be float32 or bfloat16, not {self.precision!r}")

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        return sum(phase.steps for phase in self.phases)

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
    hints = get_type_hints(kind)
    unknown = sorted(table.keys() - hints.keys())
    if unknown:
        raise ValueError(
            f"unknown key {where + unknown[0]!r}; known: {', '.join(where + each.name for each in fields(kind))}"
        )
    values = {name: _convert(hints[name], value, f"{where}{name}") for name, value in table.items()}
    return kind(**values)


def _convert(hint: Any, value: Any, where: str) -> Any:
    if isinstance(hint, UnionType):
        hint = next(each for each in get_args(hint) if each is not type(None))
    if is_dataclass(hint):
        return _build(hint, value, f"{where}.")
    if get_origin(hint) is tuple:
        if not isinstance(value, list):
            raise ValueError(f"{where} must be a list, not {value!r}")
        return tuple(_convert(get_args(hint)[0], each, f"{where}[{number}]") for number, each in enumerate(value))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not hint:
        raise ValueError(f"{where} must be of type {hint.__name__}, not {value!r}")
    return value
