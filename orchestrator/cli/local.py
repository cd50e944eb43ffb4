"""The door to this machine's own database, and to the stores that its batches name.

Owns how rows of SQL become what commands show, in the words of the API. Refuses to start anything but the embedded
servers, where results lie in them.
"""

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar, cast

import typer
from sqlalchemy import Engine

from orchestrator import control, manifest, schedules, webhooks
from orchestrator.access.audit import AuditLine
from orchestrator.access.keys import create_key
from orchestrator.access.scopes import Scope
from orchestrator.batches import BatchError, read_batch
from orchestrator.cli.failures import CallError
from orchestrator.cli.locations import open_existing_state, open_stack, open_state
from orchestrator.cli.request import lies_in_embedded
from orchestrator.client import shapes
from orchestrator.fire_times import fire_times
from orchestrator.progress import look
from orchestrator.settings import Settings, read_settings
from orchestrator.state import queries
from orchestrator.state.database import reading
from orchestrator.state.queries import Schedule
from orchestrator.state.transitions import DeliveryState, JobState, Stage
from orchestrator.storage import open_object
from orchestrator.telling import (
    batch_values,
    delivery_values,
    key_values,
    run_values,
    schedule_values,
    webhook_values,
)

T = TypeVar("T")
CALLER = "kontext key"
LISTED = 1000
NEXT_TOLD = 5
JOBS_TOLD = 16


@contextmanager
def open_local(*, making: bool = False) -> Iterator["Local"]:
    """This machine's database. Raises CallError where there is none, unless `making`."""
    settings = read_settings()
    with ExitStack() as opened:
        engine = opened.enter_context((open_state if making else open_existing_state)(settings))
        yield Local(engine, settings, opened)


