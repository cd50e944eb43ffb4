"""One row of a catalogue becomes one row of the jobs table.

Owns what a row's cells mean, its custom_id, and what is told of a bad one. Refuses to store: see `batches`.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache, partial
from typing import Any

from kontext_model.canvas import MAX_SIDE_PX, MULTIPLE_PX, list_canvases
from kontext_model.lora_file import LoraError, LoraPin
from kontext_model.revision import Defaults
from orchestrator.catalogs import Catalogue, Row
from orchestrator.recipes import OPTIONS, OptionError, Recipe, cannot_pin, read_option, resolve_recipe
from orchestrator.state.bulk import COLUMNS, JobRow
from orchestrator.state.database import tellable

CUSTOM_ID_MAX_CHARACTERS = 256
RECIPE_CACHE = 10_000
LORA_CACHE = 1_000
LINE, CUSTOM_ID = map(COLUMNS.index, ("line", "custom_id"))
"""Where a job row holds them."""
PinLora = Callable[[str, str], LoraPin]
"""Pins a LoRA by its name and what a relative path is relative to. Raises LoraError."""
_OPTION_NAMES = tuple(OPTIONS)
# Told by columns of their own or by the recipe; the rest of a row is kept as given.
_TOLD = frozenset({"image", "custom_id", "prompt", "negative_prompt", "seed"})
_TOLD_OF_BAD = frozenset({"image", "custom_id"})


class RowReader:
    """Turns catalogue rows into job rows, remembering the recipes it resolved.

    A recipe costs microseconds to resolve and most rows share a few, so that they are kept by the texts they came from.
    """

    def __init__(
        self,
        batch_id: str,
        catalogue: Catalogue,
        defaults: Defaults,
        asked: Mapping[str, Any],
        pin_lora: PinLora = cannot_pin,
    ) -> None:
        self._batch_id, self._name = batch_id, catalogue.uri.rstrip("/").rpartition("/")[2]
        self._checkpoint_defaults, self._defaults, self._asked = defaults, asdict(defaults), asked
        self._seed = asked.get("seed", 0)
        # An image that was sent to us has a name of our own; its custom_id comes of the one that people know.
        self._named_by: str = getattr(catalogue, "named_by", "image")
        self._pin = lru_cache(LORA_CACHE)(partial(_pin_or_explain, pin_lora, catalogue.image_root))
        self.largest_handoff_bytes = 0
        self._known: dict[tuple[str | None, ...], Recipe | OptionError] = {}
        self._new: dict[str, str] = {}

    def take_new_recipes(self) -> dict[str, str]:
        """Recipes met since the last call, id → body."""
        new, self._new = self._new, {}
        return new

    def read(self, row: Row) -> JobRow:
        """One row → one job row, pending, or failed with a code and a message that names file, line and column."""
        line, values, problem = row
        if problem is not None:
            return self._fail(line, values, problem.code, problem.message)
        custom_id, image = values.get("custom_id"), values.get("image")
        try:
            if image is None:
                raise OptionError("image", "missing_image", "the cell is empty; give a path or a URI")
            recipe = self._recipe(values)
            seed = self._seed if (text := values.get("seed")) is None else read_option("seed", text)
            priority = 0 if (text := values.get("priority")) is None else read_option("priority", text)
            custom_id = derive_custom_id(values.get(self._named_by) or image) if custom_id is None else custom_id
            _check_texts(image, custom_id)
        except OptionError as error:
            where = f"{self._name}, line {line}, column {error.column}"
            return self._fail(line, values, error.code, f"{where}: {error}")
        return (
            self._batch_id, line, custom_id, image, recipe.id, seed, priority, _given(values), "pending", None, None,
            None,
        )  # fmt: skip

    def place(
        self, rows: Sequence[Row], jobs: Sequence[JobRow], insert: Callable[[Sequence[JobRow]], list[JobRow]]
    ) -> None:
        """Insert the jobs of these rows, settling doubled custom_ids.

        `insert` gives back what it did not take because the custom_id stands already.
        """
        doubled = insert(jobs)
        if not doubled:
            return
        by_line = {row.line: row for row in rows}
        for settle in (self._rename_double, self._refuse_double):
            doubled = insert([settle(job, by_line[job[LINE]]) for job in doubled])

    def _rename_double(self, job: JobRow, row: Row) -> JobRow:
        """A derived custom_id that stands already gets its line number."""
        if row.values.get("custom_id") is not None:
            return self._refuse_double(job, row)
        suffix = f"-{row.line}"
        renamed = job[CUSTOM_ID][-(CUSTOM_ID_MAX_CHARACTERS - len(suffix)) :] + suffix
        return (*job[:CUSTOM_ID], renamed, *job[CUSTOM_ID + 1 :])

    def _refuse_double(self, job: JobRow, row: Row) -> JobRow:
        message = (
            f"{self._name}, line {row.line}, column custom_id: {job[CUSTOM_ID]!r} stands on another line too; "
            "give each row its own"
        )
        return self._fail(row.line, row.values, "duplicate_custom_id", message)

    def _recipe(self, values: Mapping[str, str | None]) -> Recipe:
        key = tuple(map(values.get, _OPTION_NAMES))
        found = self._known.get(key)
        if found is None:
            if len(self._known) >= RECIPE_CACHE:
                self._known.clear()
            given = {name: text for name, text in zip(_OPTION_NAMES, key, strict=True) if text is not None}
            try:
                found = resolve_recipe(given, self._asked, self._defaults, self._pin_lora)
                found.body.encode()
                self._new[found.id] = found.body
                if found.width or found.height:
                    needed = handoff_bytes(self._checkpoint_defaults, found.width, found.height)
                    self.largest_handoff_bytes = max(self.largest_handoff_bytes, needed)
            except OptionError as error:
                found = error
            except UnicodeEncodeError:
                found = OptionError("prompt", "bad_text", "holds half a surrogate pair, which is no text")
            self._known[key] = found
        if isinstance(found, OptionError):
            raise found
        return found

    def _pin_lora(self, name: str) -> LoraPin:
        pin = self._pin(name)
        if isinstance(pin, LoraError):
            raise OptionError("lora", pin.code, str(pin))
        return pin

    def _fail(self, line: int, values: Mapping[str, str | None], code: str, message: str) -> JobRow:
        custom_id, image = (_clean(values.get(name)) for name in ("custom_id", "image"))
        if custom_id is None and image is not None:
            custom_id = derive_custom_id(_clean(values.get(self._named_by)) or image)
        return (
            self._batch_id, line, custom_id, image, None, 0, 0, _given(values, _TOLD_OF_BAD), "failed", None, code,
            _clean(message),
        )  # fmt: skip


def _pin_or_explain(pin_lora: PinLora, root: str, name: str) -> LoraPin | LoraError:
    """The pin of a LoRA, or why there is none: both are kept, so that a batch reads each LoRA once."""
    try:
        return pin_lora(name, root)
    except LoraError as error:
        return error


def derive_custom_id(image: str) -> str:
    """The image's relative path without its extension; for a URI, its path."""
    path = image
    if "://" in image:
        path = re.split("[?#]", image.partition("://")[2], maxsplit=1)[0].partition("/")[2].lstrip("/")
    stem, dot, extension = path.rpartition(".")
    custom_id = stem if dot and "/" not in extension and stem else path
    return custom_id[-CUSTOM_ID_MAX_CHARACTERS:] or "image"


