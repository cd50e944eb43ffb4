"""What is stored once however often it is asked: recipes by their digest, requests by their idempotency key."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, delete, select

from orchestrator.state.database import insert_new, now
from orchestrator.state.tables import idempotency, recipes


@dataclass(frozen=True)
class Idempotency:
    """What an idempotency key stands for."""

    sha256: str
    batch_id: str


def add_recipes(connection: Connection, bodies: Mapping[str, str]) -> None:
    """Store recipes by digest; those that stand already stay as they are."""
    if not bodies:
        return
    statement = insert_new(connection, recipes)
    # In one order for all, or two ingests at once would wait for each other for ever.
    connection.execute(statement, [{"id": digest, "body": body} for digest, body in sorted(bodies.items())])


def read_recipe(connection: Connection, recipe_id: str) -> Mapping[str, Any] | None:
    """A recipe's body, or None."""
    body = connection.execute(select(recipes.c.body).where(recipes.c.id == recipe_id)).scalar_one_or_none()
    return None if body is None else json.loads(body)


def read_recipes(connection: Connection, *, limit: int, after: str = "") -> list[tuple[str, Mapping[str, Any]]]:
    """Recipes by id, those after `after`."""
    statement = select(recipes).where(recipes.c.id > after).order_by(recipes.c.id).limit(limit)
    return [(row.id, json.loads(row.body)) for row in connection.execute(statement)]


def keep_idempotency(connection: Connection, *, caller: str, key: str, sha256: str, batch_id: str) -> Idempotency:
    """What a caller's key stands for: this request and batch, unless it was given before. Safe for many at once."""
    values = {"caller": caller, "key": key, "sha256": sha256, "batch_id": batch_id}
    connection.execute(insert_new(connection, idempotency).values(created_at=now(), **values))
    row = connection.execute(
        select(idempotency.c.sha256, idempotency.c.batch_id).where(
            idempotency.c.caller == caller, idempotency.c.key == key
        )
    ).one()
    return Idempotency(*row)


def key_stands_for(connection: Connection, *, caller: str, key: str, batch_id: str) -> bool:
    """Whether a caller's key still stands for this batch: it was not forgotten meanwhile."""
    statement = select(idempotency.c.batch_id).where(idempotency.c.caller == caller, idempotency.c.key == key)
    return connection.execute(statement).scalar_one_or_none() == batch_id


def forget_keys(connection: Connection, batch_id: str) -> None:
    """Let the keys that stand for a batch stand for nothing: the same request then makes another batch."""
    connection.execute(delete(idempotency).where(idempotency.c.batch_id == batch_id))
