"""API keys: `kx_<id>_<random>`, shown once and stored as a digest.

Owns minting and checking. A key has 256 random bits, so that its digest needs no salt and no slow hash.
"""

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass

from sqlalchemy import Engine

from orchestrator.access.audit import Note, unnoted
from orchestrator.access.scopes import Scope
from orchestrator.state import queries
from orchestrator.state.database import reading, storable
from orchestrator.state.queries import ApiKey, Credential

NAME_MAX_CHARACTERS = 100
_KEY = re.compile(r"kx_([0-9a-f]{12})_[A-Za-z0-9_-]{43}")


@dataclass(frozen=True)
class NewKey:
    """A key just made. `secret` is all that its owner needs, and cannot be had again."""

    key: ApiKey
    secret: str


def create_key(engine: Engine, name: str, scope: Scope, *, note: Note = unnoted) -> NewKey:
    """Make a key and store its digest. Raises ValueError for a name that says nothing or cannot be stored."""
    name = name.strip()
    if not name or len(name) > NAME_MAX_CHARACTERS or storable(name) != name or not name.isprintable():
        raise ValueError(f"a key's name has 1 to {NAME_MAX_CHARACTERS} printable characters, not {name[:120]!r}")
    key_id = secrets.token_hex(6)
    secret = f"kx_{key_id}_{secrets.token_urlsafe(32)}"
    with engine.begin() as connection:
        queries.add_key(connection, key_id, name=name, scope=scope, sha256=digest(secret))
        note(connection, key_id, name=name, scope=scope)
        key = queries.read_key(connection, key_id)
    assert key is not None
    return NewKey(key, secret)


def check_key(engine: Engine, secret: str) -> Credential | None:
    """The key that this secret opens; None for one that is malformed, unknown or revoked. Notes its use."""
    shape = _KEY.fullmatch(secret)
    if shape is None:
        return None
    with reading(engine).connect() as connection:
        found = queries.find_key(connection, shape[1])
    if found is None or not hmac.compare_digest(found.sha256, digest(secret)) or not found.valid:
        return None
    if found.stale:
        with engine.begin() as connection:
            queries.note_key_used(connection, found.id)
    return found


def digest(secret: str) -> str:
    """What is stored of a secret."""
    return hashlib.sha256(secret.encode()).hexdigest()
