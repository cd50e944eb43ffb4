"""New batch: drop files, say what the columns mean and what to do, see what would become of it, start.

Owns the two steps and their forms. What was dropped is a draft; what is chosen for it stands in the address, so that
looking again, going back and sharing cost nothing. Nothing is made before Start.
"""

import hashlib
import json
import secrets
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from fastapi import Form, Query, Request, Response
from fastapi import Path as UrlPart
from fastapi.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile

from orchestrator import drafts, submission
from orchestrator.api import audit
from orchestrator.api.access import Submitter
from orchestrator.api.problems import Problem
from orchestrator.batches import DryRun, dry_run
from orchestrator.catalogs import Catalogue, CatalogueError
from orchestrator.catalogs.catalogue import IMAGE
from orchestrator.dashboard.page import page_router, query_of, redirect, render
from orchestrator.dashboard.services import Kept, Services
from orchestrator.drafts import Draft, DraftError, SentFile
from orchestrator.presets import PRESETS
from orchestrator.recipes import PER_BATCH, OptionError
from orchestrator.redaction import redact
from orchestrator.submission import Estimate

router = page_router()
uploading = page_router()
MOST_FILES = 1_000
MAPPED = (
    (IMAGE, "Picture", "path, s3:// or https://"), ("custom_id", "Id", "unset: the picture's name"),
    ("prompt", "Prompt", "unset: as below"), ("preset", "Preset", "unset: as below"), ("seed", "Seed", "unset: 0"),
)  # fmt: skip
FIRST_PRESET = next(iter(PRESETS))
OPTIONS = ("steps", "seed", "guidance", "deadline", "max_error_rate")
ERRORS_SHOWN, SAMPLE_CHARACTERS = 50, 60


@dataclass(frozen=True)
class ColumnChoice:
    """What one meaning is read from."""

    meaning: str
    label: str
    hint: str
    chosen: str


@dataclass(frozen=True)
class Chosen:
    """What was chosen for a draft, as the address tells it."""

    columns: dict[str, str]
    preset: str
    prompt: str
    priority: int
    options: dict[str, str]


@dataclass(frozen=True)
class NewBatch:
    """All that the second step shows. `problem` says why there is no dry run."""

    draft: Draft
    query: str
    names: tuple[str, ...]
    sample: tuple[tuple[str, ...], ...]
    mapped: tuple[ColumnChoice, ...]
    chosen: Chosen
    presets: tuple[tuple[str, str], ...]
    found: DryRun | None
    estimate: Estimate | None
    problem: str
    good: int
    once: str


@router.get("/new")
def show_new(caller: Submitter, request: Request, preset: Annotated[str, Query(max_length=100)] = "") -> Response:
    """The first step: what to drop."""
    return render(request, caller, "new.html", {"preset": preset if preset in PRESETS else ""})


@uploading.post("/new")
async def drop_files(caller: Submitter, request: Request, kept: Services) -> Response:
    """Keep what was dropped as a draft, and go on to the second step."""
    with tempfile.TemporaryDirectory(prefix="kontext-dropped-") as folder:
        async with request.form(max_files=MOST_FILES, max_fields=20) as form:
            preset = str(form.get("preset") or "")
            sent = []
            for number, file in enumerate(form.getlist("files")):
                if not isinstance(file, UploadFile) or not file.filename:
                    continue
                path = Path(folder) / str(number)
                with path.open("wb") as target:
                    while chunk := await file.read(1 << 20):
                        target.write(chunk)
                sent.append(SentFile(file.filename, path))
        try:
            draft = await run_in_threadpool(drafts.save, sent, kept.opened.settings)
        except DraftError as error:
            raise Problem(422, "bad_draft", str(error)) from error
    return redirect(f"/new/{draft.id}{query_of({'preset': preset if preset in PRESETS else ''})}")


@router.get("/new/{draft_id}")
def show_draft(
    caller: Submitter, request: Request, kept: Services, draft_id: Annotated[str, UrlPart(max_length=64)]
) -> Response:
    """The second step: what the columns mean, what to do, and what would become of it."""
    draft = _load(kept, draft_id)
    with _Rows(draft, kept) as rows:
        names, sample = kept.findings.recall(draft.id, rows.columns)
        chosen = _read(request.query_params, names)
        found, guess, problem = _try(kept, rows, chosen)
    mapped = (
        tuple(ColumnChoice(m, label, hint, chosen.columns.get(m, "")) for m, label, hint in MAPPED) if names else ()
    )
    view = NewBatch(
        draft, f"?{request.url.query}" if request.url.query else "", tuple(names),
        tuple(map(tuple, sample)), mapped, chosen,
        tuple((preset.name, preset.summary) for preset in PRESETS.values()), found, guess, problem,
        found.rows - found.bad if found else 0, secrets.token_hex(8),
    )  # fmt: skip
    return render(request, caller, "new_draft.html", view)


