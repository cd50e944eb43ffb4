"""`kontext webhook …`: webhooks are stored and their deliveries shown; a dispatcher sends them.

Owns how they read on a terminal. Needs SQL alone; refuses to send anything itself.
"""

import json
import time
from typing import Any

import typer

from orchestrator import webhooks
from orchestrator.cli.failures import ERROR, SUCCESS
from orchestrator.cli.locations import open_existing_state, open_state
from orchestrator.cli.reports import shorten
from orchestrator.settings import read_settings
from orchestrator.state import queries
from orchestrator.state.clock import show_time
from orchestrator.state.database import reading
from orchestrator.state.queries import Delivery
from orchestrator.state.transitions import DeliveryState
from orchestrator.webhooks import NewSecret, describe_delivery, describe_webhook

LOOK_INTERVAL_S = 0.2


def add_webhook(url: str, events: str, *, as_json: bool) -> None:
    """Store a webhook, and show its secret."""
    settings = read_settings()
    names = [name.strip() for name in events.split(",") if name.strip()]
    with open_state(settings) as engine:
        made = webhooks.add(engine, url, names, settings)
    _tell_secret(made, f"webhook {made.webhook.id} hears of {', '.join(made.webhook.events)}", as_json)


def rotate_secret(webhook_id: str, *, as_json: bool) -> None:
    """Make a new secret, and show it."""
    with open_existing_state(read_settings()) as engine:
        made = webhooks.rotate(engine, webhook_id)
    _tell_secret(made, f"webhook {webhook_id} has a new secret; the old one signs beside it for a day", as_json)


def _tell_secret(made: NewSecret, sentence: str, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({**describe_webhook(made.webhook), "secret": made.secret}))
    else:
        typer.echo(f"{sentence}\nsecret, shown this once: {made.secret}")


def list_webhooks(*, as_json: bool) -> None:
    """All webhooks."""
    with open_state(read_settings()) as engine, reading(engine).connect() as connection:
        found = queries.list_webhooks(connection)
    if as_json:
        typer.echo(json.dumps([describe_webhook(each) for each in found]))
    elif not found:
        typer.echo("no webhooks yet; make one: kontext webhook add URL --events batch.completed")
    for each in [] if as_json else found:
        told = describe_webhook(each)
        typer.echo(f"{each.id}  {told['url']}  {', '.join(each.events)}")


def remove_webhook(webhook_id: str, *, as_json: bool) -> None:
    """Remove, and say so."""
    with open_existing_state(read_settings()) as engine:
        webhooks.remove(engine, webhook_id)
    _tell({"id": webhook_id, "removed": True}, f"webhook {webhook_id} is removed", as_json)


def test_webhook(webhook_id: str, wait_s: float, *, as_json: bool) -> int:
    """Send a test message and wait for a try; gives the exit status."""
    with open_existing_state(read_settings()) as engine:
        delivery = webhooks.test(engine, webhook_id)
        until_s = time.monotonic() + wait_s
        while delivery.status is None and delivery.error is None and time.monotonic() < until_s:
            time.sleep(LOOK_INTERVAL_S)
            delivery, _ = webhooks.find_delivery(engine, delivery.id)
    taken = delivery.state == DeliveryState.DELIVERED
    if not taken and delivery.error is None:
        sentence = f"not sent within {wait_s:g} s: does a dispatcher run? See: kontext webhook deliveries {webhook_id}"
    else:
        sentence = f"{'taken' if taken else 'not taken'}: {_outcome(delivery)}"
    _tell(describe_delivery(delivery), sentence, as_json)
    return SUCCESS if taken else ERROR


def list_deliveries(webhook_id: str | None, state: DeliveryState | None, limit: int, *, as_json: bool) -> None:
    """The newest deliveries."""
    with open_existing_state(read_settings()) as engine:
        if webhook_id is not None:
            webhooks.find(engine, webhook_id)
        with reading(engine).connect() as connection:
            found = queries.list_deliveries(connection, webhook_id, state=state, limit=limit)
    if as_json:
        typer.echo(json.dumps([describe_delivery(each) for each in found]))
        return
    typer.echo(f"{'delivery':>9} {'webhook':<16} {'event':<16} {'state':<10} {'tries':>5}  outcome")
    for each in found:
        typer.echo(
            f"{each.id:>9} {each.webhook_id:<16} {each.event:<16} {each.state:<10} {each.attempts:>5}  {_outcome(each)}"
        )


def show_delivery(delivery_id: int, *, as_json: bool) -> None:
    """One delivery: its body, and each try."""
    with open_existing_state(read_settings()) as engine:
        delivery, attempts = webhooks.find_delivery(engine, delivery_id)
    if as_json:
        typer.echo(json.dumps(describe_delivery(delivery, attempts)))
        return
    typer.echo(f"delivery {delivery.id} to {delivery.webhook_id}: {delivery.event}, {delivery.state}")
    typer.echo(f"  message  {delivery.message_id}\n  body     {delivery.body}")
    for each in attempts:
        outcome = each.error or f"status {each.status}"
        answer = f": {shorten(each.answer, 120)}" if each.answer else ""
        typer.echo(f"  {each.attempt:>4}  {show_time(each.at)}  {each.latency_s:.3f} s  {outcome}{answer}")


def replay_delivery(delivery_id: int, *, as_json: bool) -> None:
    """Replay, and say so."""
    with open_existing_state(read_settings()) as engine:
        delivery = webhooks.replay(engine, delivery_id)
    _tell(describe_delivery(delivery), f"delivery {delivery_id} is sent once more, as {delivery.message_id}", as_json)


def _outcome(delivery: Delivery) -> str:
    if delivery.latency_s is None:
        return "not tried yet"
    return f"{delivery.error or f'status {delivery.status}'} in {delivery.latency_s:.3f} s"


def _tell(told: dict[str, Any], sentence: str, as_json: bool) -> None:
    typer.echo(json.dumps(told) if as_json else sentence)
