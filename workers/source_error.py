"""The error of a source image, shared by everything that fetches or opens one."""

from typing import Literal


class SourceError(Exception):
    """A source image cannot be used. `code` is a stable word; `error_class` says whether trying again may help."""

    def __init__(self, code: str, error_class: Literal["input", "transient"], message: str) -> None:
        super().__init__(message)
        self.code, self.error_class, self.message = code, error_class, message
