"""`kontext key add | list | revoke`: who may call the API.

Needs the door alone. Refuses to show a secret twice: only its digest is kept.
"""

import json
import time
from dataclasses import asdict

import typer

from orchestrator.access.scopes import Scope
from orchestrator.cli.door import At, open_door


def add_key(at: At, name: str, scope: Scope, *, as_json: bool) -> None:
    """Make a key and print its secret."""
    with open_door(at, making=True) as door:
        made = door.add_key(name, scope)
    if as_json:
        typer.echo(json.dumps(asdict(made)))
    else:
        typer.echo(f"key {made.id} for {made.name}, scope {scope}; keep it, it is not shown again:")
        typer.echo(made.secret)


def list_keys(at: At, *, as_json: bool) -> None:
    """Print the newest keys."""
    with open_door(at) as door:
        keys = door.keys()
    for key in keys:
        if as_json:
            typer.echo(json.dumps(asdict(key)))
        else:
            used = "never used" if key.last_used_at is None else f"last used {_show_time(key.last_used_at)}"
            state = used if key.revoked_at is None else f"revoked {_show_time(key.revoked_at)}"
            typer.echo(f"{key.id}  {key.scope:<6}  {key.name}  made {_show_time(key.created_at)}, {state}")
    if not keys and not as_json:
        typer.echo("no keys; make one: kontext key add NAME")


def revoke_key(at: At, key_id: str) -> None:
    """End a key."""
    with open_door(at) as door:
        revoked = door.revoke_key(key_id)
    typer.echo(f"key {key_id} {'is revoked' if revoked else 'was revoked before'}")


def _show_time(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
