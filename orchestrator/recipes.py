"""Recipes: everything asked of the model but the image and the seed, defaults resolved.

Owns the options of a catalogue row and of `--set`, their checks and a recipe's identity. Refuses to guess: a value it
cannot read is a ValueError that says what was expected.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from kontext_model.lora_file import LoraPin
from orchestrator.presets import PRESETS

# Names only, since the functions live with the model: a test holds the two lists equal.
SAMPLERS = ("euler", "heun", "dpmpp_2m")
FITS = ("pad", "crop", "stretch")
PROMPT_MAX_CHARACTERS = 10_000
LORA_MAX_CHARACTERS = 2_000
SEED_MAX = 2**63 - 1
_UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}
# Beyond these no calendar shows the moment, and a longer night is a typing error.
DEADLINE_MAX_S = 3650 * 86400
DEADLINE_FROM, DEADLINE_BEFORE = datetime(1970, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Recipe:
    """A resolved recipe: `id` is the digest of `body`, canonical JSON; the size asked for, in pixels, is in it too."""

    id: str
    body: str
    width: int | None = None
    height: int | None = None


class OptionError(ValueError):
    """An option's value cannot be used; `column` is its name."""

    def __init__(self, column: str, code: str, message: str) -> None:
        super().__init__(message)
        self.column, self.code = column, code


