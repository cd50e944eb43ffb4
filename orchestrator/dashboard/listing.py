"""What lists on pages are made of: tabs that filter, links to the pages before and after, a batch as a row. Pure."""

from dataclasses import dataclass

from orchestrator.dashboard.wording import last_part
from orchestrator.redaction import redact
from orchestrator.state.queries import Batch, BatchCounts


@dataclass(frozen=True)
class Tab:
    """A link that sets one filter and keeps the others."""

    name: str
    href: str
    current: bool
    count: int | None = None
    key: str = ""


@dataclass(frozen=True)
class Pages:
    """Where the pages before and after a list's are; by key, so that a page costs the same at any depth."""

    previous: str = ""
    next: str = ""
    previous_label: str = "First page"


@dataclass(frozen=True)
class BatchRow:
    """A batch as lists show it."""

    id: str
    name: str
    status: str
    reason: str | None
    counts: BatchCounts
    created_at: float
    ended_at: float | None
    eta_s: float | None = None


def batch_row(batch: Batch, counts: BatchCounts) -> BatchRow:
    """A batch as lists show it; its texts without secrets."""
    return BatchRow(
        batch.id, last_part(redact(batch.catalogue)), batch.status, redact(batch.reason or "") or None, counts,
        batch.created_at, batch.ended_at,
    )  # fmt: skip
