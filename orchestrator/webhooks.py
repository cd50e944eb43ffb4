"""Webhooks: addresses that hear of batches, jobs and schedules, in the form of Standard Webhooks.

Owns who may be told of what, secrets and signatures, and how deliveries read outside. Refuses to send: that is the
deliverer's. A secret is given once, as it is made. A change is noted in its own transaction.
"""

import base64
import binascii
import hmac
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, Engine

from orchestrator.access.audit import Note, unnoted
from orchestrator.redaction import redact_cell
from orchestrator.settings import Settings
from orchestrator.state import queries
from orchestrator.state.database import reading, storable
from orchestrator.state.queries import Delivery, DeliveryAttempt, Webhook
from orchestrator.state.transitions import Event
from orchestrator.storage.outward import OutwardError, check_host, read_url

PREFIX = "whsec_"
SECRET_BYTES = 32


class WebhookError(ValueError):
    """This cannot be asked of webhooks; the message says why. Nothing was changed."""


class NoWebhook(WebhookError):
    """There is no webhook, or no delivery, of that id."""


@dataclass(frozen=True)
class NewSecret:
    """A webhook with its new secret, which nobody can ask for again."""

    webhook: Webhook
    secret: str


def add(engine: Engine, url: str, events: Sequence[str], settings: Settings, *, note: Note = unnoted) -> NewSecret:
    """Store a webhook. Raises WebhookError for a URL that would never be asked, or events there are not."""
    check_url(url, settings)
    webhook_id, secret, wanted = f"wh_{secrets.token_hex(6)}", new_secret(), read_events(events)
    with engine.begin() as connection:
        queries.add_webhook(connection, webhook_id, url, wanted, secret)
        note(connection, webhook_id, url=redact_cell(url), events=wanted)
        return NewSecret(_find(connection, webhook_id), secret)


def check_url(url: str, settings: Settings) -> None:
    """Raise WebhookError unless it is https, without a password, to a host that is allowed.

    Whether its addresses are public is seen at each delivery anew.
    """
    try:
        if storable(url) != url:
            raise OutwardError("url_invalid", "longer than 2,000 characters, or no text")
        check_host(read_url(url).hostname or "", settings.webhook_hosts, "KONTEXT_WEBHOOK_HOSTS")
    except OutwardError as error:
        raise WebhookError(f"{redact_cell(url[:300])}: {error.message}") from None


def read_events(names: Sequence[str]) -> list[str]:
    """Events by their names, each once. Raises WebhookError."""
    unknown = [name for name in names if name not in set(Event)]
    if unknown or not names:
        told = f"{unknown[0][:80]!r} is no event" if unknown else "no event is named"
        raise WebhookError(f"{told}; events: {', '.join(Event)}")
    return [event.value for event in Event if event in names]


def rotate(engine: Engine, webhook_id: str, *, note: Note = unnoted) -> NewSecret:
    """Give a webhook a new secret; for a day messages are signed with both. Raises NoWebhook."""
    secret = new_secret()
    with engine.begin() as connection:
        queries.rotate_secret(connection, webhook_id, secret)
        note(connection, webhook_id)
        return NewSecret(_find(connection, webhook_id), secret)


def remove(engine: Engine, webhook_id: str, *, note: Note = unnoted) -> None:
    """Forget a webhook and its deliveries. Raises NoWebhook."""
    with engine.begin() as connection:
        _find(connection, webhook_id)
        queries.remove_webhook(connection, webhook_id)
        note(connection, webhook_id)


def test(engine: Engine, webhook_id: str, *, note: Note = unnoted) -> Delivery:
    """Send a message of type `webhook.test`, as any other is sent. Raises NoWebhook."""
    with engine.begin() as connection:
        _find(connection, webhook_id)
        delivery = _find_delivery(connection, queries.tell_test(connection, webhook_id))
        note(connection, webhook_id, delivery=delivery.id)
        return delivery


def replay(engine: Engine, delivery_id: int, *, note: Note = unnoted) -> Delivery:
    """Send a message once more, under its old id. Raises NoWebhook."""
    with engine.begin() as connection:
        queries.replay_delivery(connection, delivery_id)
        delivery = _find_delivery(connection, delivery_id)
        note(connection, delivery.webhook_id, delivery=delivery_id)
        return delivery


def find(engine: Engine, webhook_id: str) -> Webhook:
    """One webhook. Raises NoWebhook."""
    with reading(engine).connect() as connection:
        return _find(connection, webhook_id)


def find_delivery(engine: Engine, delivery_id: int) -> tuple[Delivery, list[DeliveryAttempt]]:
    """One delivery with its tries. Raises NoWebhook."""
    with reading(engine).connect() as connection:
        return _find_delivery(connection, delivery_id), queries.list_delivery_attempts(connection, delivery_id)


def new_secret() -> str:
    """A secret as Standard Webhooks writes it: 32 random bytes in base64."""
    return PREFIX + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()


def sign(secret: str, message_id: str, timestamp_s: int, body: str) -> str:
    """The signature of a message: HMAC-SHA256 over `id.timestamp.body`, as `v1,<base64>`.

    Raises ValueError for what is no secret.
    """
    try:
        key = base64.b64decode(secret.removeprefix(PREFIX), validate=True)
    except binascii.Error as error:
        raise ValueError("a webhook's secret is whsec_ and base64") from error
    digest = hmac.digest(key, f"{message_id}.{timestamp_s}.{body}".encode(), "sha256")
    return f"v1,{base64.b64encode(digest).decode()}"


def _find(connection: Connection, webhook_id: str) -> Webhook:
    found = queries.read_webhook(connection, webhook_id)
    if found is None:
        raise NoWebhook(f"there is no webhook {webhook_id[:80]!r}; see: kontext webhook list")
    return found


def _find_delivery(connection: Connection, delivery_id: int) -> Delivery:
    found = queries.read_delivery(connection, delivery_id)
    if found is None:
        raise NoWebhook(f"there is no delivery {delivery_id}; see: kontext webhook deliveries")
    return found
