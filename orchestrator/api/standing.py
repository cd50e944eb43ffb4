"""What there is and how it stands: presets, recipes, workers, queues, and the whole at a glance. Changes nothing."""

from typing import Annotated, Any

from fastapi import Path, Query
from pydantic import BaseModel, Field
from redis.exceptions import RedisError

from orchestrator.api.access import Reader, open_router
from orchestrator.api.batches import Limit
from orchestrator.api.problems import Problem
from orchestrator.api.resources import Open
from orchestrator.api.shapes import FailureShape, Page
from orchestrator.presets import PRESETS
from orchestrator.state import queries
from orchestrator.state.database import reading
from orchestrator.state.messages import queue_names
from orchestrator.state.transitions import JobState, Stage

router = open_router(prefix="/v1", tags=["standing"])


class PresetShape(BaseModel):
    """A named edit."""

    name: str = Field(examples=["flat-lay"])
    summary: str
    prompt: str
    negative_prompt: str | None
    options: dict[str, str | int | float]


class RecipeShape(BaseModel):
    """Everything asked of the model but the image and the seed."""

    id: str
    object: str = "recipe"
    body: dict[str, Any] = Field(examples=[{"prompt": "a flat lay", "steps": 28}])


class WorkerShape(BaseModel):
    """A worker process whose lease holds."""

    id: str = Field(examples=["gpu-1-worker-2f9c"])
    host: str
    pid: int
    stages: list[Stage]
    device: str = Field(examples=["cuda:0"])
    revision: str
    numerics: str
    started_at: float
    seen_at: float
    memory_bytes: int
    jobs: list[int] = Field(description="what it holds at the moment, some of it", examples=[[4711]])


class QueueShape(BaseModel):
    """What waits for a stage. `messages` is the broker's; null while it does not answer."""

    stage: Stage
    queued: int
    running: int
    messages: int | None


class OverviewShape(BaseModel):
    """The whole at a glance."""

    at: float
    batches: dict[str, int] = Field(examples=[{"running": 2, "completed": 30}])
    queues: list[QueueShape]
    workers: int
    images_by_minute: list[tuple[float, int]] = Field(description="(start of the minute, pictures), of the last hour")
    failures: list[FailureShape] = Field(description="of the last day, by code")


@router.get("/presets", response_model=Page[PresetShape])
def list_presets(_: Reader) -> Page[PresetShape]:
    """The built-in edits."""
    shapes = [
        PresetShape(
            name=p.name, summary=p.summary, prompt=p.prompt, negative_prompt=p.negative_prompt, options=dict(p.options)
        )
        for p in PRESETS.values()
    ]
    return Page(data=shapes, has_more=False)


@router.get("/recipes", response_model=Page[RecipeShape])
def list_recipes(
    _: Reader, opened: Open, limit: Limit = 100, after: Annotated[str, Query(max_length=200)] = ""
) -> Page[RecipeShape]:
    """Recipes by id, in pages; the cursor is the last id."""
    with reading(opened.engine).connect() as connection:
        found = queries.read_recipes(connection, limit=limit + 1, after=after.replace("\0", ""))
    shapes = [RecipeShape(id=recipe_id, body=dict(body)) for recipe_id, body in found[:limit]]
    more = len(found) > limit
    return Page(data=shapes, has_more=more, next=shapes[-1].id if more else None)


@router.get("/recipes/{recipe_id}", response_model=RecipeShape)
def get_recipe(
    _: Reader, opened: Open, recipe_id: Annotated[str, Path(max_length=200, examples=["a3f09c51e2d4"])]
) -> RecipeShape:
    """One recipe."""
    with reading(opened.engine).connect() as connection:
        body = queries.read_recipe(connection, recipe_id) if "\0" not in recipe_id else None
    if body is None:
        raise Problem(404, "not_found", f"there is no recipe {recipe_id!r}")
    return RecipeShape(id=recipe_id, body=dict(body))


@router.get("/workers", response_model=Page[WorkerShape])
def list_workers(_: Reader, opened: Open) -> Page[WorkerShape]:
    """The workers that live, and what they hold."""
    with reading(opened.engine).connect() as connection:
        workers = queries.live_workers(connection, lease_s=opened.settings.lease_s)
        held = queries.held_jobs(connection, [worker.id for worker in workers])
    shapes = [
        WorkerShape(
            **{name: getattr(worker, name) for name in ("id", "host", "pid", "device", "revision", "numerics")},
            stages=[Stage(stage) for stage in worker.stages.split(",")],
            started_at=worker.started_at,
            seen_at=worker.seen_at,
            memory_bytes=worker.rss_bytes,
            jobs=held.get(worker.id, [])[:16],
        )
        for worker in workers
    ]
    return Page(data=shapes, has_more=False)


@router.get("/queues", response_model=Page[QueueShape])
def list_queues(_: Reader, opened: Open) -> Page[QueueShape]:
    """How much waits for each stage, in SQL and in the broker."""
    with reading(opened.engine).connect() as connection:
        depths = queries.stage_depths(connection)
    return Page(data=_queues(opened, depths), has_more=False)


@router.get("/overview", response_model=OverviewShape)
def get_overview(_: Reader, opened: Open) -> OverviewShape:
    """How all of it stands: batches, queues, workers, pictures by minute, what failed today."""
    with reading(opened.engine).connect() as connection:
        seen = queries.overview(connection, lease_s=opened.settings.lease_s)
    return OverviewShape(
        at=seen.at,
        batches=dict(seen.batches),
        queues=_queues(opened, dict(seen.depths)),
        workers=len(seen.workers),
        images_by_minute=seen.images_by_minute,
        failures=[FailureShape(code=g.code, count=g.count, message=g.message) for g in seen.failures],
    )


def _queues(opened: Open, depths: dict[tuple[JobState, Stage], int]) -> list[QueueShape]:
    with reading(opened.engine).connect() as connection:
        revisions = sorted({batch.revision for batch in queries.open_batches(connection)})
    messages: dict[Stage, int | None] = dict.fromkeys(Stage)
    try:
        for stage in Stage:
            queues = [queue for revision in revisions for queue in queue_names(stage, revision)]
            messages[stage] = sum(int(opened.broker.llen(queue)) for queue in queues)
    except RedisError:
        messages = dict.fromkeys(Stage)
    return [
        QueueShape(
            stage=stage,
            queued=depths[JobState.QUEUED, stage],
            running=depths[JobState.RUNNING, stage],
            messages=messages[stage],
        )
        for stage in Stage
    ]
