"""Errors as the API tells them: RFC 9457 problem details, for every error there is.

Owns which error of ours becomes which status. Refuses to tell a caller what only a log should hold: an unexpected
error gets a number under which the log has its traceback.
"""

import secrets
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from redis.exceptions import RedisError
from sqlalchemy.exc import DataError, DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kontext_model.revision import CheckpointError
from orchestrator.batches import BatchError
from orchestrator.catalogs import CatalogueError
from orchestrator.control import ControlError
from orchestrator.fire_times import FireTimeError
from orchestrator.recipes import OptionError
from orchestrator.redaction import redact
from orchestrator.schedules import NameTaken, NoSchedule, ScheduleError
from orchestrator.storage import ObjectMissing, StorageError
from orchestrator.webhooks import NoWebhook, WebhookError

MEDIA_TYPE = "application/problem+json"
ERRORS_TOLD = 100
log = structlog.get_logger("api")


class Problem(Exception):
    """An answer that is no success. `code` is a stable word for programs, `detail` a sentence for people."""

    def __init__(
        self, status: int, code: str, detail: str, *, headers: Mapping[str, str] | None = None, **more: Any
    ) -> None:
        super().__init__(detail)
        self.status, self.code, self.detail, self.headers, self.more = status, code, detail, headers, more


class ProblemDetails(BaseModel):
    """RFC 9457; `code` names the problem for programs."""

    type: str = Field(examples=["urn:kontext:problem:not_found"])
    title: str = Field(examples=["Not Found"])
    status: int = Field(examples=[404])
    code: str = Field(examples=["not_found"])
    detail: str = Field(examples=["there is no batch 20261125-00000000"])
    errors: list[dict[str, Any]] | None = Field(
        None, description="one entry for each value or line that is wrong", examples=[None]
    )


_TEXTS = {
    400: "the request cannot be read", 401: "no valid credentials", 403: "the key's scope does not allow this",
    404: "there is no such thing", 409: "it stands where this cannot be asked of it", 413: "the body is too large",
    422: "a value is wrong", 429: "too many requests", 503: "a server that is needed does not answer",
}  # fmt: skip
RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"description": text, "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemDetails"}}}}
    for status, text in _TEXTS.items()
}
"""What any route may answer beside its own; for `include_router(responses=…)`."""


def problem_response(problem: Problem) -> JSONResponse:
    """The answer that tells a problem."""
    try:
        title = HTTPStatus(problem.status).phrase
    except ValueError:
        title = "Error"
    body = {
        "type": f"urn:kontext:problem:{problem.code}",
        "title": title,
        "status": problem.status,
        "code": problem.code,
        "detail": redact(problem.detail),
        **problem.more,
    }
    headers = {"cache-control": "no-store", **(problem.headers or {})}
    return JSONResponse(body, status_code=problem.status, headers=headers, media_type=MEDIA_TYPE)


TOLD: tuple[type[Exception], ...] = (
    Problem, HTTPException, RequestValidationError, ControlError, BatchError, CatalogueError, OptionError,
    CheckpointError, FireTimeError, ScheduleError, WebhookError, StorageError, DBAPIError, PoolTimeout,
    RedisError,
)  # fmt: skip
"""The errors that `translate` knows."""


def install_problems(app: FastAPI) -> None:
    """Make every error of the application a problem."""

    async def tell(request: Request, error: Exception) -> JSONResponse:
        return problem_response(translate(error))

    for kind in TOLD:
        app.add_exception_handler(kind, tell)
    app.add_exception_handler(Exception, _tell_unexpected)


_TOO_LARGE = Problem(
    413,
    "too_large",
    "the body is larger than this route takes; see KONTEXT_MAX_UPLOAD_BYTES",
    headers={"connection": "close"},
)


class TellTooLarge:
    """ASGI: the framework's guard of body sizes answers in plain text; this makes it a problem too."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        replaced = False

        async def send_problem(message: Message) -> None:
            nonlocal replaced
            if message["type"] == "http.response.start" and message["status"] == 413:
                replaced = Headers(raw=message["headers"]).get("content-type", "").startswith("text/plain")
            if not replaced:
                await send(message)
            elif message["type"] == "http.response.start":
                await problem_response(_TOO_LARGE)(scope, receive, send)

        await self._app(scope, receive, send_problem)


async def _tell_unexpected(request: Request, error: Exception) -> JSONResponse:
    """The server writes the traceback; the number stands in both."""
    number = secrets.token_hex(4)
    log.error("unexpected error", number=number, method=request.method, path=request.url.path, exc_info=error)
    detail = f"an unexpected error, number {number} in the server's log"
    return problem_response(Problem(500, "internal_error", detail, headers=request.app.state.error_headers))


def translate(error: Exception) -> Problem:
    """The problem that one of the errors of TOLD is."""
    match error:
        case Problem():
            return error
        case RequestValidationError():
            return _invalid(error)
        case HTTPException():
            code = HTTPStatus(error.status_code).phrase.lower().replace(" ", "_").replace("'", "")
            return Problem(error.status_code, code, str(error.detail), headers=error.headers)
        case ControlError():
            missing = str(error).startswith(("there is no batch", "there is no job"))
            return Problem(404, "not_found", str(error)) if missing else Problem(409, "conflict", str(error))
        case BatchError():
            missing = str(error).startswith("there is no batch")
            return Problem(404, "not_found", str(error)) if missing else Problem(409, "conflict", str(error))
        case NoSchedule() | NoWebhook():
            return Problem(404, "not_found", str(error))
        case NameTaken():
            return Problem(409, "name_taken", str(error))
        case FireTimeError():
            return Problem(422, "bad_fire_time", str(error))
        case ScheduleError():
            return Problem(422, "bad_schedule", str(error))
        case WebhookError():
            return Problem(422, "bad_webhook", str(error))
        case CatalogueError():
            return Problem(422, "bad_catalogue", str(error))
        case OptionError():
            return Problem(422, error.code, str(error), errors=[{"where": error.column, "message": str(error)}])
        case CheckpointError():
            return Problem(503, "bad_checkpoint", str(error))
        case ObjectMissing():
            return Problem(404, error.code, str(error))
        case StorageError():
            return Problem(503, error.code, str(error), headers={"retry-after": "5"})
        case PoolTimeout():
            log.warning("all connections to the database are in use", error=_first_line(error))
            detail = "all connections to the database are in use"
            return Problem(503, "unavailable", detail, headers={"retry-after": "5"})
        case DataError():
            log.warning("the database cannot take a value", error=_first_line(error))
            detail = "a value is none that the database takes: a text with NUL characters, or a number too large"
            return Problem(422, "invalid", detail)
        case _:
            log.warning("a server does not answer", error=_first_line(error))
            name = "Redis" if isinstance(error, RedisError) else "the database"
            return Problem(503, "unavailable", f"{name} does not answer", headers={"retry-after": "5"})


def _invalid(error: RequestValidationError) -> Problem:
    """What is wrong with a request, value by value; the values themselves may be secrets and are not repeated."""
    errors = [
        {"where": ".".join(str(part) for part in found["loc"]), "message": found["msg"]}
        for found in error.errors()[:ERRORS_TOLD]
    ]
    first = f"{errors[0]['where']}: {errors[0]['message']}" if errors else "the request cannot be read"
    more = f", and {len(errors) - 1} more" if len(errors) > 1 else ""
    return Problem(422, "invalid", first + more, errors=errors)


def _first_line(error: Exception) -> str:
    return str(getattr(error, "orig", error) or error).partition("\n")[0]
