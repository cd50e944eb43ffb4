"""What the API says of batches and jobs: the shapes, and how they come of what SQL holds.

Times are whole seconds since the epoch, as users of other batch services know them.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, Field
from sqlalchemy import RowMapping

from orchestrator import manifest
from orchestrator.progress import remaining_s
from orchestrator.state.queries import Batch, BatchCounts, FailureGroup, JobHistory
from orchestrator.state.transitions import BatchStatus, Decision, JobState, Stage
from orchestrator.telling import batch_values, whole

T = TypeVar("T")
ID = Field(examples=["20261125-1f2e3d4c"])


class Counts(BaseModel):
    """Jobs by state; the six sum to `total`. `completed` is `succeeded` by another name."""

    total: int = Field(examples=[1000])
    pending: int = Field(examples=[600])
    queued: int = Field(examples=[60])
    running: int = Field(examples=[8])
    succeeded: int = Field(examples=[330])
    failed: int = Field(examples=[2])
    cancelled: int = Field(examples=[0])
    completed: int = Field(examples=[330])
    reused: int = Field(description="a part of succeeded", examples=[12])


class FailureShape(BaseModel):
    """Failed jobs of one code, with one of their messages."""

    code: str = Field(examples=["image_missing"])
    count: int = Field(examples=[2])
    message: str | None = Field(None, examples=["photos/7.jpg does not exist; correct the path or add the image"])


class BatchShape(BaseModel):
    """A batch."""

    id: str = ID
    object: Literal["batch"] = "batch"
    status: BatchStatus
    reason: str | None = Field(None, description="why it is paused or failed")
    request_counts: Counts
    created_at: int = Field(examples=[1_795_600_000])
    in_progress_at: int | None = None
    completed_at: int | None = None
    cancelled_at: int | None = None
    failed_at: int | None = None
    expires_at: int | None = Field(None, description="its deadline")
    priority: int = 0
    catalogue: str = Field(examples=["s3://shop/catalogue.csv"])
    options: dict[str, Any] = Field(description="what was asked for all rows", examples=[{"preset": "flat-lay"}])
    metadata: dict[str, str] = Field(examples=[{"season": "SS27"}])
    checkpoint: str = Field(description="as its server names it", examples=["black-forest-labs/FLUX.1-Kontext-dev"])
    checkpoint_revision: str
    numerics: str = Field(examples=["float32/v1"])
    results: str = Field(description="the folder of its pictures")
    manifest: str | None = Field(None, description="where its manifest lies once it has ended")
    manifest_url: str = Field(description="its manifest as it stands now", examples=["/v1/batches/…/manifest.jsonl"])
    errors: list[FailureShape] | None = Field(None, description="failed jobs by code; told of a single batch")
    rate_per_s: float | None = Field(None, description="jobs that end in a second, over two minutes or since it began")
    eta_s: float | None = Field(None, description="seconds until it ends at that rate")
    stage_seconds: dict[str, float] | None = Field(
        None, description="of work, by stage; told where `seconds` is asked for", examples=[{"sample": 812.5}]
    )


class JobShape(BaseModel):
    """One picture to make."""

    id: int = Field(examples=[4711])
    object: Literal["job"] = "job"
    batch_id: str = ID
    custom_id: str | None = Field(examples=["dress-0815"])
    line: int = Field(description="of the catalogue, from 1")
    take: int
    image: str | None
    state: JobState
    stage: Stage | None
    attempt: int = Field(description="raised each time the job is taken back; the fencing token of its writes")
    attempts: int
    code: str | None = None
    message: str | None = None
    result: str | None = Field(None, description="where the picture lies")
    result_url: str | None = Field(None, description="leads to the picture", examples=["/v1/jobs/4711/result"])
    sha256: str | None = None
    seed: int
    seconds: float | None = None
    reused: bool
    canvas: str | None = None
    revision: str = Field(description="of the checkpoint it is pinned to")
    recipe: str | None = None
    priority: int
    decision: Decision | None = None
    ended_at: int | None = None


class StageShape(BaseModel):
    """When a stage was worked on, and by whom."""

    stage: Stage
    began_at: float | None
    ended_at: float | None
    worker: str | None
    seconds: float | None


class AttemptShape(BaseModel):
    """An attempt that ended otherwise than in success."""

    attempt: int
    stage: str
    outcome: str = Field(examples=["retry"])
    worker: str | None
    code: str | None
    message: str | None
    began_at: float | None
    ended_at: float


class JobDetail(JobShape):
    """A job with its way so far."""

    given: dict[str, Any] = Field(description="the catalogue's own columns")
    recipe_body: dict[str, Any] | None = Field(description="everything asked of the model, defaults resolved")
    stages: list[StageShape]
    history: list[AttemptShape]
    takes: list[JobShape]


class Page(BaseModel, Generic[T]):
    """One page of a list. `next` is given back as `after`; a page may hold few entries, or none, and still lead on."""

    object: Literal["list"] = "list"
    data: list[T]
    has_more: bool
    next: str | None = Field(None, description="the cursor of the next page", examples=["WzE3LCAxXQ"])


def batch_shape(
    batch: Batch,
    counts: BatchCounts,
    failures: Sequence[FailureGroup] | None = None,
    rate_per_s: float | None = None,
    stage_seconds: Mapping[str, float] | None = None,
) -> BatchShape:
    """How a batch is told."""
    left_s = remaining_s(counts, rate_per_s)
    return BatchShape(
        **batch_values(batch, counts, failures, stage_seconds),
        manifest_url=f"/v1/batches/{batch.id}/manifest.jsonl",
        rate_per_s=None if rate_per_s is None else round(rate_per_s, 4),
        eta_s=None if left_s is None else round(left_s, 1),
    )


def batch_etag(batch: Batch, counts: BatchCounts) -> str:
    """What changes whenever what is told of a batch does; not the rate, which changes by itself."""
    told = (
        batch.id, batch.status.value, batch.reason, batch.priority, batch.deadline_at, batch.decisions, batch.reopened,
        sorted(vars(counts).items()),
    )  # fmt: skip
    return f'"{hashlib.sha256(repr(told).encode()).hexdigest()[:24]}"'


def job_shape(job: RowMapping, revision: str = "") -> JobShape:
    """How a job is told."""
    return JobShape(**_job_values(job, revision))


def job_detail(
    history: JobHistory, revision: str, recipe: Mapping[str, Any] | None, given: Mapping[str, Any]
) -> JobDetail:
    """How one job is told with all that is known of its way."""
    job = history.job
    stages = [
        StageShape(
            stage=stage,
            began_at=job[f"{stage}_from"],
            ended_at=job[f"{stage}_to"],
            worker=job[f"{stage}_by"],
            seconds=job[f"{stage}_s"],
        )
        for stage in Stage
        if job[f"{stage}_from"] is not None or job[f"{stage}_s"] is not None
    ]
    attempts = [
        AttemptShape(
            **{name: row[name] for name in AttemptShape.model_fields if name != "worker"}, worker=row["worker_id"]
        )
        for row in history.attempts
    ]
    return JobDetail(
        **_job_values(job, revision),
        given=dict(given),
        recipe_body=None if recipe is None else dict(recipe),
        stages=stages,
        history=attempts,
        takes=[job_shape(take) for take in history.takes],
    )


def _job_values(job: RowMapping, revision: str) -> dict[str, Any]:
    told = manifest.describe(job, revision)
    return {
        **told,
        "id": job["id"],
        "batch_id": job["batch_id"],
        "priority": job["priority"],
        "ended_at": whole(job["ended_at"]),
        "result_url": f"/v1/jobs/{job['id']}/result" if job["result"] else None,
    }
