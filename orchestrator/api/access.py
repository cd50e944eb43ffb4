"""Who calls, and whether they may: a key in `Authorization: Bearer`, or a page's session cookie.

Owns the gate, which lets nobody past without credentials but to the paths of PUBLIC, and `require(scope)`, which every
route behind it names: a router made by `open_router` refuses a route without. Both act before a body is read.
"""

import hmac
import re
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any
from urllib.parse import quote, urlsplit

from fastapi import APIRouter, Depends, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.openapi.models import HTTPBearer as BearerModel
from fastapi.responses import RedirectResponse
from fastapi.routing import APIRoute
from fastapi.security.base import SecurityBase
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.datastructures import Headers, QueryParams
from starlette.types import ASGIApp, Receive, Send
from starlette.types import Scope as Connection

from orchestrator.access.keys import check_key
from orchestrator.access.scopes import Scope
from orchestrator.api.limits import Buckets
from orchestrator.api.problems import RESPONSES, Problem, problem_response, translate
from orchestrator.api.resources import Resources, resources_of

PUBLIC = re.compile(r"/healthz|/readyz|/sign-in|/static/.*")
"""What answers without credentials."""
# Calls a second without credentials, and at once, from one address: guesses are slow.
STRANGER_RATE, STRANGER_BURST = 1.0, 30.0
SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
CSRF_HEADER, CSRF_FIELD = "x-csrf-token", "csrf_token"
_BEARER = re.compile(r"Bearer +(\S+)", re.IGNORECASE)


@dataclass(frozen=True)
class Caller:
    """Who calls: `id` is `key:…` or `sign_in:…`, as the audit log names them. `csrf` is a session's, None for a key."""

    id: str
    name: str
    scope: Scope
    csrf: str | None = None


@dataclass(eq=False)
class _Require(SecurityBase):
    """A dependency that gives the Caller, whose scope the route's class has checked."""

    scope: Scope
    scheme_name: str = "key"
    model: BearerModel = field(default_factory=lambda: BearerModel(description="An API key: kx_…"))

    async def __call__(self, request: Request) -> Caller:  # or a thread would be asked for it
        return caller_of(request, self.scope)


def require(scope: Scope) -> Any:
    """The dependency of a route that needs `scope`: `caller: Annotated[Caller, require(Scope.SUBMIT)]`."""
    return Depends(_Require(scope))


Reader = Annotated[Caller, require(Scope.READ)]
Submitter = Annotated[Caller, require(Scope.SUBMIT)]
Admin = Annotated[Caller, require(Scope.ADMIN)]


def caller_of(request: Request, scope: Scope = Scope.READ) -> Caller:
    """Who calls. Raises Problem 401 without credentials, 403 when their scope does not cover `scope`."""
    caller: Caller | None = getattr(request.state, "caller", None)
    if caller is None:
        raise _unknown()
    if not caller.scope.covers(scope):
        raise Problem(403, "scope", f"this needs a key of scope {scope}; {caller.name!r} has {caller.scope}")
    return caller


class GuardedRoute(APIRoute):
    """A route whose caller is checked before its body is read. Raises TypeError, as it is made, without a scope."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        needed = [part.call.scope for part in self.dependant.dependencies if isinstance(part.call, _Require)]
        if not needed:
            raise TypeError(f"{self.path}: the route names no scope; give it a parameter of type Reader, for example")
        answer = super().get_route_handler()

        async def answer_caller(request: Request) -> Response:
            for scope in needed:
                caller = caller_of(request, scope)
            if caller.csrf is not None and request.method not in SAFE:
                await _check_csrf(request, caller.csrf)
            return await answer(request)

        return answer_caller


def open_router(**given: Any) -> APIRouter:
    """A router whose routes must each name the scope they need, and tell their errors as problems."""
    return APIRouter(route_class=GuardedRoute, responses=RESPONSES, **given)


async def _check_csrf(request: Request, wanted: str) -> None:
    """Raise Problem 403 unless a page of ours sent this: the token stands in a header, or in a field of the form."""
    given = request.headers.get(CSRF_HEADER)
    if given is None and "form" in request.headers.get("content-type", ""):
        given = str((await request.form()).get(CSRF_FIELD, ""))
    if not hmac.compare_digest((given or "").encode(), wanted.encode()):
        raise Problem(403, "csrf", "the form's token is missing or of another session; load the page again")


def check_origin(headers: Headers) -> None:
    """Raise Problem 403 for a change that another site's page asks for, where the browser says so."""
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    foreign = site not in (None, "same-origin", "none")
    if foreign or (origin is not None and urlsplit(origin).netloc != headers.get("host")):
        raise Problem(403, "cross_site", "a page of another site asked for this change; it was refused")


