"""What goes wrong between a client and its server: one exception, which says what, where, and what to do.

Refuses to carry the key, or anything of the request but its method and path.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import httpx2
from pydantic import BaseModel, ConfigDict, ValidationError


class ApiError(Exception):
    """A call that a server did not answer with success.

    `status` is None where no answer came. `code` is a stable word for programs, `detail` the sentence for people,
    `where` the method and path that were called; `errors` tells of each value or line that is wrong.
    """

    def __init__(
        self,
        detail: str,
        *,
        where: str,
        code: str,
        status: int | None = None,
        errors: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        super().__init__(detail)
        self.detail, self.where, self.code, self.status, self.errors = detail, where, code, status, tuple(errors)

    def __str__(self) -> str:
        told = f" ({self.where}: {'no answer' if self.status is None else self.status}, {self.code})"
        return self.detail + (told if self.status is None or self.status >= 500 else "")

    @property
    def callers_fault(self) -> bool:
        """Whether the call itself was wrong, so that it fails again as it stands."""
        return self.status is not None and 400 <= self.status < 500 and self.status not in (408, 429)


class _Problem(BaseModel):
    """RFC 9457, as far as we read it."""

    model_config = ConfigDict(extra="ignore")
    code: str
    detail: str
    errors: list[dict[str, Any]] | None = None


def read_problem(answer: httpx2.Response, where: str) -> ApiError:
    """The error that an answer tells; its body must have been read."""
    status = answer.status_code
    if status == 401:
        detail = "the server does not know this key: pass another; there, `kontext key add NAME` makes one"
        return ApiError(detail, where=where, code="unauthorized", status=status)
    try:
        told = _Problem.model_validate_json(answer.content)
    except ValidationError:  # a proxy's page, or no server of ours
        detail = f"{where} was answered {status} {answer.reason_phrase}, not by Kontext Batch: check the address"
        return ApiError(detail, where=where, code="no_problem_details", status=status)
    return ApiError(told.detail, where=where, code=told.code, status=status, errors=told.errors or ())
