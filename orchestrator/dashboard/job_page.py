"""One job: before and after, its recipe, its takes, its way through the stages, and what happened to it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from fastapi import Request, Response
from sqlalchemy import RowMapping

from orchestrator.api.access import Reader
from orchestrator.api.problems import Problem
from orchestrator.dashboard.charts import Span, place
from orchestrator.dashboard.finding import JobId
from orchestrator.dashboard.job_card import STAGES, JobCard, job_card
from orchestrator.dashboard.page import page_router, render
from orchestrator.dashboard.services import Services
from orchestrator.dashboard.wording import duration, last_part
from orchestrator.presets import PRESETS
from orchestrator.redaction import redact, redact_cell
from orchestrator.state import queries
from orchestrator.state.database import reading
from orchestrator.state.transitions import JobState

router = page_router()
# Told by the waiting that they end, not by a span of their own.
LEAST_WAIT_S = 0.05
OUTCOMES: Mapping[str, str] = {
    "retry": "failed, tried again", "fail": "failed", "hand_back": "handed back, its worker stopped",
    "crash": "taken back, its worker died or hung", "lose_handoff": "handoff was lost, back to encode",
    "cancel": "cancelled",
}  # fmt: skip


@dataclass(frozen=True)
class LogLine:
    """Something that happened to the job."""

    at_s: float
    text: str
    detail: str = ""


@dataclass(frozen=True)
class JobView:
    """All that the page shows."""

    job: JobCard
    batch_id: str
    batch_name: str
    picture_note: str
    takes: tuple[JobCard, ...]
    way: tuple[Span, ...]
    not_begun: str
    recipe_id: str | None
    prompt: str
    prompt_title: str
    recipe: tuple[tuple[str, str], ...]
    given: tuple[tuple[str, str], ...]
    log: tuple[LogLine, ...]


@router.get("/jobs/{job_id}")
def show_job(caller: Reader, request: Request, kept: Services, job_id: JobId) -> Response:
    """A job, with all that is known of it."""
    with reading(kept.opened.engine).connect() as connection:
        history = queries.job_history(connection, job_id)
        if history is None:
            raise Problem(404, "not_found", f"there is no job {job_id}")
        job, takes, ended = history.job, history.takes, history.attempts
        batch = queries.read_batch(connection, job["batch_id"])
        body = queries.read_recipe(connection, job["recipe_id"]) if job["recipe_id"] else {}
    assert batch is not None
    card = job_card(job)
    body = body or {}
    preset = next((preset for preset in PRESETS.values() if preset.prompt == body.get("prompt")), None)
    view = JobView(
        job=card, batch_id=batch.id, batch_name=last_part(redact(batch.catalogue)),
        picture_note=f"Drag, or use the arrow keys. {job['canvas']} px" if card.has_source and card.has_result
        else "There is no result yet" if card.moving else "There is no result",
        takes=tuple(map(job_card, takes)), way=tuple(place(trace(job, ended))),
        not_begun="A bad row is not worked on: correct the catalogue and submit it again." if not card.good
        else "It waits for a worker to claim it." if card.moving else "No worker has claimed it.",
        recipe_id=job["recipe_id"], prompt=redact(body.get("prompt") or "").strip(),
        prompt_title=f"Preset {preset.name}" if preset else "Prompt",
        recipe=_recipe(job, body), given=_given(job), log=tuple(_log(job, ended, batch.created_at)),
    )  # fmt: skip
    return render(request, caller, "job.html", view)


def trace(job: RowMapping, ended: Sequence[RowMapping]) -> list[Span]:
    """What was done for a job, attempts that failed and stages that are done, and how long it waited in between."""
    spans = [
        Span(end["stage"], "ended", end["worker_id"], end["attempt"], end["began_at"], end["ended_at"],
             note=OUTCOMES.get(end["outcome"], end["outcome"]))
        for end in ended
        if end["began_at"] is not None and end["outcome"] != "fail"
    ]  # fmt: skip
    spans += [
        Span(stage, "ended" if _failed_in(job, stage) else stage, job[f"{stage}_by"], job["attempt"],
             job[f"{stage}_from"], job[f"{stage}_to"], note="failed" if _failed_in(job, stage) else "")
        for stage in STAGES
        if job[f"{stage}_from"] is not None and job[f"{stage}_to"] is not None
    ]  # fmt: skip
    spans.sort(key=lambda span: span.from_s)
    waits = [
        Span("waiting", "wait", None, None, before.to_s, after.from_s)
        for before, after in pairwise(spans)
        if after.from_s - before.to_s > LEAST_WAIT_S
    ]
    return spans + waits


def _failed_in(job: RowMapping, stage: str) -> bool:
    return bool(job["state"] == JobState.FAILED and job["stage"] == stage and job["code"] != "expired")


def _recipe(job: RowMapping, body: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """What was asked of the model beside the prompt."""
    if not body:
        return ()
    told = {"Seed": job["seed"], "Steps": body["steps"], "Guidance": body["guidance"], "Sampler": body["sampler"],
            "Fit": body["fit"], "Canvas": job["canvas"] or ""}  # fmt: skip
    if body["true_cfg"] > 1:
        told |= {"True CFG": body["true_cfg"], "Negative prompt": body["negative_prompt"] or ""}
    if body.get("lora"):
        told |= {"LoRA": redact(body["lora"]), "LoRA scale": body["lora_scale"]}
    told |= {"Fingerprint": (job["fingerprint"] or "")[:16], "Result": redact(job["result"] or ""),
             "SHA-256": (job["sha256"] or "")[:16]}  # fmt: skip
    return tuple((name, str(value)) for name, value in told.items() if value != "")


def _given(job: RowMapping) -> tuple[tuple[str, str], ...]:
    """The row's own cells that nothing else on the page tells."""
    cells: dict[str, Any] = {"image": job["image"], **(json.loads(job["given"]) if job["given"] else {})}
    return tuple((name, redact_cell(str(value))) for name, value in cells.items() if value is not None)


def _log(job: RowMapping, ended: Sequence[RowMapping], created_at: float) -> list[LogLine]:
    """What happened, in order, from what SQL keeps."""
    lines = [LogLine(created_at, "submitted", f"line {job['line']} of the catalogue")]
    for stage in STAGES:
        if job[f"{stage}_from"] is not None:
            lines.append(LogLine(job[f"{stage}_from"], f"{stage} began", f"worker {job[f'{stage}_by']}"))
        if job[f"{stage}_to"] is not None and not _failed_in(job, stage):
            share = f"{duration(job[f'{stage}_s'])} of the model's time" if job[f"{stage}_s"] else ""
            lines.append(LogLine(job[f"{stage}_to"], f"{stage} ended", share))
    for end in ended:
        what = OUTCOMES.get(end["outcome"], end["outcome"])
        why = f"{end['code']}: {end['message']}" if end["code"] else ""
        lines.append(LogLine(end["ended_at"], f"attempt {end['attempt'] + 1}, {end['stage']}: {what}", why))
    if job["ended_at"] is not None:
        text = "reused, nothing was sampled" if job["reused"] else str(job["state"])
        lines.append(LogLine(job["ended_at"], text, job["code"] or ""))
    if job["decided_at"] is not None:
        lines.append(LogLine(job["decided_at"], job["decision"] or "decision taken back"))
    return sorted(lines, key=lambda line: line.at_s)
