"""The audit log: a line for each change, written in the change's own transaction, so that neither is without the other.

Owns the line. The rooms that change something take a `Note` and call it where they commit; they know no callers.
"""

from typing import Any, Protocol

from sqlalchemy import Connection

from orchestrator.state import queries


class Note(Protocol):
    """Notes a change of `target` in the transaction that makes it. `jobs` is how many the transaction changed."""

    def __call__(self, connection: Connection, target: str, *, jobs: int | None = None, **detail: Any) -> None: ...


def unnoted(connection: Connection, target: str, *, jobs: int | None = None, **detail: Any) -> None:
    """Note nothing: who has the database itself needs no key, and leaves no line."""


class AuditLine:
    """The line of one change. One that is made in several transactions has its line from the first of them.

    Each further one sets what it tells anew, and its `jobs` are added: the line always tells what was committed.
    """

    def __init__(self, caller: str, action: str, **detail: Any) -> None:
        """`caller` is `key:…` or the like, `action` `batch.pause` or its like; `detail` is JSON without secrets."""
        self._caller, self._action, self._detail = caller, action, detail
        self._id: int | None = None

    def __call__(self, connection: Connection, target: str, *, jobs: int | None = None, **detail: Any) -> None:
        self._detail |= detail
        if jobs is not None:
            self._detail["jobs"] = self._detail.get("jobs", 0) + jobs
        if self._id is None or not queries.amend_audit(connection, self._id, self._detail):
            self._id = queries.record_audit(
                connection, caller=self._caller, action=self._action, target=target, detail=self._detail
            )
