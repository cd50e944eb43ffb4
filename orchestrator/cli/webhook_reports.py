"""`kontext webhook …`: webhooks are stored and their deliveries shown; a dispatcher sends them.

Owns how they read on a terminal and as JSON. Needs the door alone; refuses to send anything itself.
"""

import json
import time
from typing import Any

import typer

from orchestrator.cli.door import At, open_door
from orchestrator.cli.failures import ERROR, SUCCESS
from orchestrator.cli.reports import shorten
from orchestrator.client.shapes import Delivery, Webhook, WebhookSecret
from orchestrator.state.clock import show_time
from orchestrator.state.transitions import DeliveryState

LOOK_INTERVAL_S = 0.2


def add_webhook(at: At, url: str, events: str, *, as_json: bool) -> None:
    """Store a webhook, and show its secret."""
    names = [name.strip() for name in events.split(",") if name.strip()]
    with open_door(at, making=True) as door:
        made = door.add_webhook(url, names)
    _tell_secret(made, f"webhook {made.id} hears of {', '.join(made.events)}", as_json)


def rotate_secret(at: At, webhook_id: str, *, as_json: bool) -> None:
    """Make a new secret, and show it."""
    with open_door(at) as door:
        made = door.rotate_webhook(webhook_id)
    _tell_secret(made, f"webhook {webhook_id} has a new secret; the old one signs beside it for a day", as_json)


def _tell_secret(made: WebhookSecret, sentence: str, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({**describe_webhook(made), "secret": made.secret}))
    else:
        typer.echo(f"{sentence}\nsecret, shown this once: {made.secret}")


def list_webhooks(at: At, *, as_json: bool) -> None:
    """All webhooks."""
    with open_door(at, making=True) as door:
        found = door.webhooks()
    if as_json:
        typer.echo(json.dumps([describe_webhook(each) for each in found]))
    elif not found:
        typer.echo("no webhooks yet; make one: kontext webhook add URL --events batch.completed")
    for each in [] if as_json else found:
        typer.echo(f"{each.id}  {each.url}  {', '.join(each.events)}")


def remove_webhook(at: At, webhook_id: str, *, as_json: bool) -> None:
    """Remove, and say so."""
    with open_door(at) as door:
        door.remove_webhook(webhook_id)
    _tell({"id": webhook_id, "removed": True}, f"webhook {webhook_id} is removed", as_json)


def test_webhook(at: At, webhook_id: str, wait_s: float, *, as_json: bool) -> int:
    """Send a test message and wait for a try; gives the exit status."""
    with open_door(at) as door:
        delivery = door.test_webhook(webhook_id)
        until_s = time.monotonic() + wait_s
        while delivery.status is None and delivery.error is None and time.monotonic() < until_s:
            time.sleep(LOOK_INTERVAL_S)
            delivery = door.delivery(delivery.id)
    taken = delivery.state == DeliveryState.DELIVERED
    if not taken and delivery.error is None:
        sentence = f"not sent within {wait_s:g} s: does a dispatcher run? See: kontext webhook deliveries {webhook_id}"
    else:
        sentence = f"{'taken' if taken else 'not taken'}: {_outcome(delivery)}"
    _tell(describe_delivery(delivery), sentence, as_json)
    return SUCCESS if taken else ERROR


def list_deliveries(at: At, webhook_id: str | None, state: DeliveryState | None, limit: int, *, as_json: bool) -> None:
    """The newest deliveries."""
    with open_door(at) as door:
        found = door.deliveries(webhook_id, state, limit)
    if as_json:
        typer.echo(json.dumps([describe_delivery(each) for each in found]))
        return
    typer.echo(f"{'delivery':>9} {'webhook':<16} {'event':<16} {'state':<10} {'tries':>5}  outcome")
    for each in found:
        typer.echo(
            f"{each.id:>9} {each.webhook_id:<16} {each.event:<16} {each.state:<10} {each.attempts:>5}  {_outcome(each)}"
        )


def show_delivery(at: At, delivery_id: int, *, as_json: bool) -> None:
    """One delivery: its body, and each try."""
    with open_door(at) as door:
        delivery = door.delivery(delivery_id)
    if as_json:
        log = [vars(each) | {"at": show_time(each.at)} for each in delivery.log]
        typer.echo(json.dumps({**describe_delivery(delivery), "body": delivery.body, "log": log}))
        return
    typer.echo(f"delivery {delivery.id} to {delivery.webhook_id}: {delivery.event}, {delivery.state}")
    typer.echo(f"  message  {delivery.message_id}\n  body     {delivery.body}")
    for each in delivery.log:
        outcome = each.error or f"status {each.status}"
        answer = f": {shorten(each.answer, 120)}" if each.answer else ""
        typer.echo(f"  {each.attempt:>4}  {show_time(each.at)}  {each.latency_s:.3f} s  {outcome}{answer}")


def replay_delivery(at: At, delivery_id: int, *, as_json: bool) -> None:
    """Replay, and say so."""
    with open_door(at) as door:
        delivery = door.replay(delivery_id)
    _tell(describe_delivery(delivery), f"delivery {delivery_id} is sent once more, as {delivery.message_id}", as_json)


def describe_webhook(webhook: Webhook) -> dict[str, Any]:
    """A webhook for programs. Times are ISO 8601, in UTC."""
    return {
        "id": webhook.id,
        "url": webhook.url,
        "events": list(webhook.events),
        "created_at": show_time(webhook.created_at),
        "rotated_at": show_time(webhook.rotated_at),
    }


def describe_delivery(delivery: Delivery) -> dict[str, Any]:
    """A delivery for programs."""
    return {
        "delivery": delivery.id,
        "webhook": delivery.webhook_id,
        "message": delivery.message_id,
        "event": delivery.event,
        "state": delivery.state.value,
        "attempts": delivery.attempts,
        "status": delivery.status,
        "latency_s": None if delivery.latency_s is None else round(delivery.latency_s, 3),
        "error": delivery.error,
        "created_at": show_time(delivery.created_at),
        "next_at": show_time(delivery.next_at),
        "ended_at": show_time(delivery.ended_at),
    }


def _outcome(delivery: Delivery) -> str:
    if delivery.latency_s is None:
        return "not tried yet"
    return f"{delivery.error or f'status {delivery.status}'} in {delivery.latency_s:.3f} s"


def _tell(told: dict[str, Any], sentence: str, as_json: bool) -> None:
    typer.echo(json.dumps(told) if as_json else sentence)
