"""Who works, and with what: workers alive and lately gone; presets by name; the theme of the pages."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Form, Query, Request, Response
from sqlalchemy import RowMapping

from orchestrator.api.access import Reader
from orchestrator.dashboard.page import THEME_COOKIE, THEMES, page_router, redirect, render
from orchestrator.dashboard.services import Services
from orchestrator.presets import PRESETS
from orchestrator.state import queries
from orchestrator.state.database import reading
from orchestrator.state.queries import pages

router = page_router()
GONE_S = 86_400.0
GONE_SHOWN = 20
YEAR_S = 365 * 86_400


@dataclass(frozen=True)
class HeldJob:
    """The first of the jobs that a worker holds."""

    id: int
    name: str


@dataclass(frozen=True)
class WorkerRow:
    """A worker as the page shows it; `lost` was silent beyond its lease, nobody saw it end."""

    id: str
    host: str
    stages: tuple[str, ...]
    device: str
    numerics: str
    rss_bytes: int
    started_at: float
    seen_at: float
    until: float
    lost: bool
    job: HeldJob | None
    jobs: int
    stage: str


@dataclass(frozen=True)
class Fleet:
    """All that the page shows."""

    now: float
    alive: tuple[WorkerRow, ...]
    gone: tuple[WorkerRow, ...]


@dataclass(frozen=True)
class PresetCard:
    """A preset as the page shows it."""

    name: str
    summary: str
    prompt: str
    options: tuple[tuple[str, str], ...]


@router.get("/workers")
def show_workers(
    caller: Reader, request: Request, kept: Services, part: Annotated[str, Query(max_length=10)] = ""
) -> Response:
    """The workers, or the part of the page that changes by itself."""
    lease_s = kept.opened.settings.lease_s
    with reading(kept.opened.engine).connect() as connection:
        now_s = queries.read_clock(connection)
        rows = pages.list_workers(connection, ended_within_s=GONE_S)
        held: dict[str, list[RowMapping]] = {}
        for job in pages.running_jobs(connection):
            held.setdefault(job["worker_id"], []).append(job)
    alive: list[WorkerRow] = []
    gone: list[WorkerRow] = []
    for row in rows:
        jobs = held.get(row["id"], [])
        lost = row["ended_at"] is None and row["seen_at"] < now_s - lease_s
        first = HeldJob(jobs[0]["id"], jobs[0]["custom_id"] or f"line {jobs[0]['line']}") if jobs else None
        worker = WorkerRow(
            row["id"], row["host"], tuple(row["stages"].split(",")), row["device"], row["numerics"], row["rss_bytes"],
            row["started_at"], row["seen_at"], row["ended_at"] or row["seen_at"], lost, first, len(jobs),
            jobs[0]["stage"] if jobs else "",
        )  # fmt: skip
        (gone if lost or row["ended_at"] is not None else alive).append(worker)
    view = Fleet(now_s, tuple(alive), tuple(gone[:GONE_SHOWN]))
    return render(request, caller, "parts/workers_live.html" if part else "workers.html", view, part=part)


@router.get("/presets")
def show_presets(caller: Reader, request: Request) -> Response:
    """The edits there are by name."""
    cards = [
        PresetCard(
            preset.name, preset.summary, preset.prompt.strip(),
            tuple((name, str(value)) for name, value in preset.options.items()),
        )
        for preset in PRESETS.values()
    ]  # fmt: skip
    return render(request, caller, "presets.html", {"presets": cards})


@router.post("/theme")
def choose_theme(
    _: Reader,
    theme: Annotated[str, Form(max_length=10)],
    back: Annotated[str, Form(max_length=2000)] = "/",
) -> Response:
    """Light, dark, or as the system is."""
    response = redirect(back)
    if theme in THEMES:
        response.set_cookie(THEME_COOKIE, theme, max_age=YEAR_S, samesite="lax", path="/")
    else:
        response.delete_cookie(THEME_COOKIE, path="/")
    return response
