"""What a client asks beside batches: presets, workers, keys, schedules, webhooks. One method a route."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from typing import Any, Generic, TypeVar
from urllib.parse import quote

from pydantic import BaseModel

from orchestrator.access.scopes import Scope
from orchestrator.client.errors import ApiError
from orchestrator.client.shapes import (
    Caller,
    Delivery,
    Key,
    NewKey,
    Plan,
    Preset,
    Run,
    Schedule,
    Webhook,
    WebhookSecret,
    Worker,
)
from orchestrator.client.transport import Transport

T = TypeVar("T")
PAGE_ENTRIES = 1000


class _Page(BaseModel, Generic[T]):
    data: list[T]
    has_more: bool
    next: str | None = None


class Administration:
    """The part of a client that is about the server itself."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def caller(self) -> Caller:
        """Whose key this is, and what it may do."""
        found: Caller = self._transport.read(Caller, "GET", "/v1/caller")
        return found

    def readiness(self) -> Mapping[str, Any]:
        """Whether the server is ready, and what it says of its database and broker; needs no key."""
        found: Mapping[str, Any] = self._transport.read(
            dict[str, Any], "GET", "/readyz", allowed=frozenset({503}), patience_s=0.0
        )
        return found

    def presets(self) -> list[Preset]:
        """The edits that the server knows by name."""
        return list(self._pages(Preset, "/v1/presets"))

    def workers(self) -> list[Worker]:
        """The workers that live."""
        return list(self._pages(Worker, "/v1/workers"))

    def keys(self) -> list[Key]:
        """The newest keys, revoked ones included."""
        return list(self._pages(Key, "/v1/keys"))

    def add_key(self, name: str, scope: Scope) -> NewKey:
        """Make a key."""
        made: NewKey = self._transport.read(NewKey, "POST", "/v1/keys", json={"name": name, "scope": scope})
        return made

    def revoke_key(self, key_id: str) -> bool:
        """End a key; False when it had been ended before. Raises ApiError 404 when there is none."""
        before = next((key for key in self.keys() if key.id == key_id), None)
        self._transport.call("DELETE", path_of("/v1/keys", key_id))
        return before is None or before.revoked_at is None

    def schedules(self) -> list[Schedule]:
        """All schedules by name, each with its last run."""
        return list(self._pages(Schedule, "/v1/schedules"))

    def schedule(self, name: str) -> Schedule:
        """One schedule, with its next fire times."""
        found: Schedule = self._transport.read(Schedule, "GET", path_of("/v1/schedules", name))
        return found

    def runs(self, name: str, limit: int) -> list[Run]:
        """The latest runs of a schedule."""
        return list(islice(self._pages(Run, path_of("/v1/schedules", name, "runs"), page=limit), limit))

    def add_schedule(self, plan: Plan) -> Schedule:
        """Make a schedule."""
        made: Schedule = self._transport.read(Schedule, "POST", "/v1/schedules", json=asdict(plan))
        return made

    def pause_schedule(self, name: str) -> Schedule:
        """Fire no more until it is resumed."""
        return self._change_schedule(name, paused=True)

    def resume_schedule(self, name: str) -> Schedule:
        """Fire again from now on."""
        return self._change_schedule(name, paused=False)

    def remove_schedule(self, name: str) -> None:
        """Forget a schedule and its runs."""
        self._transport.call("DELETE", path_of("/v1/schedules", name))

    def fire_schedule(self, name: str) -> Run:
        """Run a schedule now."""
        run: Run = self._transport.read(Run, "POST", path_of("/v1/schedules", name, "fire"))
        return run

    def webhooks(self) -> list[Webhook]:
        """All webhooks, the oldest first."""
        return list(self._pages(Webhook, "/v1/webhooks"))

    def add_webhook(self, url: str, events: Sequence[str]) -> WebhookSecret:
        """Tell an address of events."""
        body = {"url": url, "events": list(events)}
        made: WebhookSecret = self._transport.read(WebhookSecret, "POST", "/v1/webhooks", json=body)
        return made

    def rotate_webhook(self, webhook_id: str) -> WebhookSecret:
        """Give a webhook a new secret."""
        path = path_of("/v1/webhooks", webhook_id, "rotate-secret")
        made: WebhookSecret = self._transport.read(WebhookSecret, "POST", path)
        return made

    def remove_webhook(self, webhook_id: str) -> None:
        """Forget a webhook and its deliveries."""
        self._transport.call("DELETE", path_of("/v1/webhooks", webhook_id))

    def test_webhook(self, webhook_id: str) -> Delivery:
        """Send a message of type `webhook.test`; a dispatcher sends it in a moment."""
        made: Delivery = self._transport.read(Delivery, "POST", path_of("/v1/webhooks", webhook_id, "test"))
        return made

    def deliveries(self, webhook_id: str | None, state: str | None, limit: int) -> list[Delivery]:
        """The newest deliveries, of one webhook or of all."""
        path = "/v1/deliveries" if webhook_id is None else path_of("/v1/webhooks", webhook_id, "deliveries")
        params = {} if state is None else {"state": state}
        return list(islice(self._pages(Delivery, path, page=limit, **params), limit))

    def delivery(self, delivery_id: int) -> Delivery:
        """One delivery, with its body and its tries."""
        found: Delivery = self._transport.read(Delivery, "GET", f"/v1/deliveries/{delivery_id}")
        return found

    def replay(self, delivery_id: int) -> Delivery:
        """Send a message once more, under its old id."""
        webhook_id = self.delivery(delivery_id).webhook_id
        path = path_of("/v1/webhooks", webhook_id, "deliveries", str(delivery_id), "replay")
        made: Delivery = self._transport.read(Delivery, "POST", path)
        return made

    def _change_schedule(self, name: str, **values: Any) -> Schedule:
        changed: Schedule = self._transport.read(Schedule, "PATCH", path_of("/v1/schedules", name), json=values)
        return changed

    def _pages(self, kind: Any, path: str, *, page: int = PAGE_ENTRIES, **params: Any) -> Iterator[Any]:
        """Every entry of a list, page by page."""
        asked = {**params, "limit": min(page, PAGE_ENTRIES)}
        while True:
            found = self._transport.read(_Page[kind], "GET", path, params=asked)
            yield from found.data
            if not found.has_more:
                return
            asked["after"] = found.next


def path_of(*parts: str) -> str:
    """A path whose parts cannot lead elsewhere. Raises ApiError for one that is no name of anything."""
    for part in parts[1:]:
        if part in ("", ".", ".."):
            raise ApiError(f"{part!r} is no name", where=parts[0], code="not_found", status=404)
    return "/".join([parts[0], *(quote(part, safe="") for part in parts[1:])])
