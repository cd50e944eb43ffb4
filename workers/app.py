"""A worker process: Celery's solo pool around the model, from start to good end.

Owns the order of starting (model, registration, heartbeat, consuming) and of stopping (the stage at hand ends, the rest
is handed back). The solo pool is the process: nothing forks beside a GPU context, and the heartbeat is a thread.
"""

import os
import signal
import socket
import warnings
from collections.abc import Callable, Sequence

import psutil
import redis
import structlog
import torch
from celery import Celery
from celery.platforms import SecurityWarning
from celery.worker import state
from celery.worker.request import Request
from kombu import Queue
from kombu.exceptions import OperationalError as BrokerError
from redis.exceptions import RedisError

from kontext_model.acceleration import Acceleration, FallbackWarning
from kontext_model.checkpoint import STAGE_PARTS
from kontext_model.editor import KontextEditor
from kontext_model.revision import CheckpointRef
from orchestrator.settings import Settings
from orchestrator.state import queries
from orchestrator.state.database import open_database
from orchestrator.state.messages import TASK, Bell, broker_options, queue_name, ring
from orchestrator.state.transitions import Stage
from orchestrator.storage.weights import SCHEME, fetch_weights
from workers.bench import Editor, open_bench
from workers.handoff import Handoffs
from workers.heartbeat import Heartbeat
from workers.tasks import Worker

log = structlog.get_logger("worker")


def open_editor(settings: Settings, stages: Sequence[Stage]) -> Editor:
    """The checkpoint's parts that these stages need; from S3 they are copied here first.

    What was asked for and cannot be had, without changing a picture, is logged. Raises CheckpointError, StorageError.
    """
    assert settings.checkpoint is not None
    ref: str | CheckpointRef = settings.checkpoint
    if settings.checkpoint.startswith(SCHEME):
        needed = {part for stage in stages for part in STAGE_PARTS[stage.value]}
        log.info("fetching the checkpoint", uri=settings.checkpoint, parts=",".join(sorted(needed)))
        ref = fetch_weights(settings.checkpoint, settings, needed)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", FallbackWarning)
        editor = KontextEditor.open(
            ref,
            device=settings.device,
            dtype=settings.dtype,
            parts=frozenset(stage.value for stage in stages),
            cache_file=settings.home / "revisions.json",
            acceleration=Acceleration(
                quantize=settings.quantize,
                offload=settings.offload,
                attention=settings.attention,
                compile=settings.compile,
                step_cache=settings.step_cache,
            ),
        )
    for warning in caught:
        log.warning("checkpoint opened with a warning", reason=str(warning.message))
    return editor


def serve(
    settings: Settings,
    stages: Sequence[Stage],
    worker_id: str,
    open_model: Callable[[Settings, Sequence[Stage]], Editor] = open_editor,
) -> int:
    """Consume bells of these stages until SIGTERM; gives the exit status.

    The model is opened before the first bell is taken. What was claimed and not finished is handed back.
    """
    assert settings.database_url and settings.cache_url and settings.broker_url
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    editor = open_model(settings, stages)
    engine = open_database(settings.database_url, relaxed=True)
    cache = redis.Redis.from_url(
        settings.cache_url, socket_timeout=30, socket_connect_timeout=10, health_check_interval=25
    )
    scope = f"{editor.revision}\n{settings.numerics}"
    handoffs = Handoffs(cache, ttl_s=settings.handoff_ttl_s, scope=scope)
    with engine.begin() as connection:
        queries.register_worker(
            connection,
            {
                "id": worker_id,
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "stages": ",".join(stages),
                "device": settings.device,
                "revision": editor.revision,
                "numerics": settings.numerics,
                "rss_bytes": psutil.Process().memory_info().rss,
            },
        )
    heartbeat = Heartbeat(engine, worker_id, settings.heartbeat_s)
    heartbeat.start()
    try:
        with open_bench(engine, settings, editor, handoffs) as bench:
            app = build_app(settings)
            worker = Worker(worker_id, bench, frozenset(stages), _ringer(app), _is_stopping)
            log.info("ready", worker=worker_id, stages=",".join(stages), revision=editor.revision[:12])
            return consume(app, worker.serve, stages, editor.revision, worker_id)
    finally:
        heartbeat.stop()
        with engine.begin() as connection:
            returned = queries.hand_back(connection, worker_id)
            queries.end_worker(connection, worker_id)
        log.info("stopped", worker=worker_id, handed_back=len(returned))


def build_app(settings: Settings) -> Celery:
    """The Celery app, with the settings that dispatcher and workers share."""
    app = Celery("kontext", set_as_current=False)
    app.conf.update(broker_options(settings.broker_url or ""))
    return app


class HeardBell(Request):  # type: ignore[misc]
    """A bell leaves Redis as it is heard (`no_ack`): there is nothing to acknowledge, and no round trip for it."""

    def acknowledge(self) -> None:
        self.acknowledged = True


def consume(app: Celery, answer: Callable[[Bell], int], stages: Sequence[Stage], revision: str, name: str) -> int:
    """Run Celery's worker in this process until it is told to stop; gives its exit status.

    Queues are listed from the last stage to the first: with `queue_order_strategy="priority"` decode goes before
    sample, and sample before encode, so that finished pictures leave before new ones enter.
    """

    @app.task(name=TASK, ignore_result=True, Request=HeardBell)  # type: ignore[untyped-decorator]
    def work(**kwargs: str) -> None:
        try:
            bell = Bell.parse(kwargs)
        except ValueError as error:
            log.warning("message dropped", error=str(error))
            return
        try:
            answer(bell)
        except Exception as error:
            # Its jobs are still marked as ours: stopping hands them back, or lets the lease do it.
            log.error("unit not committed, stopping", error=repr(error)[:300])
            os.kill(os.getpid(), signal.SIGTERM)

    # Celery warns root against pickles, which this app does not accept.
    warnings.simplefilter("ignore", SecurityWarning)
    order = [stage for stage in reversed(Stage) if stage in stages]
    app.conf.task_queues = [Queue(queue_name(stage, revision), no_ack=True) for stage in order]
    worker = app.Worker(
        pool="solo",
        concurrency=1,
        hostname=f"{name}@{socket.gethostname()}",
        loglevel="WARNING",
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
        quiet=True,
    )
    try:
        worker.start()
    except SystemExit as stop:
        return int(stop.code or 0)
    return int(worker.exitcode or 0)


def _is_stopping() -> bool:
    return state.should_stop is not None or state.should_terminate is not None


def _ringer(app: Celery) -> Callable[[Sequence[Bell]], None]:
    def ring_all(bells: Sequence[Bell]) -> None:
        if not bells:
            return
        try:
            ring(app, bells)
        except (BrokerError, RedisError, OSError) as error:
            # SQL holds the work: the rescuer rings again.
            log.warning("bells not rung", bells=len(bells), error=str(error).partition("\n")[0])

    return ring_all
