"""The error of a source image, shared by everything that fetches or opens one."""

from typing import Literal

from orchestrator.redaction import redact_cell

SHOWN_CHARACTERS = 300


class SourceError(Exception):
    """A source image cannot be used. `code` is a stable word; `error_class` says whether trying again may help."""

    def __init__(self, code: str, error_class: Literal["input", "transient"], message: str) -> None:
        super().__init__(message)
        self.code, self.error_class, self.message = code, error_class, message


def show(reference: str) -> str:
    """A reference as a message names it: no secrets, not endless."""
    return redact_cell(reference)[:SHOWN_CHARACTERS]
