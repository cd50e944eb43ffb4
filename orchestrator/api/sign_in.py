"""Signing in and out: a key, or the one-time token of a link, becomes a session's cookie.

Owns the only changing routes that answer strangers. The page that asks for a key is the plainest that works.
"""

from typing import Annotated

from fastapi import APIRouter, Form, Query, Request
from fastapi.responses import RedirectResponse, Response

from orchestrator.api.access import Reader, open_router, safe_target, set_session
from orchestrator.api.problems import Problem
from orchestrator.api.resources import Open
from orchestrator.dashboard.door import show_door

public = APIRouter(include_in_schema=False)
router = open_router(include_in_schema=False)
_REFUSED = "This key or link is not valid: unknown, revoked, expired, or a link that was used before"


@public.get("/sign-in")
def show_sign_in(
    request: Request,
    opened: Open,
    token: Annotated[str | None, Query(max_length=200)] = None,
    target: Annotated[str | None, Query(alias="next", max_length=2000)] = None,
) -> Response:
    """Spend the one-time token of a link, or ask for a key."""
    if token is not None:
        return _sign_in(request, opened, token, target)
    return show_door(request, safe_target(target))


@public.post("/sign-in")
def sign_in(
    request: Request,
    opened: Open,
    secret: Annotated[str, Form(max_length=200)],
    target: Annotated[str | None, Form(alias="next", max_length=2000)] = None,
) -> Response:
    """Open a session with a key or a one-time token, and go on to the page that was asked for."""
    return _sign_in(request, opened, secret, target)


@router.post("/sign-out")
def sign_out(_: Reader, opened: Open) -> Response:
    """End the session in this browser."""
    response = RedirectResponse("/sign-in", status_code=303)
    response.delete_cookie(opened.sessions.cookie_name, path="/")
    return response


def _sign_in(request: Request, opened: Open, secret: str, target: str | None) -> Response:
    value = opened.sessions.open(secret.strip())
    if value is None:
        if "text/html" in request.headers.get("accept", ""):
            return show_door(request, safe_target(target), _REFUSED)
        raise Problem(401, "unauthorized", _REFUSED)
    response = RedirectResponse(safe_target(target), status_code=303)
    set_session(request, response, value)
    return response
