"""Where training triples (condition image, prompt, target image) come from.

Owns reading and checking rows: CSV, JSONL, folders of files paired by name, and the drawn wardrobe. A bad row is an
error that names its file and line. Refuses tensors: see `latent_cache`.
"""

import csv
import json
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from PIL import ExifTags, Image

from kontext_model.canvas import Canvas, choose
from kontext_model.photo import to_rgb
from kontext_model.training.config import DataConfig, TrainingConfig
from kontext_model.wardrobe import PROMPTS, draw
from kontext_model.wardrobe.world import choose_kind

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})
COLUMNS = ("condition", "prompt", "target")
IMAGE_ERRORS = (OSError, ValueError, SyntaxError, struct.error, Image.DecompressionBombError)
"""What Pillow raises over a file that is no whole image."""
SIDEWAYS = frozenset({5, 6, 7, 8})
"""EXIF orientations whose stored rows are the picture's columns."""
ASPECTS = ((1, 1), (3, 4), (1, 1), (1, 1), (2, 3), (1, 1), (1, 1), (4, 3), (1, 1), (1, 1))
"""Width : height of wardrobe samples, in turn."""


class TripleError(ValueError):
    """A row or file that cannot be trained on; the message says where and why."""


@dataclass(frozen=True)
class Row:
    """One triple before its images are opened."""

    condition: Path
    prompt: str
    target: Path
    where: str


class TripleSource(Protocol):
    """Triples by index. `identity` changes whenever the picture of that index would.

    `prompts` are those that fit a triple, `wordings` those of all together.
    """

    def __len__(self) -> int: ...

    def identity(self, index: int) -> str: ...

    def canvas(self, index: int, area_px: int) -> Canvas: ...

    def images(self, index: int, canvas: Canvas) -> tuple[Image.Image, Image.Image]: ...

    def prompts(self, index: int) -> tuple[str, ...]: ...

    def wordings(self) -> frozenset[str]: ...


@dataclass(frozen=True)
class WardrobeSource:
    """`count` drawn samples from `first_seed` on, squares and other shapes in turn; those after them can be had too."""

    count: int
    first_seed: int = 1_000_000

    def __len__(self) -> int:
        return self.count

    def identity(self, index: int) -> str:
        return f"wardrobe/{self.first_seed + index}"

    def canvas(self, index: int, area_px: int) -> Canvas:
        return choose(*ASPECTS[index % len(ASPECTS)], area_px)

    def images(self, index: int, canvas: Canvas) -> tuple[Image.Image, Image.Image]:
        sample = draw(self.first_seed + index, (canvas.width_px, canvas.height_px))
        return sample.photo, sample.target

    def prompts(self, index: int) -> tuple[str, ...]:
        return PROMPTS[choose_kind(self.first_seed + index)]

    def wordings(self) -> frozenset[str]:
        return frozenset(prompt for prompts in PROMPTS.values() for prompt in prompts)


@dataclass(frozen=True)
class RowSource:
    """Rows read from files."""

    rows: tuple[Row, ...]

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """Width and height of the targets as they stand upright; the headers of all images are read once.

        Raises TripleError for an image that is none.
        """
        for row in self.rows:
            with _opened(row.condition, row.where, "condition"):
                pass
        return tuple(_read_size(row) for row in self.rows)

    def identity(self, index: int) -> str:
        row = self.rows[index]
        try:
            stamps = [
                (str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns)
                for path in (row.condition, row.target)
            ]
        except OSError as error:
            raise TripleError(f"{row.where}: {error}") from error
        return json.dumps(["sRGB", *stamps])  # latents kept from before profiles were applied are another picture's

    def canvas(self, index: int, area_px: int) -> Canvas:
        return choose(*self.sizes[index], area_px)

    def images(self, index: int, canvas: Canvas) -> tuple[Image.Image, Image.Image]:
        row = self.rows[index]
        return _read_image(row.condition, row.where, "condition"), _read_image(row.target, row.where, "target")

    def prompts(self, index: int) -> tuple[str, ...]:
        return (self.rows[index].prompt,)

    def wordings(self) -> frozenset[str]:
        return frozenset(row.prompt for row in self.rows)


@contextmanager
def _opened(path: Path, where: str, column: str) -> Iterator[Image.Image]:
    """An image of a row; whatever Pillow raises over it meanwhile names the row."""
    try:
        with Image.open(path) as picture:
            yield picture
    except IMAGE_ERRORS as error:
        raise TripleError(f"{where}: {column} {path} cannot be read as an image: {error}") from error


def _read_size(row: Row) -> tuple[int, int]:
    with _opened(row.target, row.where, "target") as picture:
        turned = picture.getexif().get(ExifTags.Base.Orientation, 1) in SIDEWAYS
        return picture.size[::-1] if turned else picture.size


