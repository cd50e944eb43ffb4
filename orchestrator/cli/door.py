"""The one door of the commands: what they ask of a server or of this machine's own database, in the same words.

Owns `--server` and `--key`, and which of the two answers. Refuses to print a key, and to send one in clear without a
word.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer

from orchestrator.access.scopes import Scope
from orchestrator.cli.failures import CallError
from orchestrator.state.transitions import DeliveryState, JobState

if TYPE_CHECKING:  # a command that does not speak to a server does not load what does
    from orchestrator.client import Client
    from orchestrator.client.shapes import (
        Batch,
        Change,
        Delivery,
        Job,
        Key,
        NewKey,
        Plan,
        Run,
        Schedule,
        Webhook,
        WebhookSecret,
        Worker,
    )

SHORT_PATIENCE_S = 5.0
"""For a person who waits at a terminal; what takes long anyway has more."""
SERVER, KEY = "KONTEXT_SERVER", "KONTEXT_API_KEY"
_Server = Annotated[
    str | None,
    typer.Option("--server", metavar="URL", envvar=SERVER, help="Speak to that server, instead of this machine."),
]
_Key = Annotated[
    str | None,
    typer.Option("--key", metavar="KEY", envvar=KEY, help="An API key there; as an argument others see it, in `ps`."),
]


@dataclass(frozen=True)
class At:
    """Where a command is to be done: at a server, or here, where none is named."""

    server: str | None = None
    key: str | None = field(default=None, repr=False)

    @property
    def here(self) -> bool:
        """Whether it is to be done on this machine."""
        return self.server is None


class Door(Protocol):
    """What commands ask. The client is one of them; the other reads and writes SQL."""

    def batches(self, limit: int) -> Iterator[Batch]:
        """The newest batches."""

    def batch(self, batch_id: str) -> Batch:
        """One batch, with its errors and what its stages took."""

    def jobs(self, batch_id: str, states: Sequence[JobState]) -> Iterator[Job]:
        """A batch's jobs in the catalogue's order."""

    def pause(self, batch_id: str) -> Change:
        """Claim nothing more of a batch."""

    def resume(self, batch_id: str) -> Change:
        """Go on with a paused batch."""

    def cancel(self, batch_id: str) -> Change:
        """End a batch early."""

    def set_priority(self, batch_id: str, priority: int) -> Change:
        """Change a batch's urgency."""

    def retry(self, batch_id: str, states: Sequence[JobState], codes: Sequence[str], lines: Sequence[int]) -> Change:
        """Try ended jobs again."""

    def picture(self, job: Job) -> bytes:
        """The picture of a succeeded job."""

    def save_manifest(self, batch_id: str, target: Path) -> None:
        """The manifest as it stands now, into a file whose name ends in .jsonl or .csv."""

    def workers(self) -> list[Worker]:
        """The workers that live."""

    def keys(self) -> list[Key]:
        """The newest keys."""

    def add_key(self, name: str, scope: Scope) -> NewKey:
        """Make a key."""

    def revoke_key(self, key_id: str) -> bool:
        """End a key; False when it had been ended before."""

    def schedules(self) -> list[Schedule]:
        """All schedules, each with its last run."""

    def schedule(self, name: str) -> Schedule:
        """One schedule, with its next fire times."""

    def runs(self, name: str, limit: int) -> list[Run]:
        """The latest runs of a schedule."""

    def add_schedule(self, plan: Plan) -> Schedule:
        """Make a schedule."""

    def pause_schedule(self, name: str) -> Schedule:
        """Fire no more."""

    def resume_schedule(self, name: str) -> Schedule:
        """Fire again from now on."""

    def remove_schedule(self, name: str) -> None:
        """Forget a schedule."""

    def fire_schedule(self, name: str) -> Run:
        """Run a schedule now."""

    def webhooks(self) -> list[Webhook]:
        """All webhooks."""

    def add_webhook(self, url: str, events: Sequence[str]) -> WebhookSecret:
        """Tell an address of events."""

    def rotate_webhook(self, webhook_id: str) -> WebhookSecret:
        """Give a webhook a new secret."""

    def remove_webhook(self, webhook_id: str) -> None:
        """Forget a webhook."""

    def test_webhook(self, webhook_id: str) -> Delivery:
        """Send a test message."""

    def deliveries(self, webhook_id: str | None, state: DeliveryState | None, limit: int) -> list[Delivery]:
        """The newest deliveries, of one webhook or of all."""

    def delivery(self, delivery_id: int) -> Delivery:
        """One delivery, with its body and its tries."""

    def replay(self, delivery_id: int) -> Delivery:
        """Send a message once more."""


def somewhere(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options `--server` and `--key`; it takes what they name as its parameter `at`."""
    options = {"server": _Server, "key": _Key}
    signature = inspect.signature(command)
    kept = [parameter for name, parameter in signature.parameters.items() if name != "at"]
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind)
        for name, kind in options.items()
    ]

    @functools.wraps(command)
    def call(*args: Any, server: str | None = None, key: str | None = None, **given: Any) -> Any:
        return command(*args, at=At(server or None, key or None), **given)

    call.__signature__ = signature.replace(parameters=[*kept, *added])  # type: ignore[attr-defined]
    call.__annotations__ = {name: kind for name, kind in command.__annotations__.items() if name != "at"} | options
    del call.__wrapped__
    return call


@contextmanager
def open_door(at: At, *, making: bool = False) -> Iterator[Door]:
    """The door, for the length of the block. `making`: here, a database is made where there is none yet.

    Raises CallError.
    """
    if at.here:
        from orchestrator.cli.local import open_local

        with open_local(making=making) as local:
            yield local
    else:
        with open_client(at) as client:
            yield client


@contextmanager
def open_client(at: At) -> Iterator[Client]:
    """The client of a server. Raises CallError without a key."""
    from orchestrator.client import Client
    from orchestrator.client.transport import is_loopback

    assert at.server is not None
    if at.key is None:
        raise CallError(f"{at.server} wants a key: set {KEY}, or pass --key; there, `kontext key add NAME` makes one")
    with Client(at.server, at.key, patience_s=SHORT_PATIENCE_S) as client:
        if client.server.startswith("http://") and not is_loopback(client.server):
            typer.echo(f"warning: {client.server} is not https://; the key can be read on the way", err=True)
        yield client
