"""Webhooks: list, make, test, rotate, remove; their deliveries, and sending one once more. For administrators alone.

Owns the routes. Secrets, events and URLs are `orchestrator.webhooks`'; a dispatcher sends.
"""

from typing import Annotated, Literal

from fastapi import Path, Query, Response
from pydantic import BaseModel, Field

from orchestrator import webhooks
from orchestrator.api import audit
from orchestrator.api.access import Admin, open_router
from orchestrator.api.batches import Limit
from orchestrator.api.cursors import After, read_cursor, write_cursor
from orchestrator.api.problems import Problem
from orchestrator.api.resources import Open, Resources
from orchestrator.api.shapes import Page
from orchestrator.state import queries
from orchestrator.state.database import reading
from orchestrator.state.transitions import DeliveryState, Event
from orchestrator.telling import delivery_values, webhook_values
from orchestrator.webhooks import NoWebhook

router = open_router(prefix="/v1/webhooks", tags=["webhooks"])
all_deliveries = open_router(prefix="/v1/deliveries", tags=["webhooks"])
WebhookId = Annotated[str, Path(pattern=r"^wh_[0-9a-f]{12}$", examples=["wh_4f1c2a9be077"])]
DeliveryId = Annotated[int, Path(ge=1, lt=2**53, examples=[902])]


class NewWebhook(BaseModel):
    """Who is to hear of what."""

    model_config = {"extra": "forbid"}
    url: str = Field(min_length=1, max_length=2000, examples=["https://shop.example.com/hooks/kontext"])
    events: list[Event] = Field(min_length=1, max_length=20, examples=[["batch.completed", "batch.failed"]])


class WebhookShape(BaseModel):
    """An address that hears of events; its secret cannot be had again."""

    id: str = Field(examples=["wh_4f1c2a9be077"])
    object: Literal["webhook"] = "webhook"
    url: str = Field(description="without what looks like a secret in it")
    events: list[Event]
    created_at: int
    rotated_at: int | None


class WebhookSecret(WebhookShape):
    """A webhook with the secret just made."""

    secret: str = Field(description="shown this once", examples=["whsec_…"])


class DeliveryShape(BaseModel):
    """One message to one webhook; status, latency and error are those of its last try."""

    id: int
    object: Literal["delivery"] = "delivery"
    webhook_id: str
    message_id: str = Field(description="the webhook-id header, the same for all tries and replays")
    event: str = Field(examples=["batch.completed"])
    state: DeliveryState
    attempts: int
    status: int | None = Field(examples=[204])
    latency_s: float | None
    error: str | None
    created_at: int
    next_at: int | None = Field(description="of the next try")
    ended_at: int | None


class TryShape(BaseModel):
    """One try."""

    attempt: int
    at: float
    status: int | None
    latency_s: float
    error: str | None
    answer: str | None = Field(description="the beginning of what came back")


class DeliveryDetail(DeliveryShape):
    """A delivery with its body and its tries."""

    body: str
    log: list[TryShape]


@router.get("", response_model=Page[WebhookShape])
def list_webhooks(_: Admin, opened: Open) -> Page[WebhookShape]:
    """All webhooks, the oldest first."""
    with reading(opened.engine).connect() as connection:
        found = queries.list_webhooks(connection)
    return Page(data=[WebhookShape(**webhook_values(webhook)) for webhook in found], has_more=False)


@router.post("", response_model=WebhookSecret, status_code=201)
def add_webhook(caller: Admin, opened: Open, asked: NewWebhook, response: Response) -> WebhookSecret:
    """Tell an address of events; the secret that messages are signed with is shown this once."""
    noted = audit.line(caller, "webhook.create")
    made = webhooks.add(opened.engine, asked.url, asked.events, opened.settings, note=noted)
    response.headers["location"] = f"/v1/webhooks/{made.webhook.id}"
    return WebhookSecret(**webhook_values(made.webhook), secret=made.secret)


@router.get("/{webhook_id}", response_model=WebhookShape)
def get_webhook(_: Admin, opened: Open, webhook_id: WebhookId) -> WebhookShape:
    """One webhook."""
    return WebhookShape(**webhook_values(webhooks.find(opened.engine, webhook_id)))


@router.delete("/{webhook_id}", status_code=204, response_class=Response)
def remove_webhook(caller: Admin, opened: Open, webhook_id: WebhookId) -> Response:
    """Forget a webhook and its deliveries."""
    webhooks.remove(opened.engine, webhook_id, note=audit.line(caller, "webhook.remove"))
    return Response(status_code=204)


