"""The wire contract: a bell says which stage has work, in which group, and nothing else.

Owns the names of tasks, queues and handoffs and the broker's settings, shared by those who ring and those who listen.
Pure data: imports no Celery. A bell that is lost, late or doubled changes nothing, since rows are claimed in SQL.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

from orchestrator.state.transitions import Stage

TASK = "kontext.work"


@dataclass(frozen=True)
class Bell:
    """`stage` has work in the group (`recipe_id`, `canvas`); before encode no canvas is known, it is empty.

    `recovered`: it rings for what a dead worker held, which has waited already: it is heard before all others. That is
    the queue's to say, and is no part of the message.
    """

    stage: Stage
    revision: str
    recipe_id: str
    canvas: str = ""
    recovered: bool = False

    @property
    def queue(self) -> str:
        """The queue it rings in. Workers of another checkpoint do not listen to it."""
        recovered, usual = queue_names(self.stage, self.revision)
        return recovered if self.recovered else usual

    def kwargs(self) -> dict[str, str]:
        """The task's arguments on the wire."""
        return {
            "stage": self.stage.value,
            "revision": self.revision,
            "recipe_id": self.recipe_id,
            "canvas": self.canvas,
        }

    @classmethod
    def parse(cls, kwargs: dict[str, Any]) -> Self:
        """Read a message that may come from anyone. Raises ValueError when it is no bell."""
        try:
            stage, revision, recipe_id, canvas = (kwargs[k] for k in ("stage", "revision", "recipe_id", "canvas"))
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a bell: {kwargs!r:.200}") from error
        if not all(isinstance(text, str) and len(text) <= 200 for text in (stage, revision, recipe_id, canvas)):
            raise ValueError(f"not a bell: {kwargs!r:.200}")
        return cls(Stage(stage), revision, recipe_id, canvas)


def queue_names(stage: Stage, revision: str) -> tuple[str, str]:
    """The queues of a stage and checkpoint revision: that of recovered jobs, and the usual one."""
    usual = f"{stage.value}.{revision[:12]}"
    return f"recovered.{usual}", usual


def handoff_key(batch_id: str, job_id: int, stage: Stage) -> str:
    """Where what `stage` made of a job lies in the cache."""
    # The batch's id is unique over all databases that may share a cache, a job's number is not.
    return f"kontext:handoff:{batch_id}:{job_id}:{stage.value}"


def bells_needed(rows: int, unit_size: int) -> int:
    """How many bells call enough units for so many queued rows."""
    return -(-rows // unit_size)


def ring(app: Any, bells: Iterable[Bell]) -> None:
    """Send bells through a Celery app, over one connection. Raises ConnectionError: SQL still holds the work."""
    try:
        with app.producer_or_acquire() as producer:
            for bell in bells:
                app.send_task(TASK, kwargs=bell.kwargs(), queue=bell.queue, producer=producer)
    except Exception as error:
        # A producer whose connection broke goes back to kombu's pool without one, and raises AttributeError ever after.
        for pool in (app.amqp.producer_pool, app.pool):
            pool.resize(pool.limit, force=True, reset=True)
        raise ConnectionError(f"{type(error).__name__}: {error}") from error


def broker_options(broker_url: str) -> dict[str, Any]:
    """Celery's configuration, the same for those who ring and those who listen.

    Each line answers a known failure of Celery on Redis; docs/celery-on-redis.md names them.
    """
    return {
        "broker_url": broker_url,
        "task_default_queue": "kontext",
        "task_ignore_result": True,
        "task_store_errors_even_if_ignored": False,
        "task_serializer": "json",
        "accept_content": ["json"],
        "task_acks_late": False,
        "task_track_started": False,
        "worker_send_task_events": False,
        "worker_disable_prefetch": True,
        "worker_prefetch_multiplier": 1,
        "worker_hijack_root_logger": False,
        "worker_redirect_stdouts": False,
        "worker_enable_remote_control": False,
        "broker_connection_retry_on_startup": True,
        "broker_pool_limit": 2,
        "broker_transport_options": {
            "queue_order_strategy": "priority",
            "socket_timeout": 5,  # no command takes longer: BRPOP itself waits for a second
            "socket_connect_timeout": 5,
            "socket_keepalive": True,
            "health_check_interval": 10,  # a silent BRPOP is given up after twice this
        },
    }
