"""The words of `kontext webhook`: its commands, their flags, their help.

Owns the grammar, as `app` does for the rest. Refuses work: each command hands over to `webhook_reports`.
"""

from typing import Annotated

import typer

from orchestrator.cli.door import At, somewhere
from orchestrator.state.transitions import DeliveryState, Event

webhook = typer.Typer(help="Addresses that are told what happens.", no_args_is_help=True, rich_markup_mode=None)

_Id = Annotated[str, typer.Argument(metavar="ID", help="The webhook, as `kontext webhook list` names it.")]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]


@webhook.command()
@somewhere
def add(
    at: At,
    url: Annotated[str, typer.Argument(metavar="URL", help="https://, to a public host.")],
    events: Annotated[str, typer.Option(help=f"Commas between: {', '.join(Event)}.")],
    json: _Json = False,
) -> None:
    """Tell an address of events; prints the secret that messages are signed with, this once."""
    from orchestrator.cli.webhook_reports import add_webhook

    add_webhook(at, url, events, as_json=json)


@webhook.command("list")
@somewhere
def list_(at: At, json: _Json = False) -> None:
    """List the webhooks."""
    from orchestrator.cli.webhook_reports import list_webhooks

    list_webhooks(at, as_json=json)


@webhook.command()
@somewhere
def test(
    at: At,
    webhook: _Id,
    wait: Annotated[float, typer.Option(min=0, max=600, help="Seconds to wait for the answer.")] = 20.0,
    json: _Json = False,
) -> None:
    """Send a message of type webhook.test and show the answer; exit status 1 when it was not taken."""
    from orchestrator.cli.webhook_reports import test_webhook

    raise typer.Exit(test_webhook(at, webhook, wait, as_json=json))


@webhook.command()
@somewhere
def deliveries(
    at: At,
    webhook: Annotated[str | None, typer.Argument(metavar="[ID]", help="Of this webhook only.")] = None,
    state: Annotated[DeliveryState | None, typer.Option(help="Only those in this state.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many, the newest first.")] = 50,
    show: Annotated[int | None, typer.Option(metavar="DELIVERY", help="One delivery, with its tries.")] = None,
    json: _Json = False,
) -> None:
    """List what was sent: status, tries, latency; with --show one delivery with its body and its log."""
    from orchestrator.cli.webhook_reports import list_deliveries, show_delivery

    if show is not None:
        show_delivery(at, show, as_json=json)
    else:
        list_deliveries(at, webhook, state, limit, as_json=json)


@webhook.command()
@somewhere
def replay(
    at: At,
    delivery: Annotated[int, typer.Argument(metavar="DELIVERY", help="As `kontext webhook deliveries` lists it.")],
    json: _Json = False,
) -> None:
    """Send a message once more, under its old id."""
    from orchestrator.cli.webhook_reports import replay_delivery

    replay_delivery(at, delivery, as_json=json)


@webhook.command()
@somewhere
def rotate(at: At, webhook: _Id, json: _Json = False) -> None:
    """Give a webhook a new secret; the old one signs beside it for a day."""
    from orchestrator.cli.webhook_reports import rotate_secret

    rotate_secret(at, webhook, as_json=json)


@webhook.command()
@somewhere
def remove(at: At, webhook: _Id, json: _Json = False) -> None:
    """Forget a webhook and its deliveries."""
    from orchestrator.cli.webhook_reports import remove_webhook

    remove_webhook(at, webhook, as_json=json)