def handoff_bytes(defaults: Defaults, width: int | None, height: int | None) -> int:
    """An upper bound for what one job keeps in the handoffs' Redis: two float32 latents of 64 channels a token.

    `width` and `height` in pixels, as asked; where only one is, the other follows the photo.
    """
    if width or height:
        tokens = ((width or MAX_SIDE_PX) // MULTIPLE_PX + 1) * ((height or MAX_SIDE_PX) // MULTIPLE_PX + 1)
    else:
        tokens = max(canvas.tokens for canvas in list_canvases(defaults.area_px))
    return 2 * tokens * 64 * 4


def _check_texts(image: str, custom_id: str) -> None:
    """Refuse what no database or file name can hold."""
    if len(custom_id) > CUSTOM_ID_MAX_CHARACTERS:
        raise OptionError(
            "custom_id", "bad_custom_id", f"{len(custom_id):,} characters are more than {CUSTOM_ID_MAX_CHARACTERS}"
        )
    for column, text in (("image", image), ("custom_id", custom_id)):
        if not text.isprintable() and ("\x00" in text or any("\ud800" <= letter <= "\udfff" for letter in text)):
            raise OptionError(column, "bad_text", "holds a NUL character or half a surrogate pair")


def _clean(text: str | None) -> str | None:
    return None if text is None else tellable(text)


def _given(values: Mapping[str, str | None], told: frozenset[str] = _TOLD) -> str | None:
    kept = {name: value for name, value in values.items() if name not in told and value is not None}
    return json.dumps(kept) if kept else None
