"""Webhooks and their deliveries, statement by statement.

A delivery is claimed by moving its time past a lease and raising its attempts: what is written about a try names them,
so that one that took too long changes nothing.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields

from sqlalchemy import Connection, Double, RowMapping, and_, case, delete, func, insert, literal, select, update

from orchestrator.state.database import now, tellable
from orchestrator.state.queries.outbox import TEST_EVENT, tell
from orchestrator.state.tables import PENDING_DELIVERY, deliveries, delivery_attempts, webhooks
from orchestrator.state.transitions import DeliveryState

DAY_S = 86_400.0


@dataclass(frozen=True)
class Webhook:
    """An address that hears of events. Its secret stays in SQL."""

    id: str
    url: str
    events: tuple[str, ...]
    created_at: float
    rotated_at: float | None


@dataclass(frozen=True)
class Delivery:
    """One message to one webhook; `status`, `latency_s` (seconds) and `error` are those of the last try."""

    id: int
    webhook_id: str
    message_id: str
    event: str
    body: str
    state: DeliveryState
    attempts: int
    created_at: float
    next_at: float
    ended_at: float | None
    status: int | None
    latency_s: float | None
    error: str | None


@dataclass(frozen=True)
class DeliveryAttempt:
    """One try. `answer` is the beginning of what came back, without secrets."""

    attempt: int
    at: float
    status: int | None
    latency_s: float
    error: str | None
    answer: str | None


@dataclass(frozen=True)
class ClaimedDelivery:
    """A message to be sent now; `at` is the database's clock, in seconds since the epoch.

    `attempt` is the fencing token; `tries` counts this try and those before it since the message's day began.
    """

    id: int
    attempt: int
    tries: int
    message_id: str
    body: str
    url: str
    secrets: tuple[str, ...]
    at: float


def add_webhook(connection: Connection, webhook_id: str, url: str, events: Sequence[str], secret: str) -> None:
    """Store a new webhook."""
    connection.execute(
        insert(webhooks).values(id=webhook_id, url=url, events=json.dumps(events), secret=secret, created_at=now())
    )


def read_webhook(connection: Connection, webhook_id: str) -> Webhook | None:
    """One webhook, or None."""
    row = connection.execute(select(webhooks).where(webhooks.c.id == webhook_id)).mappings().one_or_none()
    return None if row is None else _webhook(row)


def list_webhooks(connection: Connection) -> list[Webhook]:
    """All webhooks, the oldest first."""
    statement = select(webhooks).order_by(webhooks.c.created_at, webhooks.c.id)
    return [_webhook(row) for row in connection.execute(statement).mappings()]


def remove_webhook(connection: Connection, webhook_id: str) -> bool:
    """Forget a webhook with its deliveries. False when there is none of that id."""
    return connection.execute(delete(webhooks).where(webhooks.c.id == webhook_id)).rowcount == 1


def rotate_secret(connection: Connection, webhook_id: str, secret: str) -> bool:
    """Give a webhook a new secret; the old one signs beside it for a day. False when there is none of that id."""
    statement = update(webhooks).where(webhooks.c.id == webhook_id)
    values = {"secret": secret, "secret_before": webhooks.c.secret, "rotated_at": now()}
    return connection.execute(statement.values(**values)).rowcount == 1


def tell_test(connection: Connection, webhook_id: str) -> int:
    """Put a test message for one webhook into the outbox; gives the delivery's id."""
    (message_id,) = tell(connection, TEST_EVENT, [webhook_id], [{"webhook": webhook_id}])
    statement = select(deliveries.c.id).where(deliveries.c.message_id == message_id)
    delivery_id: int = connection.execute(statement).scalar_one()
    return delivery_id


def read_delivery(connection: Connection, delivery_id: int) -> Delivery | None:
    """One delivery, or None."""
    row = connection.execute(select(deliveries).where(deliveries.c.id == delivery_id)).mappings().one_or_none()
    return None if row is None else _delivery(row)


def list_deliveries(
    connection: Connection,
    webhook_id: str | None = None,
    *,
    state: DeliveryState | None = None,
    limit: int,
    before: int | None = None,
) -> list[Delivery]:
    """Deliveries to a webhook, or to all, the newest first; `before` is the id of the last one of the page before."""
    statement = select(deliveries).order_by(deliveries.c.id.desc()).limit(limit)
    if webhook_id is not None:
        statement = statement.where(deliveries.c.webhook_id == webhook_id)
    if state is not None:
        statement = statement.where(deliveries.c.state == state)
    if before is not None:
        statement = statement.where(deliveries.c.id < before)
    return [_delivery(row) for row in connection.execute(statement).mappings()]


def list_delivery_attempts(connection: Connection, delivery_id: int) -> list[DeliveryAttempt]:
    """The tries of a delivery, in their order."""
    columns = [delivery_attempts.c[field.name] for field in fields(DeliveryAttempt)]
    statement = select(*columns).where(delivery_attempts.c.delivery_id == delivery_id)
    return [DeliveryAttempt(*row) for row in connection.execute(statement.order_by(delivery_attempts.c.id))]


