"""Cursors: where a page ended, as a text that callers hand back and need not understand."""

import base64
import binascii
import json
from typing import Annotated, Any

from fastapi import Query

from orchestrator.api.problems import Problem
from orchestrator.state.database import storable

After = Annotated[str | None, Query(max_length=200, description="`next` of the page before", examples=["WzE3LCAxXQ"])]
"""The parameter of a list that comes in pages."""


def write_cursor(*key: Any) -> str:
    """The text of a key of numbers and texts."""
    return base64.urlsafe_b64encode(json.dumps(key).encode()).decode().rstrip("=")


def read_cursor(text: str | None, *kinds: type) -> tuple[Any, ...] | None:
    """The key that a page gave; None for the first page. Raises Problem 422 for a text that no page gave.

    What no database can compare was given by none: halves of surrogate pairs, NUL characters, numbers without end.
    """
    if text is None:
        return None
    try:
        key = json.loads(base64.urlsafe_b64decode(text + "=="))
        if isinstance(key, list) and [type(part) for part in key] == list(kinds) and all(map(_comparable, key)):
            return tuple(key)
    except (binascii.Error, ValueError):
        pass
    raise Problem(422, "bad_cursor", "after: this cursor is of no page; use `next` of the page before, as it is")


def _comparable(part: int | float | str) -> bool:
    if isinstance(part, str):
        return storable(part) == part
    return -(2**53) < part < 2**53
