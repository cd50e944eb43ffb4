"""What a server tells, as frozen dataclasses: the words of the API, in types. Times are seconds since the epoch.

Refuses nothing: fields that a newer server adds are left out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from pydantic import TypeAdapter

from orchestrator.access.scopes import Scope
from orchestrator.state.transitions import (
    BatchStatus,
    Decision,
    DeliveryState,
    JobState,
    Missed,
    Overlap,
    RunState,
    Stage,
)

MOVING = frozenset({BatchStatus.INGESTING, BatchStatus.RUNNING, BatchStatus.CANCELLING})


@dataclass(frozen=True)
class Counts:
    """Jobs by state; the six always sum to `total`. `reused` is a part of `succeeded`."""

    total: int
    pending: int = 0
    queued: int = 0
    running: int = 0
    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0
    reused: int = 0

    @property
    def ended(self) -> int:
        """Jobs that will not move again by themselves."""
        return self.succeeded + self.failed + self.cancelled


@dataclass(frozen=True)
class Failure:
    """Failed jobs of one code, with one of their messages."""

    code: str
    count: int
    message: str | None = None


@dataclass(frozen=True)
class Batch:
    """One catalogue with what was asked of it, and how it stands.

    `errors` and `stage_seconds` are told of a single batch alone. `results` and `manifest` are places as the server
    names them.
    """

    id: str
    status: BatchStatus
    reason: str | None
    request_counts: Counts
    created_at: int
    priority: int
    catalogue: str
    options: Mapping[str, Any]
    checkpoint: str
    checkpoint_revision: str
    numerics: str
    results: str
    manifest: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    in_progress_at: int | None = None
    completed_at: int | None = None
    cancelled_at: int | None = None
    failed_at: int | None = None
    expires_at: int | None = None
    errors: Sequence[Failure] | None = None
    stage_seconds: Mapping[str, float] | None = None
    rate_per_s: float | None = None
    eta_s: float | None = None

    @property
    def ended_at(self) -> int | None:
        """When it ended, however."""
        return self.completed_at or self.cancelled_at or self.failed_at

    @property
    def standing(self) -> bool:
        """Whether it has ended, or stands until somebody moves it."""
        return self.status not in MOVING


@dataclass(frozen=True)
class Change:
    """How a batch stands after a call, whether the call changed it, and how many jobs it moved."""

    batch: Batch
    changed: bool
    jobs: int = 0
    bad_rows: int = 0


@dataclass(frozen=True)
class Job:
    """One picture to make. `seconds` is what its stages took, `line` its row's in the catalogue, from 1."""

    id: int
    custom_id: str | None
    line: int
    take: int
    image: str | None
    state: JobState
    stage: Stage | None
    attempt: int
    attempts: int
    code: str | None
    message: str | None
    result: str | None
    sha256: str | None
    seed: int
    seconds: float | None
    reused: bool
    canvas: str | None
    revision: str
    recipe: str | None
    decision: Decision | None


@dataclass(frozen=True)
class RowError:
    """What is wrong with one row."""

    line: int
    custom_id: str | None
    code: str
    message: str


@dataclass(frozen=True)
class DryRun:
    """What a catalogue would become; no batch was made. `errors` are the first ones. Estimates where there are any."""

    rows: int
    bad: int
    recipes: int
    errors: Sequence[RowError]
    warnings: Sequence[str]
    estimated_seconds: float | None = None
    estimated_wall_s: float | None = None
    estimated_cost: float | None = None


@dataclass(frozen=True)
class Upload:
    """Whether an image lies there already, and where to PUT it if not, with which headers."""

    name: str
    exists: bool
    url: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Preset:
    """A named edit."""

    name: str
    summary: str
    prompt: str
    negative_prompt: str | None
    options: Mapping[str, str | int | float]


@dataclass(frozen=True)
class Worker:
    """A worker process whose lease holds; `jobs` are some of those it holds."""

    id: str
    host: str
    pid: int
    stages: Sequence[Stage]
    device: str
    revision: str
    numerics: str
    started_at: float
    seen_at: float
    memory_bytes: int
    jobs: Sequence[int]


@dataclass(frozen=True)
class Key:
    """An API key, without its secret."""

    id: str
    name: str
    scope: Scope
    created_at: int
    last_used_at: int | None
    revoked_at: int | None


@dataclass(frozen=True)
class NewKey(Key):
    """A key just made; `secret` cannot be had again."""

    secret: str = field(repr=False)


@dataclass(frozen=True)
class Report:
    """What became of a run's jobs; the five sum to `total`."""

    total: int
    new: int
    changed: int
    reused: int
    failed: int
    cancelled: int


@dataclass(frozen=True)
class Run:
    """One firing of a schedule."""

    id: int
    schedule: str
    fire_at: float
    by_request: bool
    missed: int
    state: RunState
    reason: str | None
    batch_id: str | None
    batch_status: BatchStatus | None
    started_at: int | None
    ended_at: int | None
    report: Report | None


@dataclass(frozen=True)
class Plan:
    """What a schedule is made of; `results_uri` None: as the server's settings say."""

    name: str
    cron: str
    catalogue: str
    time_zone: str = "UTC"
    options: Mapping[str, Any] = field(default_factory=dict)
    results_uri: str | None = None
    priority: int = 0
    only_changed: bool = True
    overlap: Overlap = Overlap.SKIP
    missed: Missed = Missed.ONCE


@dataclass(frozen=True)
class Schedule:
    """A catalogue that becomes a batch again and again. `next_fires` is told of a single schedule alone."""

    name: str
    cron: str
    time_zone: str
    catalogue: str
    options: Mapping[str, Any]
    results_uri: str | None
    priority: int
    only_changed: bool
    overlap: Overlap
    missed: Missed
    paused: bool
    next_fire_at: int | None
    created_at: int
    last_run: Run | None = None
    next_fires: Sequence[int] = ()


@dataclass(frozen=True)
class Webhook:
    """An address that hears of events."""

    id: str
    url: str
    events: Sequence[str]
    created_at: int
    rotated_at: int | None


@dataclass(frozen=True)
class WebhookSecret(Webhook):
    """A webhook with the secret just made, which cannot be had again."""

    secret: str = field(repr=False)


@dataclass(frozen=True)
class Try:
    """One try to deliver."""

    attempt: int
    at: float
    status: int | None
    latency_s: float
    error: str | None
    answer: str | None


@dataclass(frozen=True)
class Delivery:
    """One message to one webhook; status, latency and error are those of its last try.

    `body` and `log` are told of a single delivery alone.
    """

    id: int
    webhook_id: str
    message_id: str
    event: str
    state: DeliveryState
    attempts: int
    status: int | None
    latency_s: float | None
    error: str | None
    created_at: int
    next_at: int | None
    ended_at: int | None
    body: str = ""
    log: Sequence[Try] = ()


@dataclass(frozen=True)
class Caller:
    """Whose key it is that a client calls with, and what it may do."""

    id: str
    name: str
    scope: Scope


@dataclass(frozen=True)
class Asked:
    """What is asked of a batch as a whole; `options` are those without a field of their own: steps, seed, fit, …

    `deadline` is `90m`, `2h`, `1d` or an ISO time with its zone, `max_error_rate` the share of failures that pauses it.
    """

    preset: str | None = None
    prompt: str | None = None
    options: Mapping[str, str | int | float] = field(default_factory=dict)
    priority: int = 0
    deadline: str | None = None
    max_error_rate: float | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)


@cache
def adapter(kind: Any) -> TypeAdapter[Any]:
    """What reads values, or JSON, into a `kind`."""
    return TypeAdapter(kind)
