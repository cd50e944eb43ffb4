"""`kontext key add | list | revoke`: who may call the API.

Needs SQL alone. Refuses to show a secret twice: only its digest is kept.
"""

import json
import time
from dataclasses import asdict

import typer

from orchestrator.access.keys import create_key
from orchestrator.access.scopes import Scope
from orchestrator.cli.failures import CallError
from orchestrator.cli.locations import open_existing_state, open_state
from orchestrator.settings import read_settings
from orchestrator.state import queries
from orchestrator.state.database import reading

CALLER = "kontext key"
LISTED = 1000


def add_key(name: str, scope: Scope, *, as_json: bool) -> None:
    """Make a key and print its secret."""
    with open_state(read_settings()) as engine:
        try:
            made = create_key(engine, name, scope)
        except ValueError as error:
            raise CallError(str(error)) from None
        with engine.begin() as connection:
            detail = {"name": made.key.name, "scope": made.key.scope}
            queries.record_audit(connection, caller=CALLER, action="key.create", target=made.key.id, detail=detail)
    if as_json:
        typer.echo(json.dumps({**asdict(made.key), "secret": made.secret}))
    else:
        typer.echo(f"key {made.key.id} for {made.key.name}, scope {scope}; keep it, it is not shown again:")
        typer.echo(made.secret)


def list_keys(*, as_json: bool) -> None:
    """Print the newest keys."""
    with open_existing_state(read_settings()) as engine, reading(engine).connect() as connection:
        keys = queries.list_keys(connection, limit=LISTED)
    for key in keys:
        if as_json:
            typer.echo(json.dumps(asdict(key)))
        else:
            used = "never used" if key.last_used_at is None else f"last used {_show_time(key.last_used_at)}"
            state = used if key.revoked_at is None else f"revoked {_show_time(key.revoked_at)}"
            typer.echo(f"{key.id}  {key.scope:<6}  {key.name}  made {_show_time(key.created_at)}, {state}")
    if not keys and not as_json:
        typer.echo("no keys; make one: kontext key add NAME")


def revoke_key(key_id: str) -> None:
    """End a key. Raises CallError when there is none of that id."""
    with open_existing_state(read_settings()) as engine, engine.begin() as connection:
        revoked = queries.revoke_key(connection, key_id)
        if revoked:
            queries.record_audit(connection, caller=CALLER, action="key.revoke", target=key_id, detail={})
        found = queries.read_key(connection, key_id)
    if found is None:
        raise CallError(f"there is no key {key_id!r}; see: kontext key list")
    typer.echo(f"key {key_id} {'is revoked' if revoked else 'was revoked before'}")


def _show_time(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
