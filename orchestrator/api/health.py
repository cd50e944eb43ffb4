"""Is it alive, is it ready, and how much work is there.

Owns `/healthz` and `/readyz`, which answer everybody, and `/metrics`. Refuses to change anything.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import redis
from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector
from redis.exceptions import RedisError
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from orchestrator.api.access import Reader, open_router
from orchestrator.api.resources import Open
from orchestrator.state import migration, queries
from orchestrator.state.database import reading
from orchestrator.state.messages import queue_names
from orchestrator.state.transitions import BatchStatus, Stage
from orchestrator.tallies import Tallies

public = APIRouter(include_in_schema=False)
router = open_router(include_in_schema=False)


class NotReady(RuntimeError):
    """A part that this process needs does not answer or is not as it must be; the message says what to do."""


@public.get("/healthz")
def healthz() -> PlainTextResponse:
    """The process is alive."""
    return PlainTextResponse("ok\n")


@public.get("/readyz")
def readyz(opened: Open) -> JSONResponse:
    """SQL answers and is migrated, the broker answers; 503 says what is wrong."""
    checks = {
        "database": lambda: check_database(opened.engine),
        "broker": lambda: check_broker(opened.broker),
    }
    found = {name: _outcome(check) for name, check in checks.items()}
    ready = set(found.values()) == {"ok"}
    return JSONResponse({"ready": ready, **found}, status_code=200 if ready else 503)


@router.get("/metrics")
def metrics(_: Reader, opened: Open) -> Response:
    """Prometheus text; 503 when SQL, which holds the numbers, does not answer."""
    registry = CollectorRegistry()
    registry.register(Numbers(opened.engine, opened.broker, opened.service(Tallies), opened.settings.lease_s))
    try:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_PLAIN_0_0_4)
    except SQLAlchemyError as error:
        return PlainTextResponse(f"the database does not answer: {_first_line(error)}\n", status_code=503)


def check_database(engine: Engine) -> None:
    """Raises NotReady unless SQL answers and stands at the newest migration."""
    try:
        current, wanted = migration.current(engine), migration.head()
    except SQLAlchemyError as error:
        raise NotReady(f"the database does not answer: {_first_line(error)}") from error
    if current != wanted:
        raise NotReady(f"the database stands at {current or 'no schema'}, needed is {wanted}; run: kontext db upgrade")


def check_broker(broker: "redis.Redis") -> None:
    """Raises NotReady unless the broker answers PING."""
    try:
        broker.ping()
    except RedisError as error:
        raise NotReady(f"the broker does not answer: {_first_line(error)}") from error


class Numbers(Collector):
    """What Prometheus asks for, read at every scrape: any number of these processes may run.

    No scrape looks through the backlog: queues and work at hand are counted, all else is told by the tallies.
    """

    def __init__(self, engine: Engine, broker: "redis.Redis", tallies: Tallies, lease_s: float) -> None:
        self._engine, self._broker, self._tallies, self._lease_s = engine, broker, tallies, lease_s

    def describe(self) -> Iterable[Metric]:
        """Nothing: registering this must not ask the database."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """Gauges of jobs, batches, workers and queues. The queues' is left out while the broker does not answer."""
        totals = self._tallies.totals()
        with reading(self._engine).connect() as connection:
            depths = queries.stage_depths(connection)
            batches = queries.count_batches(connection)
            workers = queries.live_workers(connection, lease_s=self._lease_s)
            revisions = sorted({batch.revision for batch in queries.open_batches(connection)})

        at_hand = {state for state, _ in depths}
        jobs = {(str(state), ""): 0 if state in at_hand else count for state, count in totals.items()}
        jobs |= {(str(state), str(stage)): count for (state, stage), count in depths.items()}
        yield _gauge("kontext_jobs", "Jobs of all batches.", ("state", "stage"), jobs)
        yield _gauge("kontext_batches", "Batches.", ("status",), {(s,): batches.get(s, 0) for s in BatchStatus})
        roles = Counter(stage for worker in workers for stage in worker.stages.split(","))
        text = "Live workers; one of several stages counts for each."
        yield _gauge("kontext_workers", text, ("stage",), {(s,): roles[s] for s in Stage})

        lengths = self._queue_lengths(
            [queue for stage in Stage for revision in revisions for queue in queue_names(stage, revision)]
        )
        yield _gauge("kontext_broker_up", "Whether the broker answers.", (), {(): int(lengths is not None)})
        if lengths is not None:
            rows = {(queue,): length for queue, length in lengths.items()}
            yield _gauge("kontext_queue_length", "Messages waiting.", ("queue",), rows)

    def _queue_lengths(self, queues: Iterable[str]) -> dict[str, int] | None:
        try:
            self._broker.ping()
            return {queue: int(self._broker.llen(queue)) for queue in queues}
        except RedisError:
            return None


def _gauge(name: str, text: str, labels: tuple[str, ...], rows: Mapping[Any, int]) -> GaugeMetricFamily:
    """A gauge of one line per tuple of label values."""
    family = GaugeMetricFamily(name, text, labels=labels)
    for values, number in rows.items():
        family.add_metric(values, number)
    return family


def _outcome(check: Callable[[], None]) -> str:
    try:
        check()
    except NotReady as problem:
        return str(problem)
    return "ok"


def _first_line(error: Exception) -> str:
    return str(getattr(error, "orig", error) or error).partition("\n")[0]
