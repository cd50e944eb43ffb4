"""A page: who looks at it, where they are, what was just said to them, and its template.

Owns the templates' environment and the answers of forms: each ends in a redirect to a page that says what was done,
once, whatever parts of pages are asked for in between.
Errors become pages too: whoever asked for one reads what was wrong in words. Refuses inline scripts and styles.
"""

import base64
import json
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from hashlib import sha256
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from orchestrator.access.scopes import Scope
from orchestrator.api.access import SAFE, Caller, GuardedRoute, safe_target
from orchestrator.api.problems import TOLD, Problem, problem_response, translate
from orchestrator.dashboard import charts, wording
from orchestrator.redaction import redact

FOLDER = Path(__file__).parent
THEMES = ("light", "dark")
THEME_COOKIE, SAID_COOKIE = "kontext_theme", "kontext_said"
SAID_MAX_CHARACTERS = 400
PARTS = "parts/"
"""Where the templates lie that are no whole page."""
NAV = (
    ("Overview", "/", Scope.READ), ("Batches", "/batches", Scope.READ), ("New batch", "/new", Scope.SUBMIT),
    ("Schedules", "/schedules", Scope.READ), ("Workers", "/workers", Scope.READ), ("Presets", "/presets", Scope.READ),
    ("Keys", "/keys", Scope.ADMIN), ("Audit", "/audit", Scope.ADMIN),
)  # fmt: skip


@dataclass(frozen=True)
class NavItem:
    """An entry of the navigation."""

    name: str
    href: str
    current: bool


@dataclass(frozen=True)
class Said:
    """A sentence about what was just done."""

    text: str
    bad: bool = False


@dataclass(frozen=True)
class Page:
    """What every page shows beside its own content."""

    caller: str
    scope: str
    csrf: str | None
    here: str
    theme: str
    nav: tuple[NavItem, ...]
    said: tuple[Said, ...]
    may_submit: bool
    may_admin: bool


def page_router() -> APIRouter:
    """A router of pages: its routes name their scope as the API's do, and their errors are pages."""
    return APIRouter(route_class=PageRoute, include_in_schema=False, default_response_class=HTMLResponse)


class PageRoute(GuardedRoute):
    """A guarded route whose problems are told as a page, or said on the page that the form was on."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        answer = super().get_route_handler()

        async def answer_or_tell(request: Request) -> Response:
            try:
                return await answer(request)
            except TOLD as error:
                return tell(request, translate(error))

        return answer_or_tell


def tell(request: Request, problem: Problem) -> Response:
    """A problem as a person sees it: a page, or a sentence on the page that the form was on."""
    if "text/html" not in request.headers.get("accept", "") and "hx-request" not in request.headers:
        return problem_response(problem)  # a program asked
    text = redact(problem.detail)
    if request.method in SAFE or "hx-request" in request.headers:
        caller: Caller | None = getattr(request.state, "caller", None)
        view = {
            "title": HTTPStatus(problem.status).phrase, "headline": _sentence(text),
            "text": "Go back, or begin at the overview.", "href": "/", "label": "Overview",
        }  # fmt: skip
        if caller is None or "hx-request" in request.headers:
            return HTMLResponse(_sentence(text), status_code=problem.status, headers=problem.headers)
        return render(request, caller, "problem.html", view, status_code=problem.status)
    return redirect(referring_page(request), _sentence(text), bad=True)


def referring_page(request: Request) -> str:
    """The path of the page that a form was on, as the browser tells it; the overview where it does not."""
    _, separator, rest = request.headers.get("referer", "").partition(f"://{request.headers.get('host', '')}/")
    return safe_target(f"/{rest}" if separator else None)


def render(
    request: Request, caller: Caller, template: str, view: Any, *, status_code: int = 200, **more: Any
) -> HTMLResponse:
    """A page, or with `part` in `more` the part of one, from its template and its view."""
    page = describe(request, caller)
    text = environment().get_template(template).render(page=page, view=view, **{"part": "", **more})
    response = HTMLResponse(text, status_code=status_code, headers={"cache-control": "no-store", "vary": "Cookie"})
    # A part shows nothing of it, so it is not yet said: the page being left asks for its parts to its very end.
    if page.said and not template.startswith(PARTS):
        response.delete_cookie(SAID_COOKIE, path="/")
    return response


def redirect(to: str, said: str = "", *, bad: bool = False) -> Response:
    """Go on to a page, which says what was done."""
    response = RedirectResponse(safe_target(to), status_code=303)
    if said:
        text = json.dumps([[said[:SAID_MAX_CHARACTERS], bad]])
        value = base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")
        response.set_cookie(SAID_COOKIE, value, max_age=60, httponly=True, samesite="lax", path="/")
    return response


def describe(request: Request, caller: Caller) -> Page:
    """The frame of a page for this caller."""
    path, query = request.url.path, request.url.query
    theme = request.cookies.get(THEME_COOKIE, "")
    nav = tuple(
        NavItem(name, href, path == href or (href != "/" and path.startswith(f"{href}/")))
        for name, href, scope in NAV
        if caller.scope.covers(scope)
    )
    return Page(
        caller=caller.name, scope=caller.scope, csrf=caller.csrf, here=f"{path}?{query}" if query else path,
        theme=theme if theme in THEMES else "", nav=nav, said=_read_said(request.cookies.get(SAID_COOKIE)),
        may_submit=caller.scope.covers(Scope.SUBMIT), may_admin=caller.scope.covers(Scope.ADMIN),
    )  # fmt: skip


@cache
def environment() -> Environment:
    """The templates, escaped, which name nothing that is not there."""
    found = Environment(
        loader=FileSystemLoader(FOLDER / "templates"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, auto_reload=False,
    )  # fmt: skip
    found.filters |= {
        "number": wording.number, "rate": wording.rate, "axis": wording.axis, "size": wording.size,
        "share": wording.share,
        "duration": wording.duration, "ago": wording.ago, "moment": wording.moment, "iso": wording.iso,
        "clock": _clock, "plural": wording.plural, "segments": lambda counts: charts.segments(vars(counts)),
    }  # fmt: skip
    found.globals["version"] = static_version()
    return found


@cache
def static_version() -> str:
    """Changes with the content of the static files, so that browsers may keep them for ever."""
    digest = sha256()
    for path in sorted((FOLDER / "static").rglob("*")):
        if path.is_file():
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _clock(seconds: float | None) -> str:
    return wording.DASH if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%H:%M:%S")


def _read_said(value: str | None) -> tuple[Said, ...]:
    """What a form's answer left to say; nothing for a cookie that is not of our making."""
    if not value:
        return ()
    try:
        told = json.loads(base64.urlsafe_b64decode(value + "=="))
        return tuple(Said(str(text)[:SAID_MAX_CHARACTERS], bool(bad)) for text, bad in told[:3])
    except (ValueError, TypeError):
        return ()


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def query_of(values: Mapping[str, object]) -> str:
    """A query string of what is not empty, with its question mark; empty for nothing."""
    kept = {name: value for name, value in values.items() if value not in (None, "", False)}
    return f"?{urlencode(kept)}" if kept else ""
