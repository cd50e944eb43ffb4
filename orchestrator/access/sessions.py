"""Sessions of the pages: a signed cookie value, the CSRF token that belongs to it, and one-time tokens that open one.

Owns the signature. Refuses to hold state: a value names the key or sign-in it came from, which SQL is asked for at
every call, so that revoking a key ends its sessions at once.
"""

import base64
import hashlib
import hmac
import json
import re
import secrets
from dataclasses import dataclass
from functools import cached_property

from sqlalchemy import Engine

from orchestrator.access.keys import check_key, digest
from orchestrator.access.scopes import Scope
from orchestrator.state import queries
from orchestrator.state.database import reading
from orchestrator.state.queries import Credential

SESSION_S = 7 * 86_400.0
TOKEN_S = 24 * 3600.0
KEY, SIGN_IN = "key", "sign_in"
_TOKEN = re.compile(r"ot_([0-9a-f]{12})_[A-Za-z0-9_-]{43}")


@dataclass(frozen=True)
class Session:
    """A session that holds: `kind` and `credential` say who opened it, `csrf` is asked of every change it makes."""

    kind: str
    credential: Credential
    csrf: str


def create_token(engine: Engine, scope: Scope = Scope.ADMIN, life_s: float = TOKEN_S) -> str:
    """Make a token that opens one session, once."""
    token_id = secrets.token_hex(6)
    token = f"ot_{token_id}_{secrets.token_urlsafe(32)}"
    with engine.begin() as connection:
        queries.add_sign_in(connection, token_id, scope=scope, sha256=digest(token), life_s=life_s)
    return token


class Sessions:
    """Opens and checks the sessions of one database."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @cached_property
    def _secret(self) -> bytes:
        """Made by whichever process needs it first, the same for all."""
        with self._engine.begin() as connection:
            return queries.keep_secret(connection, "sessions", secrets.token_hex(32)).encode()

    @property
    def cookie_name(self) -> str:
        """The cookie's name: one for each database, since a browser shares cookies between the ports of a host."""
        return f"kontext_{hashlib.sha256(self._secret).hexdigest()[:8]}"

    def open(self, secret: str) -> str | None:
        """A session's value for a key or a one-time token, which is spent by it; None when neither is good."""
        if (shape := _TOKEN.fullmatch(secret)) is not None:
            with self._engine.begin() as connection:
                if not queries.use_sign_in(connection, shape[1], digest(secret)):
                    return None
                found = queries.find_sign_in(connection, shape[1])
            return None if found is None else self._sign(SIGN_IN, found)
        key = check_key(self._engine, secret)
        return None if key is None else self._sign(KEY, key)

    def check(self, value: str) -> Session | None:
        """The session of a cookie's value; None when it is forged or over, or its key was revoked."""
        told, dot, signature = value.partition(".")
        if not dot or not hmac.compare_digest(signature.encode(), self._mac("session", told).encode()):
            return None
        kind, credential_id, until, _ = json.loads(base64.urlsafe_b64decode(told + "=="))
        find = {KEY: queries.find_key, SIGN_IN: queries.find_sign_in}[kind]
        with reading(self._engine).connect() as connection:
            found = find(connection, credential_id)
        if found is None or not found.valid or found.read_at >= until:
            return None
        return Session(kind, found, self._mac("csrf", told))

    def _sign(self, kind: str, credential: Credential) -> str:
        told = [kind, credential.id, round(credential.read_at + SESSION_S), secrets.token_hex(8)]
        # Without padding, which a cookie would have to quote.
        text = base64.urlsafe_b64encode(json.dumps(told).encode()).decode().rstrip("=")
        return f"{text}.{self._mac('session', text)}"

    def _mac(self, purpose: str, text: str) -> str:
        return hmac.new(self._secret, f"{purpose}:{text}".encode(), hashlib.sha256).hexdigest()
