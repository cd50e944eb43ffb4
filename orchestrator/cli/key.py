"""The words of `kontext key`: its commands, their flags, their help.

Owns the grammar, as `app` does for the rest. Refuses work: each command hands over to `keys`.
"""

from typing import Annotated

import typer

from orchestrator.access.scopes import Scope
from orchestrator.cli.door import At, somewhere

key = typer.Typer(help="Keys of the API.", no_args_is_help=True, rich_markup_mode=None)

_Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]


@key.command("add")
@somewhere
def add(
    at: At,
    name: Annotated[str, typer.Argument(help="Whose it is, for the list and the audit log.")],
    scope: Annotated[Scope, typer.Option(help="What it may do; each includes those before it.")] = Scope.SUBMIT,
    json: _Json = False,
) -> None:
    """Make a key; its secret is the last word printed, and is never shown again."""
    from orchestrator.cli.keys import add_key

    add_key(at, name, scope, as_json=json)


@key.command("list")
@somewhere
def list_(at: At, json: _Json = False) -> None:
    """List the keys: scope, when last used, whether revoked."""
    from orchestrator.cli.keys import list_keys

    list_keys(at, as_json=json)


@key.command("revoke")
@somewhere
def revoke(
    at: At, key_id: Annotated[str, typer.Argument(metavar="ID", help="As `kontext key list` shows it.")]
) -> None:
    """End a key, and the sessions that it opened."""
    from orchestrator.cli.keys import revoke_key

    revoke_key(at, key_id)
