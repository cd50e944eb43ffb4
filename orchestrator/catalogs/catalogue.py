"""What every reader gives: rows with their line, values as text, and problems that belong to one row.

Refuses nothing itself; it is the vocabulary of the readers.
"""

import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

IMAGE = "image"
KNOWN_COLUMNS = (
    IMAGE, "custom_id", "prompt", "preset", "negative_prompt", "seed", "steps", "guidance", "true_cfg", "width",
    "height", "fit", "sampler", "lora", "lora_scale", "priority",
)  # fmt: skip
MAX_CELL_CHARACTERS = 131_072
"""The csv module's own limit, which it checks at no cost; the other readers follow it."""
BAD_TEXT = re.compile("[\0\ud800-\udfff]")
"""What no database and no file stores as text: NUL, and bytes or halves of pairs that are no letter."""


class CatalogueError(ValueError):
    """The catalogue as a whole cannot be read; the message names file, line and column, and what to do."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Why one row cannot become a job. `code` is a stable word; the message names file, line and column."""

    code: str
    message: str
    column: str | None = None


class Row(NamedTuple):
    """One row. `line` is where it starts, from 1; `values` holds text, None for an empty cell. A row with a problem
    has the values that could be read, if any."""

    line: int
    values: dict[str, str | None]
    problem: Problem | None


class Catalogue(Protocol):
    """An opened catalogue. Reading it again gives the same rows."""

    @property
    def uri(self) -> str:
        """The file, folder or prefix, absolute."""

    @property
    def image_root(self) -> str:
        """The folder or S3 prefix against which relative images resolve."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns in their order. Rows of JSONL may have more."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the reader had to assume, for the user to see."""

    def rows(self, after_line: int = 0) -> Iterator[Row]:
        """Every row that starts after `after_line`, in order, in constant memory. Raises CatalogueError when the
        file can be read no further."""

    def is_empty(self) -> bool:
        """Whether there is not a single row."""


def read_header(names: Sequence[str], uri: str) -> tuple[str, ...]:
    """Trim the column names, write known ones in lower case, and check them.

    Raises CatalogueError for no `image` column (naming the columns found and the nearest) and for a name used twice.
    """
    columns = tuple(read_name(name) for name in names)
    if IMAGE not in columns:
        near = difflib.get_close_matches(IMAGE, [name.lower() for name in columns], n=1, cutoff=0.5)
        nearest = next((name for name in columns if near and name.lower() == near[0]), None)
        hint = f"rename {nearest!r} to 'image'" if nearest else "name the column that holds the pictures 'image'"
        found = ", ".join(repr(name[:40]) for name in columns[:20]) or "none"
        raise CatalogueError(f"{uri}, line 1: no column 'image'; {hint} (columns found: {found})")
    for position, name in enumerate(columns):
        if name in columns[:position] and name:
            raise CatalogueError(
                f"{uri}, line 1: column {name!r} stands twice (columns {columns.index(name) + 1} and {position + 1}); "
                "rename or remove one"
            )
    return columns


def read_name(name: str) -> str:
    """A column's name trimmed; a known one in lower case."""
    name = name.strip()
    return name.lower() if name.lower() in KNOWN_COLUMNS else name
