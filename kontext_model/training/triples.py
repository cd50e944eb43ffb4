"""Where training triples (condition image, prompt, target image) come from.

Owns reading and checking rows: CSV, JSONL, folders of files paired by name, and the drawn wardrobe. A bad row is an
error that names its file and line. Refuses tensors: see `latent_cache`.
"""

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from kontext_model.canvas import Canvas, choose
from kontext_model.image import to_rgb
from kontext_model.training.config import DataConfig
from kontext_model.wardrobe import PROMPTS, draw
from kontext_model.wardrobe.world import choose_kind

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})
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
    """Triples by index. `identity` changes whenever the picture of that index would."""

    def __len__(self) -> int: ...

    def identity(self, index: int) -> str: ...

    def canvas(self, index: int, area_px: int) -> Canvas: ...

    def images(self, index: int, canvas: Canvas) -> tuple[Image.Image, Image.Image]: ...

    def prompts(self, index: int) -> tuple[str, ...]: ...


@dataclass(frozen=True)
class WardrobeSource:
    """`count` drawn samples from `first_seed` on, squares and other shapes in turn."""

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


@dataclass(frozen=True)
class RowSource:
    """Rows read from files."""

    rows: tuple[Row, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def identity(self, index: int) -> str:
        row = self.rows[index]
        stamps = [
            (str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in (row.condition, row.target)
        ]
        return json.dumps(stamps)

    def canvas(self, index: int, area_px: int) -> Canvas:
        row = self.rows[index]
        with _opened(row.target, row.where) as picture:
            return choose(*picture.size, area_px)

    def images(self, index: int, canvas: Canvas) -> tuple[Image.Image, Image.Image]:
        row = self.rows[index]
        with _opened(row.condition, row.where) as condition, _opened(row.target, row.where) as target:
            try:
                return to_rgb(condition), to_rgb(target)
            except (OSError, ValueError, SyntaxError) as error:
                raise TripleError(f"{row.where}: image cannot be read: {error}") from error

    def prompts(self, index: int) -> tuple[str, ...]:
        return (self.rows[index].prompt,)


def _opened(path: Path, where: str) -> Image.Image:
    try:
        return Image.open(path)
    except (OSError, ValueError, SyntaxError) as error:
        raise TripleError(f"{where}: image {path} cannot be opened: {error}") from error


def read_rows(path: Path) -> RowSource:
    """Triples from a .csv or .jsonl with `condition`, `prompt`, `target` (paths relative to the file), or a folder.

    A folder holds `condition/NAME.png`, `target/NAME.png` and either `prompt/NAME.txt` or one `prompt.txt` for all.
    Raises TripleError that names the line and column, for an empty set too.
    """
    readers: Mapping[str, Any] = {".csv": _read_csv, ".jsonl": _read_jsonl}
    if path.is_dir():
        rows = tuple(_read_folder(path))
    elif path.suffix.lower() in readers:
        rows = tuple(_check_row(path, line, row) for line, row in readers[path.suffix.lower()](path))
    else:
        raise TripleError(f"{path} is neither a folder nor a .csv or .jsonl file")
    if not rows:
        raise TripleError(f"{path} holds no triples")
    return RowSource(rows)


def _check_row(path: Path, line: int, row: Mapping[str, Any]) -> Row:
    where = f"{path}, line {line}"
    for column in ("condition", "prompt", "target"):
        if not isinstance(row.get(column), str) or not row[column].strip():
            raise TripleError(f"{where}: column {column!r} is missing or empty; found {row.get(column)!r}")
    condition, target = path.parent / row["condition"], path.parent / row["target"]
    for column, image in (("condition", condition), ("target", target)):
        if not image.is_file():
            raise TripleError(f"{where}, column {column!r}: no file {image}")
    return Row(condition, row["prompt"], target, where)


def _read_csv(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        for row in reader:
            yield reader.line_num, row


def _read_jsonl(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise TripleError(f"{path}, line {number}: not JSON: {error}") from error
        if not isinstance(row, dict):
            raise TripleError(f"{path}, line {number}: must be an object, not {type(row).__name__}")
        yield number, row


def _read_folder(folder: Path) -> Iterator[Row]:
    shared = folder / "prompt.txt"
    targets = {path.stem: path for path in (folder / "target").glob("*") if path.suffix.lower() in SUFFIXES}
    for condition in sorted((folder / "condition").glob("*")):
        if condition.suffix.lower() not in SUFFIXES:
            continue
        where, own = str(condition), folder / "prompt" / f"{condition.stem}.txt"
        if condition.stem not in targets:
            raise TripleError(f"{where}: no file of that name in {folder / 'target'}")
        words = own if own.is_file() else shared
        if not words.is_file():
            raise TripleError(f"{where}: neither {own} nor {shared} exists")
        yield Row(condition, words.read_text(encoding="utf-8").strip(), targets[condition.stem], where)


def open_source(data: DataConfig) -> TripleSource:
    """The triples that a configuration names."""
    if data.source == "wardrobe":
        return WardrobeSource(data.count, data.first_seed)
    return read_rows(Path(data.source))