@router.post("/{webhook_id}/rotate-secret", response_model=WebhookSecret)
def rotate_secret(caller: Admin, opened: Open, webhook_id: WebhookId) -> WebhookSecret:
    """Make a new secret, shown this once; the old one signs beside it for a day."""
    made = webhooks.rotate(opened.engine, webhook_id, note=audit.line(caller, "webhook.rotate"))
    return WebhookSecret(**webhook_values(made.webhook), secret=made.secret)


@router.post("/{webhook_id}/test", response_model=DeliveryShape, status_code=202)
def test_webhook(caller: Admin, opened: Open, webhook_id: WebhookId) -> DeliveryShape:
    """Send a message of type webhook.test; a dispatcher sends it in a moment."""
    delivery = webhooks.test(opened.engine, webhook_id, note=audit.line(caller, "webhook.test"))
    return DeliveryShape(**delivery_values(delivery))


@router.get("/{webhook_id}/deliveries", response_model=Page[DeliveryShape])
def list_deliveries(
    _: Admin,
    opened: Open,
    webhook_id: WebhookId,
    state: Annotated[DeliveryState | None, Query()] = None,
    limit: Limit = 50,
    after: After = None,
) -> Page[DeliveryShape]:
    """What was sent to a webhook, the newest first, in pages."""
    webhooks.find(opened.engine, webhook_id)
    return _page_of_deliveries(opened, webhook_id, state, limit, after)


@all_deliveries.get("", response_model=Page[DeliveryShape])
def list_all_deliveries(
    _: Admin,
    opened: Open,
    state: Annotated[DeliveryState | None, Query()] = None,
    limit: Limit = 50,
    after: After = None,
) -> Page[DeliveryShape]:
    """What was sent to all webhooks, the newest first, in pages."""
    return _page_of_deliveries(opened, None, state, limit, after)


@all_deliveries.get("/{delivery_id}", response_model=DeliveryDetail)
def get_any_delivery(_: Admin, opened: Open, delivery_id: DeliveryId) -> DeliveryDetail:
    """One delivery of any webhook, with its body and each try."""
    return _detail(opened, delivery_id)


def _page_of_deliveries(
    opened: Resources, webhook_id: str | None, state: DeliveryState | None, limit: int, after: str | None
) -> Page[DeliveryShape]:
    key = read_cursor(after, int)
    if key is not None and not 0 <= key[0] < 2**53:
        raise Problem(422, "bad_cursor", "after: this cursor is of no page")
    with reading(opened.engine).connect() as connection:
        found = queries.list_deliveries(
            connection, webhook_id, state=state, limit=limit + 1, before=key[0] if key else None
        )
    page, more = found[:limit], len(found) > limit
    return Page(
        data=[DeliveryShape(**delivery_values(each)) for each in page],
        has_more=more,
        next=write_cursor(page[-1].id) if more else None,
    )


@router.get("/{webhook_id}/deliveries/{delivery_id}", response_model=DeliveryDetail)
def get_delivery(_: Admin, opened: Open, webhook_id: WebhookId, delivery_id: DeliveryId) -> DeliveryDetail:
    """One delivery, with its body and each try."""
    _check_delivery(opened, webhook_id, delivery_id)
    return _detail(opened, delivery_id)


@router.post("/{webhook_id}/deliveries/{delivery_id}/replay", response_model=DeliveryShape, status_code=202)
def replay_delivery(caller: Admin, opened: Open, webhook_id: WebhookId, delivery_id: DeliveryId) -> DeliveryShape:
    """Send a message once more, under its old id; a dispatcher sends it in a moment."""
    _check_delivery(opened, webhook_id, delivery_id)
    delivery = webhooks.replay(opened.engine, delivery_id, note=audit.line(caller, "webhook.replay"))
    return DeliveryShape(**delivery_values(delivery))


def _detail(opened: Resources, delivery_id: int) -> DeliveryDetail:
    delivery, attempts = webhooks.find_delivery(opened.engine, delivery_id)
    log = [TryShape(**vars(each)) for each in attempts]
    return DeliveryDetail(**delivery_values(delivery), body=delivery.body, log=log)


def _check_delivery(opened: Resources, webhook_id: str, delivery_id: int) -> None:
    """Raise NoWebhook unless the delivery is one of this webhook's."""
    delivery, _ = webhooks.find_delivery(opened.engine, delivery_id)
    if delivery.webhook_id != webhook_id:
        raise NoWebhook(f"there is no delivery {delivery_id} of webhook {webhook_id}")
