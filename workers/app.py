"""A worker process: from opening the model to a good end.

Owns the order of starting (model, registration, heartbeat, watchdog, listening) and of stopping (the stage at hand
ends, the rest is handed back), and the process's limit of memory.
"""

import os
import socket
import warnings
from collections.abc import Callable, Sequence

import psutil
import redis
import structlog
import torch
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from kontext_model.revision import CheckpointRef
from orchestrator.settings import Settings
from orchestrator.state import patience, queries
from orchestrator.state.database import open_database, reading
from orchestrator.state.messages import Bell
from orchestrator.state.transitions import Stage
from orchestrator.storage.weights import SCHEME, fetch_weights
from workers.bench import Editor, open_bench
from workers.handoff import Handoffs
from workers.heartbeat import Heartbeat
from workers.listener import Listener, is_stopping, stop_process
from workers.shift import Shift
from workers.tasks import Worker
from workers.watchdog import Watchdog

ANSWER_S = 5.0
log = structlog.get_logger("worker")


def open_editor(settings: Settings, stages: Sequence[Stage]) -> Editor:
    """The checkpoint's parts that these stages need; from S3 they are copied here first.

    What was asked for and cannot be had, without changing a picture, is logged. Raises CheckpointError, StorageError.
    """
    # Here, since the libraries around a real model take seconds to import.
    from kontext_model.acceleration import Acceleration, FallbackWarning
    from kontext_model.checkpoint import STAGE_PARTS
    from kontext_model.editor import KontextEditor

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
    """Answer bells of these stages until SIGTERM; gives the exit status.

    The model is opened before the first bell is taken. What was claimed and not finished is handed back.
    """
    assert settings.database_url and settings.cache_url
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    editor = open_model(settings, stages)
    engine, shift = open_database(settings.database_url, relaxed=True), Shift()
    shift.watch(engine)
    # From the first statement on, before heartbeat and watchdog look after each other.
    patience.watch(engine)
    scope = f"{editor.revision}\n{settings.numerics}"
    cache, dtype = _open_redis(settings.cache_url, timeout_s=30), getattr(torch, settings.dtype)
    handoffs = Handoffs(cache, ttl_s=settings.handoff_ttl_s, scope=scope, dtype=dtype)
    _register(engine, settings, stages, worker_id, editor.revision)
    heartbeat = Heartbeat(engine, worker_id, settings.heartbeat_s, shift)
    listener = Listener(settings, stages, editor.revision, worker_id)
    watchdog = _open_watchdog(engine, settings, stages, editor.revision, worker_id, shift, heartbeat, listener)
    heartbeat.start()
    watchdog.start()
    try:
        with open_bench(engine, settings, editor, handoffs) as bench:
            worker = Worker(
                worker_id, bench, frozenset(stages), listener.ring, lambda: heartbeat.dead or is_stopping(), shift
            )
            log.info("ready", worker=worker_id, stages=",".join(stages), revision=editor.revision[:12])
            return listener.listen(_within_memory(worker.serve, settings))
    finally:
        heartbeat.stop()
        _sign_off(engine, worker_id)
        watchdog.stop()


def _register(engine: Engine, settings: Settings, stages: Sequence[Stage], worker_id: str, revision: str) -> None:
    with engine.begin() as connection:
        queries.register_worker(
            connection,
            {
                "id": worker_id,
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "stages": ",".join(stages),
                "device": settings.device,
                "revision": revision,
                "numerics": settings.numerics,
                "rss_bytes": _rss_bytes(),
            },
        )


def _sign_off(engine: Engine, worker_id: str) -> None:
    """Hand back what is held and close the worker's row; without the database, its lease does both."""
    try:
        with engine.begin() as connection:
            returned = queries.hand_back(connection, worker_id)
            queries.end_worker(connection, worker_id)
    except DBAPIError as error:
        log.warning("stopped without the database", worker=worker_id, error=str(error.orig).partition("\n")[0])
    else:
        log.info("stopped", worker=worker_id, handed_back=len(returned))


def _open_watchdog(
    engine: Engine,
    settings: Settings,
    stages: Sequence[Stage],
    revision: str,
    worker_id: str,
    shift: Shift,
    heartbeat: Heartbeat,
    listener: Listener,
) -> Watchdog:
    assert settings.broker_url
    broker = _open_redis(settings.broker_url, timeout_s=ANSWER_S)

    def has_backlog() -> bool:
        try:
            with reading(engine).connect() as connection:
                return queries.has_backlog(
                    connection, stages, revision, settings.numerics, older_than_s=settings.watchdog_s
                )
        except DBAPIError:
            return False  # no work can be claimed from a database that is away

    def broker_answers() -> bool:
        try:
            return bool(broker.ping())
        except RedisError:
            return False

    return Watchdog(
        settings,
        shift,
        heartbeat,
        has_backlog=has_backlog,
        broker_answers=broker_answers,
        reconnect=listener.reconnect,
        let_go=lambda: _sign_off(engine, worker_id),
    )


def _within_memory(answer: Callable[[Bell], int], settings: Settings) -> Callable[[Bell], None]:
    """Answer bells until this process holds more memory than it may; then tell it to stop, between two units."""

    def answer_within(bell: Bell) -> None:
        answer(bell)
        limit_bytes = settings.worker_memory_bytes
        if limit_bytes is not None and (held_bytes := _rss_bytes()) > limit_bytes and not is_stopping():
            log.warning("over KONTEXT_WORKER_MEMORY_BYTES: the process starts anew", rss_bytes=held_bytes)
            stop_process()

    return answer_within


def _rss_bytes() -> int:
    return int(psutil.Process().memory_info().rss)


def _open_redis(url: str, *, timeout_s: float) -> redis.Redis:
    """A client that gives up on a silent server; one retry, for a connection that was closed while it idled."""
    return redis.Redis.from_url(
        url,
        socket_timeout=timeout_s,
        socket_connect_timeout=min(10.0, timeout_s),
        socket_keepalive=True,
        health_check_interval=25,
        retry=Retry(NoBackoff(), 1),
    )