@router.post("/new/{draft_id}")
def start(
    caller: Submitter,
    request: Request,
    kept: Services,
    draft_id: Annotated[str, UrlPart(max_length=64)],
    once: Annotated[str, Form(max_length=40)] = "",
) -> Response:
    """Make the batch that the address tells of, and go to its page. A form sent twice makes it once."""
    draft = _load(kept, draft_id)
    settings = kept.opened.settings
    with _Rows(draft, kept) as rows:
        chosen = _read(request.query_params, rows.columns()[0])
        wanted = submission.make_request(settings, _asked(chosen), chosen.priority)
        catalogue = rows.open(chosen)
        submission.check_prompted(catalogue, wanted.asked)
        digest = hashlib.sha256(f"{draft.id}?{request.url.query}".encode()).hexdigest()
        key = (caller.id, f"draft:{once}", digest) if once else None
        told = {"catalogue": draft.name, "preset": chosen.preset, "prompt": chosen.prompt[:200]}
        noted = audit.line(caller, "batch.create", **told)
        batch = submission.submit(kept.opened.engine, catalogue, wanted, {}, key, note=noted)
    return redirect(f"/batches/{batch.id}")


class _Rows:
    """The rows of a draft, on this machine's disk from when they are first asked for until the context ends."""

    def __init__(self, draft: Draft, kept: Kept) -> None:
        self.draft, self._settings, self._opened = draft, kept.opened.settings, ExitStack()

    @cached_property
    def path(self) -> Path:
        return self._opened.enter_context(drafts.fetch(self.draft, self._settings))

    def columns(self) -> tuple[list[str], list[list[str]]]:
        """The header of a table and the beginning of its first rows; nothing where keys are columns already."""
        if self.draft.kind not in drafts.TABLES:
            return [], []
        names, sample = drafts.read_columns(self.path)
        return names, [[cell[:SAMPLE_CHARACTERS] for cell in row] for row in sample]

    def open(self, chosen: Chosen) -> Catalogue:
        """The draft as a catalogue."""
        return drafts.open_draft(self.draft, self.path, chosen.columns, self._settings)

    def __enter__(self) -> "_Rows":
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()


def _load(kept: Kept, draft_id: str) -> Draft:
    try:
        return drafts.load(draft_id, kept.opened.settings)
    except DraftError as error:
        raise Problem(404, "not_found", str(error)) from error


def _read(given: Mapping[str, str], names: Sequence[str]) -> Chosen:
    """What the address chooses; as guessed from the columns while it does not yet. Raises Problem 422."""
    prompt, preset = given.get("prompt", "").strip(), given.get("preset", "")
    if "choose" in given:
        columns = {name: given.get(f"column.{name}", "") for name, _, _ in MAPPED}
    else:
        columns = drafts.guess_columns(names)
        preset = preset or ("" if {"prompt", "preset"} & set(columns) else FIRST_PRESET)
    try:
        priority = int(given.get("priority") or 0)
    except ValueError:
        raise Problem(422, "bad_priority", "priority: expected a whole number from -100 to 100") from None
    if not -100 <= priority <= 100:
        raise Problem(422, "bad_priority", f"priority: expected -100 to 100, not {priority}")
    return Chosen(
        {name: column for name, column in columns.items() if column}, "" if prompt else preset, prompt, priority,
        {name: given[name].strip() for name in OPTIONS if given.get(name, "").strip()},
    )  # fmt: skip


def _asked(chosen: Chosen) -> dict[str, Any]:
    named = {"preset": chosen.preset, "prompt": chosen.prompt}
    return submission.read_asked({**chosen.options, **{name: value for name, value in named.items() if value}})


def _try(kept: Kept, rows: _Rows, chosen: Chosen) -> tuple[DryRun | None, Estimate | None, str]:
    """What would become of it, and how long it would take; or what has to be chosen first."""
    settings = kept.opened.settings
    try:
        wanted = submission.make_request(settings, _asked(chosen), chosen.priority)

        def look() -> DryRun:
            catalogue = rows.open(chosen)
            submission.check_prompted(catalogue, wanted.asked)
            return dry_run(
                catalogue, wanted.asked, wanted.checkpoint.defaults, wanted.pin_lora, most_errors=ERRORS_SHOWN
            )  # fmt: skip

        of_rows = {name: value for name, value in wanted.asked.items() if name not in PER_BATCH}
        key = json.dumps([rows.draft.id, chosen.columns, of_rows, wanted.checkpoint.revision], sort_keys=True)
        found = kept.findings.recall(key, look)
    except (CatalogueError, OptionError) as error:
        return None, None, redact(str(error))
    revision = wanted.checkpoint.revision
    return found, submission.estimate(kept.opened.engine, settings, revision, found.rows - found.bad), ""
