"""Items of a JSON request as a catalogue: a large list is written out as JSONL while it is read, item by item.

Owns the reading of `{"items": […], …}` in constant memory. Refuses to judge items: a row's problems are the reader's.
"""

import json
import re
from pathlib import Path
from typing import Any, TextIO

from orchestrator.catalogs.catalogue import CatalogueError

CHUNK_CHARACTERS = 1 << 18
# No item, and no other value beside the items, is larger.
VALUE_MAX_CHARACTERS = 1 << 20
ITEMS_MAX = 10_000_000
_BLANK = re.compile(r"[ \t\n\r]*")
_BREAKS = str.maketrans("\n\r", "  ")
_decode = json.JSONDecoder().raw_decode


def split_items(source: Path, target: Path) -> tuple[dict[str, Any], int]:
    """Write each item of the object in `source` to a line of `target`; gives the object's other members and the count.

    Raises CatalogueError, naming the character, for what is no such object or no UTF-8.
    """
    with source.open(encoding="utf-8-sig") as stream, target.open("w", encoding="utf-8") as lines:
        try:
            return _Reader(stream).read_object(lines)
        except UnicodeDecodeError as error:
            raise CatalogueError(f"the body is not UTF-8: {error.reason}") from None
        except CatalogueError:
            raise
        except ValueError:  # Python reads no longer ones
            raise CatalogueError("the body: a number has more than 4,300 digits; send it as a text") from None
        except RecursionError:
            raise CatalogueError("the body is nested too deeply") from None


class _Reader:
    """A window over the text, of which the part before `at` is done with."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._text, self._at, self._gone, self._over = stream, "", 0, 0, False

    def read_object(self, lines: TextIO) -> tuple[dict[str, Any], int]:
        members: dict[str, Any] = {}
        count, first = 0, True
        self._take("{", "the body must be a JSON object")
        while not self._is("}"):
            if not first:
                self._take(",", "expected a comma or the end of the object")
            first = False
            name = self._value()[0]
            if not isinstance(name, str) or name in members or (name == "items" and count):
                raise self._wrong("expected a name that does not stand twice")
            self._take(":", "expected a colon")
            if name == "items":
                count = self._copy_items(lines)
                members.setdefault("items", None)
            else:
                members[name] = self._value()[0]
        self._take("}", "")
        if self._peek():
            raise self._wrong("text follows the end of the object")
        return members, count

    def _copy_items(self, lines: TextIO) -> int:
        self._take("[", "items: expected a list")
        count = 0
        while not self._is("]"):
            if count:
                self._take(",", "items: expected a comma or the end of the list")
            lines.write(self._value()[1].translate(_BREAKS) + "\n")  # outside of texts a break is a blank
            count += 1
            if count > ITEMS_MAX:
                raise CatalogueError(f"more than {ITEMS_MAX:,} items; send them in several batches")
        self._take("]", "")
        return count

    def _value(self) -> tuple[Any, str]:
        """The next value, and its text."""
        self._peek()
        while True:
            problem: json.JSONDecodeError | None = None
            try:
                value, end = _decode(self._text, self._at)
            except json.JSONDecodeError as error:
                problem = error
            else:
                # A number that ends with the window may go on beyond it.
                if end < len(self._text) or self._over:
                    text = self._text[self._at : end]
                    self._at = end
                    return value, text
            if self._over or len(self._text) - self._at > VALUE_MAX_CHARACTERS:
                if problem is None or not self._over:
                    raise self._wrong(f"a value is longer than {VALUE_MAX_CHARACTERS:,} characters, or broken")
                self._at = problem.pos
                raise self._wrong(problem.msg)
            self._fill()

    def _take(self, character: str, otherwise: str) -> None:
        if not self._is(character):
            raise self._wrong(otherwise)
        self._at += 1

    def _is(self, character: str) -> bool:
        return self._peek() == character

    def _peek(self) -> str:
        """The next character that is not blank; empty at the end."""
        while True:
            blank = _BLANK.match(self._text, self._at)
            self._at = blank.end() if blank else self._at
            if self._at < len(self._text):
                return self._text[self._at]
            if self._over:
                return ""
            self._fill()

    def _fill(self) -> None:
        more = self._stream.read(CHUNK_CHARACTERS)
        self._over = not more
        self._gone += self._at
        self._text, self._at = self._text[self._at :] + more, 0

    def _wrong(self, reason: str) -> CatalogueError:
        return CatalogueError(f"the body, character {self._gone + self._at + 1}: {reason}")