class Local:
    """The commands' door, on an open database."""

    def __init__(self, engine: Engine, settings: Settings, opened: ExitStack) -> None:
        self._engine, self._settings, self._opened = engine, settings, opened
        self._lock, self._stacked = threading.Lock(), False

    def batches(self, limit: int) -> Iterator[shapes.Batch]:
        """The newest batches, with their counts."""
        with reading(self._engine).connect() as connection:
            found = queries.list_batches(connection, limit=limit)
        for batch in found:
            snapshot = look(self._engine, batch.id)
            yield _batch(snapshot.batch, snapshot.counts)

    def batch(self, batch_id: str) -> shapes.Batch:
        """One batch. Raises CallError when there is none of that id."""
        self._find(batch_id)
        snapshot = look(self._engine, batch_id)
        with reading(self._engine).connect() as connection:
            failures = queries.failures_grouped(connection, batch_id=batch_id) if snapshot.counts.failed else []
            seconds = queries.stage_seconds(connection, batch_id)
        return _batch(snapshot.batch, snapshot.counts, failures, seconds)

    def jobs(self, batch_id: str, states: Sequence[JobState]) -> Iterator[shapes.Job]:
        """A batch's jobs in the catalogue's order; streams. Raises CallError."""
        batch = self._find(batch_id)

        def read() -> Iterator[shapes.Job]:
            for job in queries.stream_jobs(self._engine, batch_id, states=states):
                yield shapes.Job(id=job["id"], **manifest.describe(job, batch.revision))

        return read()

    def pause(self, batch_id: str) -> shapes.Change:
        """Pause a batch. Raises ControlError."""
        return self._tell(control.pause(self._engine, batch_id))

    def resume(self, batch_id: str) -> shapes.Change:
        """Resume a batch. Raises ControlError."""
        return self._tell(control.resume(self._engine, batch_id))

    def cancel(self, batch_id: str) -> shapes.Change:
        """Cancel a batch. Raises ControlError."""
        return self._tell(control.cancel(self._engine, batch_id))

    def set_priority(self, batch_id: str, priority: int) -> shapes.Change:
        """Change a batch's urgency. Raises ControlError."""
        return self._tell(control.set_priority(self._engine, batch_id, priority))

    def retry(
        self, batch_id: str, states: Sequence[JobState], codes: Sequence[str], lines: Sequence[int]
    ) -> shapes.Change:
        """Try ended jobs again. Raises ControlError."""
        return self._tell(control.retry(self._engine, batch_id, states=states, codes=codes, lines=lines))

    def picture(self, job: shapes.Job) -> bytes:
        """A job's picture. Raises StorageError."""
        assert job.result is not None
        store, key = open_object(job.result, self._reaching(job.result))
        return store.get(key)

    def save_manifest(self, batch_id: str, target: Path) -> None:
        """The manifest as it stands now, into a file."""
        batch = self._find(batch_id)
        stream = manifest.stream_table if target.suffix == ".csv" else manifest.stream_lines
        with target.open("wb") as file:
            for piece in stream(self._engine, batch):
                file.write(piece)

    def workers(self) -> list[shapes.Worker]:
        """The workers that live."""
        with reading(self._engine).connect() as connection:
            found = queries.live_workers(connection, lease_s=self._settings.lease_s)
            held = queries.held_jobs(connection, [worker.id for worker in found])
        same = ("id", "host", "pid", "device", "revision", "numerics", "started_at", "seen_at")
        return [
            shapes.Worker(
                **{name: getattr(worker, name) for name in same},
                stages=[Stage(stage) for stage in worker.stages.split(",")],
                memory_bytes=worker.rss_bytes,
                jobs=held.get(worker.id, [])[:JOBS_TOLD],
            )
            for worker in found
        ]

    def keys(self) -> list[shapes.Key]:
        """The newest keys."""
        with reading(self._engine).connect() as connection:
            found = queries.list_keys(connection, limit=LISTED)
        return [_read(shapes.Key, key_values(key)) for key in found]

    def add_key(self, name: str, scope: Scope) -> shapes.NewKey:
        """Make a key. Raises CallError for a bad name."""
        try:
            made = create_key(self._engine, name, scope, note=AuditLine(CALLER, "key.create"))
        except ValueError as error:
            raise CallError(str(error)) from None
        return _read(shapes.NewKey, key_values(made.key) | {"secret": made.secret})

    def revoke_key(self, key_id: str) -> bool:
        """End a key. Raises CallError when there is none of that id."""
        with self._engine.begin() as connection:
            revoked = queries.revoke_key(connection, key_id)
            if revoked:
                AuditLine(CALLER, "key.revoke")(connection, key_id)
            found = queries.read_key(connection, key_id)
        if found is None:
            raise CallError(f"there is no key {key_id!r}; see: kontext key list")
        return revoked

    def schedules(self) -> list[shapes.Schedule]:
        """All schedules, each with its last run."""
        with reading(self._engine).connect() as connection:
            return [_schedule(schedule, last) for schedule, last in queries.list_schedules(connection)]

    def schedule(self, name: str) -> shapes.Schedule:
        """One schedule. Raises NoSchedule."""
        return self._detail(schedules.find(self._engine, name))

    def runs(self, name: str, limit: int) -> list[shapes.Run]:
        """The latest runs of a schedule."""
        with reading(self._engine).connect() as connection:
            return [_read(shapes.Run, run_values(run)) for run in queries.list_runs(connection, name, limit=limit)]

    def add_schedule(self, plan: shapes.Plan) -> shapes.Schedule:
        """Make a schedule. Raises ScheduleError, FireTimeError, CatalogueError."""
        values = {name: value for name, value in vars(plan).items() if name != "options"}
        return self._detail(schedules.add(self._engine, schedules.Plan(asked=plan.options, **values), self._settings))

    def pause_schedule(self, name: str) -> shapes.Schedule:
        """Pause a schedule. Raises NoSchedule."""
        return self._detail(schedules.pause(self._engine, name))

    def resume_schedule(self, name: str) -> shapes.Schedule:
        """Resume a schedule. Raises NoSchedule."""
        return self._detail(schedules.resume(self._engine, name))

    def remove_schedule(self, name: str) -> None:
        """Forget a schedule. Raises NoSchedule."""
        schedules.remove(self._engine, name)

    def fire_schedule(self, name: str) -> shapes.Run:
        """Ask for a run. Raises NoSchedule."""
        return _read(shapes.Run, run_values(schedules.fire(self._engine, name)))

    def webhooks(self) -> list[shapes.Webhook]:
        """All webhooks."""
        with reading(self._engine).connect() as connection:
            return [_read(shapes.Webhook, webhook_values(each)) for each in queries.list_webhooks(connection)]

    def add_webhook(self, url: str, events: Sequence[str]) -> shapes.WebhookSecret:
        """Store a webhook. Raises WebhookError."""
        made = webhooks.add(self._engine, url, events, self._settings)
        return _read(shapes.WebhookSecret, webhook_values(made.webhook) | {"secret": made.secret})

    def rotate_webhook(self, webhook_id: str) -> shapes.WebhookSecret:
        """Make a new secret. Raises NoWebhook."""
        made = webhooks.rotate(self._engine, webhook_id)
        return _read(shapes.WebhookSecret, webhook_values(made.webhook) | {"secret": made.secret})

    def remove_webhook(self, webhook_id: str) -> None:
        """Forget a webhook. Raises NoWebhook."""
        webhooks.remove(self._engine, webhook_id)

    def test_webhook(self, webhook_id: str) -> shapes.Delivery:
        """Send a test message. Raises NoWebhook."""
        return _read(shapes.Delivery, delivery_values(webhooks.test(self._engine, webhook_id)))

    def deliveries(self, webhook_id: str | None, state: DeliveryState | None, limit: int) -> list[shapes.Delivery]:
        """The newest deliveries. Raises NoWebhook."""
        if webhook_id is not None:
            webhooks.find(self._engine, webhook_id)
        with reading(self._engine).connect() as connection:
            found = queries.list_deliveries(connection, webhook_id, state=state, limit=limit)
        return [_read(shapes.Delivery, delivery_values(each)) for each in found]

    def delivery(self, delivery_id: int) -> shapes.Delivery:
        """One delivery, with its tries. Raises NoWebhook."""
        delivery, attempts = webhooks.find_delivery(self._engine, delivery_id)
        more = {"body": delivery.body, "log": [vars(each) for each in attempts]}
        return _read(shapes.Delivery, delivery_values(delivery) | more)

    def replay(self, delivery_id: int) -> shapes.Delivery:
        """Send a message once more. Raises NoWebhook."""
        return _read(shapes.Delivery, delivery_values(webhooks.replay(self._engine, delivery_id)))

    def _find(self, batch_id: str) -> queries.Batch:
        try:
            return read_batch(self._engine, batch_id)
        except BatchError as error:
            raise CallError(str(error)) from error

    def _tell(self, change: control.Change) -> shapes.Change:
        counts = look(self._engine, change.batch.id).counts
        return shapes.Change(_batch(change.batch, counts), change.changed, change.jobs, change.bad_rows)

    def _detail(self, schedule: Schedule) -> shapes.Schedule:
        with reading(self._engine).connect() as connection:
            now_s = queries.read_clock(connection)
            runs = queries.list_runs(connection, schedule.name, limit=1)
        times = [] if schedule.paused else fire_times(schedule.cron, schedule.time_zone, now_s)
        return _schedule(schedule, runs[0] if runs else None, [int(at) for at in islice(times, NEXT_TOLD)])

    def _reaching(self, uri: str) -> Settings:
        """Settings that reach a place, which may lie in the embedded server: it runs until the door is closed."""
        with self._lock:
            if lies_in_embedded(uri) and not self._stacked:
                self._settings = self._opened.enter_context(open_stack(self._settings, partial(typer.echo, err=True)))
                self._stacked = True
            return self._settings


def _batch(
    batch: queries.Batch,
    counts: queries.BatchCounts,
    failures: Sequence[queries.FailureGroup] | None = None,
    seconds: Mapping[str, float] | None = None,
) -> shapes.Batch:
    return _read(shapes.Batch, batch_values(batch, counts, failures, seconds))


def _schedule(schedule: Schedule, last: queries.Run | None, upcoming: Sequence[int] = ()) -> shapes.Schedule:
    return _read(shapes.Schedule, schedule_values(schedule, last) | {"next_fires": upcoming})


def _read(kind: type[T], values: Mapping[str, Any]) -> T:
    """Values in the words of the API as a `kind`, as the client would have read them."""
    read: T = shapes.adapter(cast(Any, kind)).validate_python(values)
    return read