def replay_delivery(connection: Connection, delivery_id: int) -> bool:
    """Send a message once more, under its old id; its day begins anew. False when there is none of that id."""
    statement = (
        update(deliveries)
        .where(deliveries.c.id == delivery_id)
        .values(state=DeliveryState.PENDING, since=now(), next_at=now(), ended_at=None, tries=0)
    )
    return connection.execute(statement).rowcount == 1


def due_webhooks(connection: Connection) -> list[str]:
    """Ids of the webhooks that have a message to be sent now, the one first whose message waits longest."""
    waits = (
        select(func.min(deliveries.c.next_at))
        .where(deliveries.c.webhook_id == webhooks.c.id, PENDING_DELIVERY)
        .scalar_subquery()
    )
    due = select(webhooks.c.id, waits.label("next_at")).subquery()
    statement = select(due.c.id).where(due.c.next_at <= now()).order_by(due.c.next_at, due.c.id)
    return list(connection.execute(statement).scalars())


def claim_delivery(connection: Connection, webhook_id: str, lease_s: float) -> ClaimedDelivery | None:
    """Take the message of a webhook that waits longest; None when none is due. After the lease others take it again."""
    chosen = (
        select(deliveries.c.id)
        .where(deliveries.c.webhook_id == webhook_id, PENDING_DELIVERY, deliveries.c.next_at <= now())
        .order_by(deliveries.c.next_at, deliveries.c.id)
        .limit(1)
        .with_for_update(skip_locked=True)
        .cte("chosen")
        .prefix_with("MATERIALIZED")
    )
    statement = (
        update(deliveries)
        .where(deliveries.c.id.in_(select(chosen.c.id)))
        .values(
            next_at=now() + literal(lease_s, Double), attempts=deliveries.c.attempts + 1, tries=deliveries.c.tries + 1
        )
        .returning(
            deliveries.c.id, deliveries.c.attempts, deliveries.c.tries, deliveries.c.message_id, deliveries.c.body
        )
    )
    row = connection.execute(statement).one_or_none()
    if row is None:
        return None
    fresh = and_(webhooks.c.secret_before.is_not(None), webhooks.c.rotated_at > now() - literal(DAY_S, Double))
    before = case((fresh, webhooks.c.secret_before), else_=None)
    asked = select(webhooks.c.url, webhooks.c.secret, before, now()).where(webhooks.c.id == webhook_id)
    url, secret, secret_before, at_s = connection.execute(asked).one()
    signing = tuple(each for each in (secret, secret_before) if each is not None)
    return ClaimedDelivery(row.id, row.attempts, row.tries, row.message_id, row.body, url, signing, at_s)


def end_delivery(
    connection: Connection,
    claimed: ClaimedDelivery,
    *,
    status: int | None,
    latency_s: float,
    error: str | None,
    answer: str | None,
    delay_s: float,
) -> DeliveryState | None:
    """Note how a try went: without an error it is delivered, else tried again after `delay_s` within its day.

    Gives how it stands now; None when the try took longer than its lease, and somebody else has taken it.
    """
    again = and_(literal(error is not None), now() + literal(delay_s, Double) <= deliveries.c.since + DAY_S)
    state = case((again, DeliveryState.PENDING), else_=DeliveryState.FAILED if error else DeliveryState.DELIVERED)
    error = error and tellable(error)
    statement = (
        update(deliveries)
        .where(deliveries.c.id == claimed.id, deliveries.c.attempts == claimed.attempt, PENDING_DELIVERY)
        .values(
            state=state, next_at=now() + literal(delay_s, Double), ended_at=case((again, None), else_=now()),
            status=status, latency_s=latency_s, error=error,
        )
        .returning(deliveries.c.state)
    )  # fmt: skip
    row = connection.execute(statement).one_or_none()
    noted = {"delivery_id": claimed.id, "attempt": claimed.attempt, "at": claimed.at}
    if read_delivery(connection, claimed.id) is not None:
        connection.execute(
            insert(delivery_attempts).values(
                **noted, status=status, latency_s=latency_s, error=error, answer=answer and tellable(answer)
            )
        )
    return None if row is None else DeliveryState(row.state)


def prune_deliveries(connection: Connection, older_than_s: float, limit: int) -> int:
    """Forget deliveries that ended so long ago; gives how many."""
    old = (
        select(deliveries.c.id)
        .where(deliveries.c.ended_at < now() - literal(older_than_s, Double))
        .order_by(deliveries.c.id)
        .limit(limit)
    )
    return connection.execute(delete(deliveries).where(deliveries.c.id.in_(old))).rowcount


def _webhook(row: RowMapping) -> Webhook:
    return Webhook(row["id"], row["url"], tuple(json.loads(row["events"])), row["created_at"], row["rotated_at"])


def _delivery(row: RowMapping) -> Delivery:
    values = {field.name: row[field.name] for field in fields(Delivery)}
    return Delivery(**values | {"state": DeliveryState(row["state"])})
