"""Who may call, statement by statement: API keys, one-time tokens, the sessions' secret; and the audit log."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from sqlalchemy import Connection, Double, Row, false, func, literal, or_, select, update

from orchestrator.state.database import insert_new, now
from orchestrator.state.tables import api_keys, audit, sign_ins, signing_secrets

# How old `last_used_at` may be before a call writes it again: a write for each call would be the call's whole cost.
USED_S = 60.0


@dataclass(frozen=True)
class ApiKey:
    """A key as it is listed; its secret is known only by its digest."""

    id: str
    name: str
    scope: str
    created_at: float
    last_used_at: float | None
    revoked_at: float | None


@dataclass(frozen=True)
class Credential:
    """What a key or a sign-in is checked against. `read_at` is the database's clock; `stale` asks to note its use."""

    id: str
    name: str
    scope: str
    sha256: str
    valid: bool
    read_at: float
    stale: bool = False


@dataclass(frozen=True)
class AuditEntry:
    """One change: who did what to what, and when."""

    id: int
    at: float
    caller: str
    action: str
    target: str
    detail: Mapping[str, Any]


def add_key(connection: Connection, key_id: str, *, name: str, scope: str, sha256: str) -> None:
    """Store a new key by the digest of its secret."""
    connection.execute(api_keys.insert().values(id=key_id, name=name, scope=scope, sha256=sha256, created_at=now()))


def list_keys(connection: Connection, *, limit: int) -> list[ApiKey]:
    """The newest keys, revoked ones included."""
    columns = [api_keys.c[field.name] for field in fields(ApiKey)]
    statement = select(*columns).order_by(api_keys.c.created_at.desc(), api_keys.c.id).limit(limit)
    return [ApiKey(*row) for row in connection.execute(statement)]


def read_key(connection: Connection, key_id: str) -> ApiKey | None:
    """One key, or None."""
    columns = [api_keys.c[field.name] for field in fields(ApiKey)]
    row = connection.execute(select(*columns).where(api_keys.c.id == key_id)).one_or_none()
    return None if row is None else ApiKey(*row)


def count_keys(connection: Connection) -> int:
    """Keys that are not revoked."""
    statement = select(func.count()).select_from(api_keys).where(api_keys.c.revoked_at.is_(None))
    return int(connection.execute(statement).scalar_one())


def revoke_key(connection: Connection, key_id: str) -> bool:
    """End a key and the sessions that it opened. False when there is none, or it was revoked before."""
    statement = (
        update(api_keys).where(api_keys.c.id == key_id, api_keys.c.revoked_at.is_(None)).values(revoked_at=now())
    )
    return connection.execute(statement).rowcount == 1


def find_key(connection: Connection, key_id: str) -> Credential | None:
    """What a caller's key is checked against, or None."""
    used = api_keys.c.last_used_at
    stale = or_(used.is_(None), used < now() - literal(USED_S, Double))
    row = connection.execute(
        select(
            api_keys.c.id, api_keys.c.name, api_keys.c.scope, api_keys.c.sha256,
            api_keys.c.revoked_at.is_(None).label("valid"), now().label("read_at"), stale.label("stale"),
        ).where(api_keys.c.id == key_id)
    ).one_or_none()  # fmt: skip
    return None if row is None else _credential(row)


def note_key_used(connection: Connection, key_id: str) -> None:
    """Note that a key was used, to the minute."""
    connection.execute(update(api_keys).where(api_keys.c.id == key_id).values(last_used_at=now()))


def add_sign_in(connection: Connection, sign_in_id: str, *, scope: str, sha256: str, life_s: float) -> None:
    """Store a one-time token by its digest."""
    values = {"id": sign_in_id, "scope": scope, "sha256": sha256}
    connection.execute(sign_ins.insert().values(created_at=now(), expires_at=now() + literal(life_s, Double), **values))


def use_sign_in(connection: Connection, sign_in_id: str, sha256: str) -> bool:
    """Spend a one-time token; True for the first caller alone, before it expires."""
    statement = (
        update(sign_ins)
        .where(
            sign_ins.c.id == sign_in_id,
            sign_ins.c.sha256 == sha256,
            sign_ins.c.used_at.is_(None),
            sign_ins.c.expires_at > now(),
        )
        .values(used_at=now())
    )
    return connection.execute(statement).rowcount == 1


def find_sign_in(connection: Connection, sign_in_id: str) -> Credential | None:
    """The sign-in that a session began with, or None."""
    row = connection.execute(
        select(
            sign_ins.c.id, literal("one-time link").label("name"), sign_ins.c.scope, sign_ins.c.sha256,
            sign_ins.c.used_at.is_not(None).label("valid"), now().label("read_at"), false().label("stale"),
        ).where(sign_ins.c.id == sign_in_id)
    ).one_or_none()  # fmt: skip
    return None if row is None else _credential(row)


def keep_secret(connection: Connection, name: str, value: str) -> str:
    """The secret of that name: `value` if there was none yet, else the one that stands. Safe for any number at once."""
    connection.execute(insert_new(connection, signing_secrets), {"name": name, "value": value})
    kept: str = connection.execute(select(signing_secrets.c.value).where(signing_secrets.c.name == name)).scalar_one()
    return kept


def record_audit(connection: Connection, *, caller: str, action: str, target: str, detail: Mapping[str, Any]) -> int:
    """Note a change; gives the line's id. `detail` must be JSON and hold no secrets."""
    values = {"caller": caller, "action": action, "target": target, "detail": json.dumps(detail, sort_keys=True)}
    line_id: int = connection.execute(audit.insert().values(at=now(), **values).returning(audit.c.id)).scalar_one()
    return line_id


def amend_audit(connection: Connection, line_id: int, detail: Mapping[str, Any]) -> bool:
    """Tell a change that goes on: its detail as it is now. False when there is no such line."""
    statement = update(audit).where(audit.c.id == line_id).values(detail=json.dumps(detail, sort_keys=True))
    return connection.execute(statement).rowcount == 1


def list_audit(
    connection: Connection, *, limit: int, before: int | None = None, targets: Sequence[str] = ()
) -> list[AuditEntry]:
    """The newest changes, below the id `before` where it is given."""
    statement = select(audit).order_by(audit.c.id.desc()).limit(limit)
    if before is not None:
        statement = statement.where(audit.c.id < before)
    if targets:
        statement = statement.where(audit.c.target.in_(targets))
    return [
        AuditEntry(**{**row, "detail": json.loads(row["detail"])}) for row in connection.execute(statement).mappings()
    ]


def _credential(row: "Row[Any]") -> Credential:
    """SQLite's truths are numbers."""
    told = dict(row._mapping)
    return Credential(**{**told, "valid": bool(told["valid"]), "stale": bool(told["stale"])})