class Gate:
    """ASGI: finds out who calls, once, and turns away those without credentials or with too many calls."""

    def __init__(self, app: ASGIApp, resources: Resources) -> None:
        self._app, self._resources = app, resources
        rate = resources.settings.api_requests_per_s
        self._buckets, self._strangers = Buckets(rate, 4 * rate), Buckets(STRANGER_RATE, STRANGER_BURST)

    async def __call__(self, scope: Connection, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        try:
            state = scope.setdefault("state", {})
            state["caller"] = await run_in_threadpool(self._admit, scope)
            state["still"] = partial(self._still, Headers(scope=scope))
        except (DBAPIError, PoolTimeout) as error:
            answer: Response = problem_response(translate(error))
        except Problem as problem:
            wants_page = scope["method"] == "GET" and "text/html" in Headers(scope=scope).get("accept", "")
            page = problem.status == 401 and wants_page and not scope["path"].startswith("/v1")
            answer = _to_sign_in(scope) if page else problem_response(problem)
        else:
            return await self._app(scope, receive, send)
        await answer(scope, receive, send)

    def _admit(self, scope: Connection) -> Caller | None:
        """The caller; None on public paths. Raises Problem."""
        headers, host = Headers(scope=scope), (scope.get("client") or ("", 0))[0]
        if PUBLIC.fullmatch(scope["path"]):
            changes = scope["method"] not in SAFE
            if changes:
                check_origin(headers)
            # Who signs in guesses, by a form or by a link.
            if changes or (scope["path"] == "/sign-in" and "token" in QueryParams(scope["query_string"])):
                self._strangers.take(host)
            return None
        caller = self._identify(headers)
        if caller is None:
            self._strangers.take(host)
            raise _unknown()
        if caller.csrf is not None and scope["method"] not in SAFE:
            check_origin(headers)
        self._buckets.take(caller.id)
        return caller

    def _still(self, headers: Headers) -> bool:
        """Whether the credentials of a call that goes on hold as yet; what cannot be asked just now ends no call."""
        try:
            return self._identify(headers) is not None
        except (DBAPIError, PoolTimeout):
            return True

    def _identify(self, headers: Headers) -> Caller | None:
        if (authorization := headers.get("authorization")) is not None:
            shape = _BEARER.fullmatch(authorization.strip())
            found = check_key(self._resources.engine, shape[1]) if shape else None
            return None if found is None else Caller(f"key:{found.id}", found.name, Scope(found.scope))
        if "kontext_" not in headers.get("cookie", ""):
            return None
        sessions = self._resources.sessions
        value = Request({"type": "http", "headers": headers.raw}).cookies.get(sessions.cookie_name)
        session = None if value is None else sessions.check(value)
        if session is None:
            return None
        found = session.credential
        return Caller(f"{session.kind}:{found.id}", found.name, Scope(found.scope), session.csrf)


def set_session(request: Request, response: Response, value: str) -> None:
    """Give the browser a session."""
    secure = request.url.scheme == "https"
    name = resources_of(request).sessions.cookie_name
    response.set_cookie(name, value, max_age=7 * 86_400, httponly=True, samesite="lax", secure=secure, path="/")


def safe_target(target: str | None) -> str:
    """Where a form may send a browser next: a path of this server, `/` for all else."""
    inside = target is not None and re.fullmatch(r"/(?![/\\])[\x21-\x7e]*", target) and "\\" not in target
    return target if target is not None and inside else "/"


def _to_sign_in(scope: Connection) -> RedirectResponse:
    target = scope["path"] + (f"?{scope['query_string'].decode('latin-1')}" if scope["query_string"] else "")
    return RedirectResponse(f"/sign-in?next={quote(target, safe='/')}", status_code=303)


def _unknown() -> Problem:
    return Problem(
        401,
        "unauthorized",
        "give a key: `Authorization: Bearer kx_…`; one is made by `kontext key add NAME` or on the page Keys",
        headers={"www-authenticate": "Bearer"},
    )
