"""A job as pages show it: its name, its state in words, and which pictures there are. Pure."""

from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

from sqlalchemy import RowMapping

from orchestrator.redaction import redact_cell
from orchestrator.state.transitions import ACTIVE, JobState

STAGES = ("encode", "sample", "decode")
VERSION_CHARACTERS = 12


@dataclass(frozen=True)
class JobCard:
    """One job, ready for a template."""

    id: int
    name: str
    line: int
    take: int
    state: str
    state_text: str
    decision: str | None
    code: str | None
    message: str
    seconds: float | None
    ended_at: float | None
    seed: int
    reused: bool
    good: bool
    has_source: bool
    has_result: bool
    no_source: str
    no_result: str
    host: str
    source_version: str
    result_version: str

    @property
    def mark(self) -> str:
        """Its id and how its frame looks on a sheet, so that a page can tell what it shows already."""
        return f"{self.id}:{self.state_text}:{self.decision or ''}"

    def thumbnail(self, kind: str, width_px: int) -> str:
        """The address of its source's or its result's thumbnail; another content has another one."""
        version = self.source_version if kind == "source" else self.result_version
        return f"/jobs/{self.id}/{kind}.webp?w={width_px}" + (f"&v={version}" if version else "")

    @property
    def moving(self) -> bool:
        """Whether it will change by itself."""
        return self.state in ACTIVE

    def may(self, action: str) -> bool:
        """Whether approve, reject, regenerate or retry can be asked of it."""
        if action in ("approve", "reject"):
            return self.state == JobState.SUCCEEDED
        if action == "regenerate":
            return self.good and not self.moving
        return self.good and self.state in (JobState.FAILED, JobState.CANCELLED)


def job_card(job: RowMapping) -> JobCard:
    """A row of the jobs as a card."""
    state, image = JobState(job["state"]), job["image"] or ""
    spent = [job[f"{stage}_s"] for stage in STAGES if job[f"{stage}_s"] is not None]
    held = state in (JobState.QUEUED, JobState.RUNNING)
    unreadable = state is JobState.FAILED and (job["code"] or "").startswith("image_")
    unread = on_the_web(image) and job["image_sha256"] is None
    return JobCard(
        id=job["id"], name=redact_cell(job["custom_id"] or "") or f"line {job['line']}", line=job["line"],
        take=job["take"], state=state, state_text=f"{state}: {job['stage']}" if held else state.value,
        decision=job["decision"], code=job["code"], message=job["message"] or "",
        seconds=sum(spent) if spent else None, ended_at=job["ended_at"], seed=job["seed"], reused=bool(job["reused"]),
        good=job["recipe_id"] is not None, has_source=bool(image) and not unread and not unreadable,
        has_result=job["result"] is not None, no_source=_no_source(image, job["code"] if unreadable else None),
        no_result=_absent(state), host=_host(image),
        source_version=version_of(job["image_sha256"]), result_version=version_of(job["sha256"]),
    )  # fmt: skip


def version_of(sha256: str | None) -> str:
    """What tells a content from others in a picture's address, so that a browser keeps each by itself; "": unknown."""
    return (sha256 or "")[:VERSION_CHARACTERS]


def on_the_web(image: str) -> bool:
    """Whether a source lies where only workers go, and their guard decides."""
    return "://" in image and not image.lower().startswith("s3://")


def _no_source(image: str, code: str | None) -> str:
    """What stands where there is no source."""
    if code is not None:
        return "missing" if code == "image_missing" else "broken"
    return "on the web" if on_the_web(image) else "no image"


def _host(image: str) -> str:
    """Whose a source on the web is; empty for all others."""
    with suppress(ValueError):
        return (urlsplit(image).hostname or "") if on_the_web(image) else ""
    return ""


def _absent(state: JobState) -> str:
    """What stands where there is no result."""
    return {JobState.FAILED: "failed", JobState.CANCELLED: "cancelled", JobState.RUNNING: "in work"}.get(state, "waits")
