"""Keys and the audit log: who may come in, and what they changed. For admins."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Form, Path, Query, Request, Response

from orchestrator.access.keys import create_key
from orchestrator.access.scopes import Scope
from orchestrator.api import audit
from orchestrator.api.access import Admin
from orchestrator.api.problems import Problem
from orchestrator.dashboard.listing import Pages
from orchestrator.dashboard.page import page_router, query_of, redirect, render
from orchestrator.dashboard.services import Kept, Services
from orchestrator.state import queries
from orchestrator.state.database import reading, storable
from orchestrator.state.queries import ApiKey

router = page_router()
KEYS_SHOWN = 200
PAGE_ENTRIES = 50
DETAIL_MAX_CHARACTERS = 300


@dataclass(frozen=True)
class Keys:
    """All that the page shows; `secret` is that of a key just made."""

    now: float
    keys: tuple[ApiKey, ...]
    made: str = ""
    secret: str = ""


@dataclass(frozen=True)
class AuditRow:
    """One change as the page shows it; `caller` is the name of a key, where it is one."""

    at_s: float
    caller: str
    action: str
    target: str
    href: str
    detail: str


@dataclass(frozen=True)
class Audit:
    """All that the page shows."""

    now: float
    target: str
    rows: tuple[AuditRow, ...]
    pages: Pages


@router.get("/keys")
def show_keys(caller: Admin, request: Request, kept: Services) -> Response:
    """The keys there are."""
    return render(request, caller, "keys.html", _look(kept))


@router.post("/keys")
def make_key(
    caller: Admin,
    request: Request,
    kept: Services,
    name: Annotated[str, Form(max_length=200)],
    scope: Annotated[Scope, Form()],
) -> Response:
    """Make a key, and show its secret this once: the answer is no redirect, so that the secret is in no URL."""
    try:
        made = create_key(kept.opened.engine, name, scope, note=audit.line(caller, "key.create"))
    except ValueError as error:
        raise Problem(422, "bad_name", str(error)) from error
    return render(request, caller, "keys.html", _look(kept, made.key.name, made.secret))


@router.post("/keys/{key_id}/revoke")
def revoke_key(caller: Admin, kept: Services, key_id: Annotated[str, Path(max_length=40)]) -> Response:
    """End a key, and the sessions that it opened."""
    with kept.opened.engine.begin() as connection:
        if not queries.revoke_key(connection, key_id):
            raise Problem(409, "conflict", "there is no such key, or it is revoked already")
        audit.line(caller, "key.revoke")(connection, key_id)
    return redirect("/keys", "Revoked: who uses this key is refused from now on")


@router.get("/audit")
def show_audit(
    caller: Admin,
    request: Request,
    kept: Services,
    target: Annotated[str, Query(max_length=200)] = "",
    before: Annotated[int | None, Query(ge=1, le=2**63 - 1)] = None,
) -> Response:
    """A page of the audit log."""
    target = storable(target.strip())
    with reading(kept.opened.engine).connect() as connection:
        now_s = queries.read_clock(connection)
        found = queries.list_audit(
            connection, limit=PAGE_ENTRIES + 1, before=before, targets=[target] if target else []
        )
        names = {f"key:{key.id}": key.name for key in queries.list_keys(connection, limit=KEYS_SHOWN)}
    rows = tuple(
        AuditRow(
            entry.at, names.get(entry.caller, entry.caller), entry.action, entry.target,
            _href(entry.action, entry.target), _spell(entry.detail),
        )
        for entry in found[:PAGE_ENTRIES]
    )  # fmt: skip
    last = found[PAGE_ENTRIES - 1].id if len(found) > PAGE_ENTRIES else None
    links = Pages(
        f"/audit{query_of({'target': target})}" if before else "",
        f"/audit{query_of({'target': target, 'before': last})}" if last else "",
    )
    return render(request, caller, "audit.html", Audit(now_s, target, rows, links))


def _look(kept: Kept, made: str = "", secret: str = "") -> Keys:
    with reading(kept.opened.engine).connect() as connection:
        found = queries.list_keys(connection, limit=KEYS_SHOWN)
        return Keys(queries.read_clock(connection), tuple(found), made, secret)


def _spell(detail: Mapping[str, Any]) -> str:
    """What was asked, as words: what was left unset says nothing."""
    told = {name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            for name, value in detail.items() if value is not None}  # fmt: skip
    return ", ".join(f"{name} {value}" for name, value in told.items())[:DETAIL_MAX_CHARACTERS]


def _href(action: str, target: str) -> str:
    """Where what was changed is shown."""
    kind = action.partition(".")[0]
    if kind == "job" and target.isdecimal():
        return f"/jobs/{target}"
    return f"/batches/{target}" if kind in ("batch", "jobs") else ""