def _whole(low: int, high: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        try:
            value = int(text) if "." not in text else int(_integral(float(text)))
        except (ValueError, OverflowError):
            raise ValueError(f"expected a whole number, not {text[:80]!r}") from None
        if not low <= value <= high:
            raise ValueError(f"expected {low} to {high}, not {value}")
        return value

    return read


def _integral(value: float) -> float:
    # Spreadsheets and data frames write 28.0 for 28.
    if not value.is_integer():
        raise ValueError
    return value


def _number(low: float, high: float) -> Callable[[str], float]:
    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise ValueError(f"expected a number, not {text[:80]!r}") from None
        if not low <= value <= high:  # also refuses NaN
            raise ValueError(f"expected {low:g} to {high:g}, not {text[:80]}")
        return value

    return read


def _one_of(*names: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in names:
            raise ValueError(f"expected {', '.join(names[:-1])} or {names[-1]}, not {text[:80]!r}")
        return text

    return read


def _truth(text: str) -> bool:
    known = {"true": True, "false": False}
    if text.strip().lower() not in known:
        raise ValueError(f"expected true or false, not {text[:80]!r}")
    return known[text.strip().lower()]


def _text(text: str) -> str:
    if len(text) > PROMPT_MAX_CHARACTERS:
        raise ValueError(f"{len(text):,} characters are more than the {PROMPT_MAX_CHARACTERS:,} allowed")
    if "\x00" in text:
        raise ValueError("holds a NUL character")
    if any("\ud800" <= character <= "\udfff" for character in text):  # told of in JSON, it breaks the answer
        raise ValueError("holds half of a surrogate pair; send text in UTF-8")
    return text


def _lora(text: str) -> str:
    name = text.strip()
    if not name or len(name) > LORA_MAX_CHARACTERS or not name.isprintable():
        raise ValueError(f"expected a path, an s3:// URI or a hub id, not {text[:80]!r}")
    return name


@dataclass(frozen=True)
class Deadline:
    """A time, in seconds since the epoch, or so many seconds from the making of the batch."""

    seconds: float
    relative: bool


def read_deadline(text: str) -> Deadline:
    """Read `90m`, `2h`, `1d`, at most 10 years, or an ISO time from 1970 to 2099 that names its zone.

    Raises ValueError.
    """
    expected = (
        "expected 90m, 2h, 1d or a time with its zone, as 2026-11-26T06:00+08:00 (10 years at most, before 2100), "
        f"not {text[:80]!r}"
    )
    if (duration := re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd])", text.strip())) is not None:
        seconds = float(duration[1]) * _UNIT_S[duration[2]]
        if seconds > DEADLINE_MAX_S:  # infinity too, which is what 400 digits are
            raise ValueError(expected)
        return Deadline(seconds, relative=True)
    try:
        time = datetime.fromisoformat(text.strip())
    except ValueError:
        raise ValueError(expected) from None
    if time.tzinfo is None or not DEADLINE_FROM <= time < DEADLINE_BEFORE:
        raise ValueError(expected)
    return Deadline(time.timestamp(), relative=False)


def _deadline(text: str) -> str:
    read_deadline(text)
    return text.strip()


OPTIONS: Mapping[str, Callable[[str], Any]] = {
    "prompt": _text,
    "preset": _one_of(*PRESETS),
    "negative_prompt": _text,
    "steps": _whole(1, 1000),
    "guidance": _number(0, 100),
    "true_cfg": _number(0, 100),
    "width": _whole(16, 4096),
    "height": _whole(16, 4096),
    "fit": _one_of(*FITS),
    "sampler": _one_of(*SAMPLERS),
    "lora": _lora,
    "lora_scale": _number(-10, 10),
}
"""What shapes a recipe; the keys of `--set` and catalogue columns alike."""

PER_JOB: Mapping[str, Callable[[str], int]] = {"seed": _whole(0, SEED_MAX), "priority": _whole(-100, 100)}
"""What is asked of one job beside its recipe."""

PER_BATCH: Mapping[str, Callable[[str], Any]] = {
    "max_error_rate": _number(0, 1),
    "deadline": _deadline,
    "only_changed": _truth,
}
"""What is asked of a batch as a whole; keys of `--set`, no columns."""


def read_option(name: str, text: str) -> Any:
    """Read the text of one option. Raises OptionError."""
    try:
        return {**OPTIONS, **PER_JOB, **PER_BATCH}[name](text)
    except ValueError as error:
        raise OptionError(name, f"bad_{name}", f"{name}: {error}") from None


def cannot_pin(name: str, root: str = "") -> LoraPin:
    """Stands where no LoRA can be opened. Raises OptionError."""
    raise OptionError("lora", "bad_lora", f"LoRA {name}: it cannot be opened here")


def resolve_recipe(
    row: Mapping[str, str],
    asked: Mapping[str, Any],
    defaults: Mapping[str, Any],
    pin_lora: Callable[[str], LoraPin] = cannot_pin,
) -> Recipe:
    """Merge a row's options over those asked for the batch, over a preset's, over the checkpoint's defaults.

    `row` holds texts, `asked` values already read, its `lora` pinned by `lora_sha256`; `pin_lora` pins the row's.
    Raises OptionError.
    """
    given = {name: read_option(name, text) for name, text in row.items()}
    if "prompt" in given and "preset" in given:
        raise OptionError("preset", "prompt_and_preset", "prompt and preset are both set; keep one of them")
    if {"prompt", "preset"} & set(given):
        asked = {name: value for name, value in asked.items() if name not in ("prompt", "preset")}
    merged = {**asked, **given}
    preset = PRESETS[merged["preset"]] if "preset" in merged else None
    if preset is not None:
        offered = {"prompt": preset.prompt, "negative_prompt": preset.negative_prompt, **preset.options}
        merged = {**{name: value for name, value in offered.items() if value is not None}, **merged}
    if "prompt" not in merged:
        raise OptionError(
            "prompt", "missing_prompt", "no prompt: fill the column prompt or preset, or pass --prompt or --preset"
        )
    body = {
        "prompt": merged["prompt"],
        "negative_prompt": merged.get("negative_prompt"),
        "steps": merged.get("steps", defaults["steps"]),
        "guidance": merged.get("guidance", defaults["guidance"]),
        "true_cfg": merged.get("true_cfg", 1.0),
        "width": merged.get("width"),
        "height": merged.get("height"),
        "fit": merged.get("fit", "pad"),
        "sampler": merged.get("sampler", "euler"),
        **_resolve_lora(merged, pin_lora if "lora" in given else None),
    }
    text = json.dumps(body, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:20]
    return Recipe(digest, text, body["width"], body["height"])


def _resolve_lora(merged: Mapping[str, Any], pin_lora: Callable[[str], LoraPin] | None) -> dict[str, Any]:
    """What a body says of a LoRA: nothing where none has an effect, so that recipes without one stay what they were."""
    scale = merged.get("lora_scale", 1.0)
    if "lora" not in merged or scale == 0:
        return {}
    place, sha256 = (merged["lora"], merged["lora_sha256"]) if pin_lora is None else pin_lora(merged["lora"])
    return {"lora": place, "lora_sha256": sha256, "lora_scale": scale}
