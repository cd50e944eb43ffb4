"""API keys, and the log of who changed what, for administrators alone; and to every caller, who that is."""

from typing import Annotated, Any

from fastapi import Path, Query, Response
from pydantic import BaseModel, Field

from orchestrator.access.keys import NAME_MAX_CHARACTERS, create_key
from orchestrator.access.scopes import Scope
from orchestrator.api import audit
from orchestrator.api.access import Admin, Reader, open_router
from orchestrator.api.batches import Limit
from orchestrator.api.cursors import After, read_cursor, write_cursor
from orchestrator.api.problems import Problem
from orchestrator.api.resources import Open
from orchestrator.api.shapes import Page
from orchestrator.state import queries
from orchestrator.state.database import reading
from orchestrator.telling import key_values

router = open_router(prefix="/v1", tags=["keys"])
LISTED = 1000


class NewKeyRequest(BaseModel):
    """Whose a key is, and what it may do."""

    model_config = {"extra": "forbid"}
    name: str = Field(min_length=1, max_length=NAME_MAX_CHARACTERS, examples=["shop system"])
    scope: Scope = Field(Scope.SUBMIT, description="each includes those before it")


class KeyShape(BaseModel):
    """A key; its secret cannot be had again."""

    id: str = Field(examples=["3f2a91c07b5e"])
    object: str = "api_key"
    name: str
    scope: Scope
    created_at: int
    last_used_at: int | None
    revoked_at: int | None


class NewKeyShape(KeyShape):
    """A key just made."""

    secret: str = Field(description="shown this once", examples=["kx_3f2a91c07b5e_…"])


class CallerShape(BaseModel):
    """Who calls."""

    id: str = Field(examples=["key:3f2a91c07b5e"])
    object: str = "caller"
    name: str
    scope: Scope


class AuditShape(BaseModel):
    """One change."""

    id: int
    object: str = "audit_entry"
    at: float
    caller: str = Field(examples=["key:3f2a91c07b5e"])
    action: str = Field(examples=["batch.pause"])
    target: str
    detail: dict[str, Any]


@router.get("/caller", response_model=CallerShape)
def get_caller(caller: Reader) -> CallerShape:
    """Whose key this is, and what it may do."""
    return CallerShape(id=caller.id, name=caller.name, scope=caller.scope)


@router.get("/keys", response_model=Page[KeyShape])
def list_keys(_: Admin, opened: Open) -> Page[KeyShape]:
    """The newest keys, revoked ones included."""
    with reading(opened.engine).connect() as connection:
        keys = queries.list_keys(connection, limit=LISTED)
    return Page(data=[KeyShape(**key_values(key)) for key in keys], has_more=False)


@router.post("/keys", response_model=NewKeyShape, status_code=201)
def add_key(caller: Admin, opened: Open, asked: NewKeyRequest) -> NewKeyShape:
    """Make a key; its secret is shown this once."""
    try:
        made = create_key(opened.engine, asked.name, asked.scope, note=audit.line(caller, "key.create"))
    except ValueError as error:
        raise Problem(422, "bad_name", str(error)) from None
    return NewKeyShape(**key_values(made.key), secret=made.secret)


@router.delete("/keys/{key_id}", status_code=204, response_class=Response)
def revoke_key(
    caller: Admin, opened: Open, key_id: Annotated[str, Path(max_length=100, examples=["3f2a91c07b5e"])]
) -> Response:
    """End a key and the sessions that it opened; once more is as good."""
    with opened.engine.begin() as connection:
        found = queries.read_key(connection, key_id) if "\0" not in key_id else None
        if found is not None and queries.revoke_key(connection, key_id):
            audit.line(caller, "key.revoke")(connection, key_id)
    if found is None:
        raise Problem(404, "not_found", f"there is no key {key_id!r}")
    return Response(status_code=204)


@router.get("/audit", response_model=Page[AuditShape])
def list_audit(
    _: Admin,
    opened: Open,
    target: Annotated[
        list[str] | None, Query(max_length=50, description="only changes of these", examples=[["20261125-1f2e3d4c"]])
    ] = None,
    limit: Limit = 100,
    after: After = None,
) -> Page[AuditShape]:
    """The newest changes, in pages."""
    key = read_cursor(after, int)
    if key is not None and not 0 <= key[0] < 2**53:
        raise Problem(422, "bad_cursor", "after: this cursor is of no page")
    targets = [text.replace("\0", "") for text in target or ()]
    with reading(opened.engine).connect() as connection:
        found = queries.list_audit(connection, limit=limit + 1, before=key[0] if key else None, targets=targets)
    page, more = found[:limit], len(found) > limit
    return Page(
        data=[AuditShape(**{**vars(entry), "detail": dict(entry.detail)}) for entry in page],
        has_more=more,
        next=write_cursor(page[-1].id) if more else None,
    )