def _read_image(path: Path, where: str, column: str) -> Image.Image:
    with _opened(path, where, column) as picture:
        return to_rgb(picture)


def read_rows(path: Path) -> RowSource:
    """Triples from a .csv or .jsonl with `condition`, `prompt`, `target` (paths relative to the file), or a folder.

    A folder holds `condition/NAME.png`, `target/NAME.png` and either `prompt/NAME.txt` or one `prompt.txt` for all.
    Raises TripleError that names the line and column, for an empty set too.
    """
    readers: Mapping[str, Any] = {".csv": _read_csv, ".jsonl": _read_jsonl}
    if path.is_dir():
        rows = tuple(_read_folder(path))
    elif path.suffix.lower() not in readers:
        raise TripleError(f"{path} is neither a folder nor a .csv or .jsonl file")
    else:
        try:
            rows = tuple(_check_row(path, line, row) for line, row in readers[path.suffix.lower()](path))
        except OSError as error:
            raise TripleError(f"{path} cannot be read: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise TripleError(f"{path} is not UTF-8: {error}") from error
    if not rows:
        raise TripleError(f"{path} holds no triples")
    return RowSource(rows)


def _check_row(path: Path, line: int, row: Mapping[str, Any]) -> Row:
    where = f"{path}, line {line}"
    for column in COLUMNS:
        if not isinstance(row.get(column), str) or not row[column].strip():
            raise TripleError(f"{where}: column {column!r} is missing or empty; found {row.get(column)!r}")
    try:
        row["prompt"].encode()
    except UnicodeEncodeError as error:  # JSON can spell half a character
        raise TripleError(f"{where}: column 'prompt' is no text: {error}") from error
    condition, target = path.parent / row["condition"], path.parent / row["target"]
    for column, image in (("condition", condition), ("target", target)):
        try:
            found = image.is_file()
        except OSError as error:
            raise TripleError(f"{where}, column {column!r}: {image} cannot be read: {error.strerror}") from error
        if not found:
            raise TripleError(f"{where}, column {column!r}: no file {image}")
    return Row(condition, row["prompt"], target, where)


def _read_csv(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        missing = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
        if missing:
            found = ", ".join(reader.fieldnames or ()) or "nothing"
            raise TripleError(f"{path}, line 1: no column {', '.join(missing)}; found {found}")
        try:
            for row in reader:
                yield reader.line_num, row
        except csv.Error as error:
            raise TripleError(f"{path}, line {reader.line_num}: not CSV: {error}") from error


def _read_jsonl(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise TripleError(f"{path}, line {number}: not JSON: {error}") from error
            if not isinstance(row, dict):
                raise TripleError(f"{path}, line {number}: must be an object, not {type(row).__name__}")
            yield number, row


def _read_folder(folder: Path) -> Iterator[Row]:
    conditions, targets = (_list_images(folder / part) for part in ("condition", "target"))
    for name in sorted(targets.keys() - conditions.keys()):
        raise TripleError(f"{targets[name]}: no image of that name in {folder / 'condition'}")
    for name, condition in conditions.items():
        if name not in targets:
            raise TripleError(f"{condition}: no image of that name in {folder / 'target'}")
        yield Row(condition, _read_prompt(folder, name, condition), targets[name], str(condition))


def _list_images(folder: Path) -> dict[str, Path]:
    """Images by name without suffix, sorted. Raises TripleError when two share one."""
    found: dict[str, Path] = {}
    for path in sorted(folder.glob("*")):
        if path.suffix.lower() in SUFFIXES and not path.name.startswith("."):
            if path.stem in found:
                raise TripleError(f"{path}: {found[path.stem].name} has the same name; keep one of them")
            found[path.stem] = path
    return found


def _read_prompt(folder: Path, name: str, condition: Path) -> str:
    own, shared = folder / "prompt" / f"{name}.txt", folder / "prompt.txt"
    path = own
    try:
        path = own if own.is_file() else shared
        words = path.read_text(encoding="utf-8-sig").strip()
    except FileNotFoundError:
        raise TripleError(f"{condition}: neither {own} nor {shared} exists") from None
    except (OSError, UnicodeDecodeError) as error:
        raise TripleError(f"{condition}: its prompt {path} cannot be read: {error}") from error
    if not words:
        raise TripleError(f"{condition}: its prompt {path} is empty")
    return words


def open_source(data: DataConfig) -> TripleSource:
    """The triples that a configuration names."""
    if data.source == "wardrobe":
        return WardrobeSource(data.count, data.first_seed)
    return read_rows(Path(data.source))


def open_validation(config: TrainingConfig) -> TripleSource:
    """The validation set: drawn from other seeds, rows of its own, or the first of the training rows."""
    validation = config.validation
    path = validation.source or config.data.source
    if path == "wardrobe":
        return WardrobeSource(validation.count, validation.first_seed)
    return RowSource(read_rows(Path(path)).rows[: validation.count])
