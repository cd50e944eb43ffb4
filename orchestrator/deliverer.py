"""The deliverer: what lies in the outbox is sent, at least once, until somebody takes it or a day is over.

Owns back-off, the log of tries and what an answer means: any 2xx is taken, all else is tried again, redirects are not
followed. Any number may run. Each webhook has one lane of its own, a thread, so that a slow one holds up no other;
where there are more webhooks than lanes they take turns. Refuses to send on the dispatcher's loop.
"""

import math
import random
import threading
import time
from importlib.metadata import version

import structlog
import urllib3
from sqlalchemy import Engine

from orchestrator.settings import Settings
from orchestrator.state import queries
from orchestrator.state.database import DATABASE_AWAY, reading
from orchestrator.state.queries import ClaimedDelivery
from orchestrator.state.transitions import DeliveryState
from orchestrator.storage.outward import OutwardError, ask, check_host, read_url
from orchestrator.webhooks import sign

INTERVAL_S = 0.5
LANES = 16
# Where others wait for a lane, one is given up after so long, and after a message that was not taken.
TURN_S = 2.0
TIMEOUT_S = 15.0
# Well above the timeout: only a process that died lets it run out.
LEASE_S = 60.0
# After 5, 20, 80, 320 seconds, …, then every two hours: 18 tries in a day.
FIRST_DELAY_S, GROWTH, LONGEST_DELAY_S = 5.0, 4, 7_200.0
JITTER = 0.25
ANSWER_BYTES, ANSWER_CHARACTERS = 2_048, 300
AGENT = f"kontext-batch/{version('kontext-batch')}"
log = structlog.get_logger("deliverer")


class Deliverer:
    """`tick` looks at most twice a second whether something is due, however often it is called."""

    def __init__(self, engine: Engine, settings: Settings) -> None:
        self._engine, self._settings = engine, settings
        self._stopping = threading.Event()
        self._lanes: dict[str, threading.Thread] = {}
        self._served_s: dict[str, float] = {}  # when each began its last turn
        self._crowded = False
        self._next_s = 0.0

    def tick(self) -> None:
        """Open a lane for each webhook that has something due."""
        if time.monotonic() < self._next_s or self._stopping.is_set():
            return
        self._next_s = time.monotonic() + INTERVAL_S
        self._lanes = {webhook_id: lane for webhook_id, lane in self._lanes.items() if lane.is_alive()}
        with reading(self._engine).connect() as connection:
            due = queries.due_webhooks(connection)
        # By their turns, not by how long their messages wait: those of a dead one wait longest, time and again.
        known = {*due, *self._lanes}
        self._served_s = {webhook_id: at_s for webhook_id, at_s in self._served_s.items() if webhook_id in known}
        waiting = [webhook_id for webhook_id in due if webhook_id not in self._lanes]
        waiting.sort(key=lambda webhook_id: self._served_s.get(webhook_id, -math.inf))
        free = LANES - len(self._lanes)
        self._crowded = len(waiting) > free
        for webhook_id in waiting[:free]:
            self._served_s[webhook_id] = time.monotonic()
            lane = threading.Thread(target=self._serve, args=(webhook_id,), name=f"to-{webhook_id}", daemon=True)
            self._lanes[webhook_id] = lane
            lane.start()

    def stop(self, timeout_s: float | None = None) -> None:
        """Begin no more; waits so long at most for what is being sent."""
        self._stopping.set()
        self.wait(timeout_s)

    def wait(self, timeout_s: float | None = None) -> None:
        """Wait until the lanes are empty."""
        until_s = None if timeout_s is None else time.monotonic() + timeout_s
        for lane in self._lanes.values():
            lane.join(None if until_s is None else max(0.0, until_s - time.monotonic()))

    def _serve(self, webhook_id: str) -> None:
        """Send what is due, one after the other, or as much of it as its turn allows."""
        until_s = time.monotonic() + TURN_S
        try:
            while not self._stopping.is_set():
                with self._engine.begin() as connection:
                    claimed = queries.claim_delivery(connection, webhook_id, LEASE_S)
                if claimed is None:
                    return
                taken = self._deliver(webhook_id, claimed)
                if self._crowded and (not taken or time.monotonic() >= until_s):
                    return
        except DATABASE_AWAY as error:  # its lease runs out, and it is sent again
            log.warning("delivery left alone", webhook=webhook_id, error=str(error).partition("\n")[0])

    def _deliver(self, webhook_id: str, claimed: ClaimedDelivery) -> bool:
        """Send one message and note how that went; gives whether it was taken."""
        began_s = time.monotonic()
        status, error, answer = send(claimed, self._settings)
        latency_s = time.monotonic() - began_s
        with self._engine.begin() as connection:
            state = queries.end_delivery(
                connection, claimed, status=status, latency_s=latency_s, error=error, answer=answer,
                delay_s=back_off_s(claimed.tries),
            )  # fmt: skip
        if error is not None:
            more = "given up" if state == DeliveryState.FAILED else "tried again"
            log.warning("webhook not taken", webhook=webhook_id, delivery=claimed.id, error=error, then=more)
        return error is None


def send(claimed: ClaimedDelivery, settings: Settings) -> tuple[int | None, str | None, str | None]:
    """Send one message: (status, what went wrong or None, the beginning of the answer)."""
    timestamp_s = int(claimed.at)
    signatures = [sign(secret, claimed.message_id, timestamp_s, claimed.body) for secret in claimed.secrets]
    headers = {
        "Content-Type": "application/json",
        "User-Agent": AGENT,
        "Accept-Encoding": "identity",
        "webhook-id": claimed.message_id,
        "webhook-timestamp": str(timestamp_s),
        "webhook-signature": " ".join(signatures),
    }
    try:
        parts = read_url(claimed.url)
        check_host(parts.hostname or "", settings.webhook_hosts, "KONTEXT_WEBHOOK_HOSTS")
        with ask("POST", parts, headers, TIMEOUT_S, claimed.body.encode()) as response:
            return (response.status, _judge(response.status), _begin(response))
    except OutwardError as error:
        return None, f"{error.code}: {error.message}", None


def back_off_s(tries: int) -> float:
    """Seconds until the next try, after so many, with jitter."""
    delay_s = min(FIRST_DELAY_S * math.pow(GROWTH, min(tries - 1, 20)), LONGEST_DELAY_S)
    return delay_s * random.uniform(1 - JITTER, 1 + JITTER)


def _judge(status: int) -> str | None:
    if 200 <= status < 300:
        return None
    return f"status {status}" + ("; redirects are not followed" if 300 <= status < 400 else "")


def _begin(response: urllib3.BaseHTTPResponse) -> str:
    """The first characters of what came back, for the log: the rest is not read."""
    return response.read(ANSWER_BYTES).decode("utf-8", "replace")[:ANSWER_CHARACTERS]
