"""The manifest: one line a job, in the catalogue's order, as JSONL and as CSV that mirrors the catalogue.

Owns what a job looks like to the outside, for the manifest, the command line and the API alike. Streams: constant
memory at any number of jobs.
"""

import csv
import io
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import Any, TextIO

from sqlalchemy import Engine, RowMapping

from orchestrator.redaction import redact_cell
from orchestrator.settings import Settings
from orchestrator.state import queries
from orchestrator.state.database import reading
from orchestrator.state.queries import Batch
from orchestrator.state.transitions import BatchStatus, Decision, JobState
from orchestrator.storage import open_store

OUTCOME = (
    "line", "take", "status", "code", "message", "result", "sha256", "seed", "attempts", "seconds", "reused",
    "revision", "recipe", "decision", "approved_take",
)  # fmt: skip

PIECE_ROWS = 200


def describe(job: RowMapping, revision: str) -> dict[str, Any]:
    """One job as people and programs outside see it."""
    seconds = [job[f"{stage}_s"] for stage in ("encode", "sample", "decode")]
    return {
        "custom_id": job["custom_id"],
        "line": job["line"],
        "take": job["take"],
        "image": job["image"] and redact_cell(job["image"]),
        "state": job["state"],
        "stage": job["stage"] if job["state"] in (JobState.QUEUED, JobState.RUNNING) else None,
        "attempt": job["attempt"],
        "attempts": job["attempt"] + 1 if job["recipe_id"] else 0,
        "code": job["code"],
        "message": job["message"],
        "result": job["result"],
        "sha256": job["sha256"],
        "seed": job["seed"],
        "seconds": round(sum(filter(None, seconds)), 4) if any(s is not None for s in seconds) else None,
        "reused": bool(job["reused"]),
        "canvas": job["canvas"] or None,
        "revision": revision,
        "recipe": job["recipe_id"],
        "decision": job["decision"],
    }


def describe_jobs(engine: Engine, batch: Batch, states: Sequence[JobState] = ()) -> Iterator[dict[str, Any]]:
    """All jobs of a batch, described, in the catalogue's order."""
    for job in queries.stream_jobs(engine, batch.id, states=states):
        yield describe(job, batch.revision)


class Overtaken(Exception):
    """What was read of a batch is no manifest of it: it was reopened meanwhile, or its rows go. Nothing was stored."""


def write_manifest(engine: Engine, batch: Batch, settings: Settings) -> str:
    """Store manifest.jsonl and manifest.csv beside the results; gives the URI of the JSONL.

    Rewritten as a whole: the last writer's view is the newest. Raises StorageError, Overtaken.
    """
    store = open_store(batch.results_uri, settings)
    with tempfile.TemporaryDirectory() as folder:
        lines, table = Path(folder) / "manifest.jsonl", Path(folder) / "manifest.csv"
        write_files(engine, batch, lines, table)
        _check_whole(engine, batch)
        store.replace("manifest.jsonl", lines, content_type="application/x-ndjson")
        store.replace("manifest.csv", table, content_type="text/csv; charset=utf-8")
    return store.locate("manifest.jsonl")


def _check_whole(engine: Engine, batch: Batch) -> None:
    """Raises Overtaken unless every row of the batch was there while they were read.

    Its deletion is marked before the first row goes: what is not marked now has lost none.
    """
    with reading(engine).connect() as connection:
        found = queries.read_batch(connection, batch.id)
    if found is None or found.status == BatchStatus.DELETING or found.reopened != batch.reopened:
        raise Overtaken(f"batch {batch.id} was deleted or reopened while its manifest was written")


def write_files(engine: Engine, batch: Batch, lines: Path, table: Path) -> None:
    """Write both forms of the manifest to local files."""
    with (
        # One cell that is no text must not keep a whole batch from its manifest, hence `replace`.
        lines.open("w", encoding="utf-8", errors="replace") as lines_file,
        table.open("w", encoding="utf-8", errors="replace", newline="") as table_file,
    ):
        form = _Table(batch, table_file)
        for told, given in _tell_rows(engine, batch):
            form.write(told, given)
            lines_file.write(_write_line(told, given))


def stream_lines(engine: Engine, batch: Batch) -> Iterator[bytes]:
    """The manifest as it stands now, as JSONL, in pieces."""
    for chunk in _pieces(_write_line(told, given) for told, given in _tell_rows(engine, batch)):
        yield chunk.encode("utf-8", "replace")


def stream_table(engine: Engine, batch: Batch) -> Iterator[bytes]:
    """The manifest as it stands now, as CSV, in pieces."""
    buffer = io.StringIO()
    form = _Table(batch, buffer)

    def take() -> str:
        text = buffer.getvalue()
        buffer.seek(0)
        buffer.truncate()
        return text

    def write() -> Iterator[str]:
        yield take()
        for told, given in _tell_rows(engine, batch):
            form.write(told, given)
            yield take()

    for chunk in _pieces(write()):
        yield chunk.encode("utf-8", "replace")


def _pieces(texts: Iterator[str]) -> Iterator[str]:
    """Small texts joined, so that each is worth a packet."""
    while piece := "".join(islice(texts, PIECE_ROWS)):
        yield piece


def _tell_rows(engine: Engine, batch: Batch) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """What is told of each job, and the catalogue's own values of its row."""
    recipes = _Recipes(engine)
    for job, approved_take in _with_approved_take(queries.stream_jobs(engine, batch.id)):
        told = {**describe(job, batch.revision), "approved_take": approved_take}
        told["status"] = told.pop("state")
        yield told, _as_given(job, recipes)


class _Table:
    """The CSV form: the catalogue's columns, then ours under names that do not stand there already."""

    def __init__(self, batch: Batch, file: TextIO) -> None:
        mirrored = [name for name in batch.columns if name]
        self._outcome = {name: name if name == "seed" else _name_apart(name, mirrored) for name in OUTCOME}
        self._header = [*(["custom_id"] if "custom_id" not in mirrored else []), *mirrored]
        self._header += [name for name in self._outcome.values() if name not in self._header]
        self._writer = csv.DictWriter(file, self._header, extrasaction="ignore", restval="")
        self._writer.writeheader()

    def write(self, told: dict[str, Any], given: dict[str, Any]) -> None:
        row = {**given, "image": told["image"], "custom_id": told["custom_id"]}
        row |= {self._outcome[name]: told[name] for name in OUTCOME if name != "seed" or "seed" not in given}
        self._writer.writerow({name: "" if row.get(name) is None else row.get(name) for name in self._header})


def _write_line(told: dict[str, Any], given: dict[str, Any]) -> str:
    line = {name: value for name, value in told.items() if name not in ("stage", "attempt")}
    return json.dumps(line | ({"given": given} if given else {}), ensure_ascii=False) + "\n"


def _with_approved_take(jobs: Iterator[RowMapping]) -> Iterator[tuple[RowMapping, int | None]]:
    """Each job with the take of its row that was approved, if one was."""
    for _, takes in groupby(jobs, key=itemgetter("line")):
        row = list(takes)
        approved = next((job["take"] for job in row if job["decision"] == Decision.APPROVED), None)
        for job in row:
            yield job, approved


def _name_apart(name: str, taken: Sequence[str]) -> str:
    while name in taken:
        name = f"kontext_{name}"
    return name


class _Recipes:
    """Recipe bodies by id, the most used kept."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.read = lru_cache(1000)(self._read)

    def _read(self, recipe_id: str) -> Mapping[str, Any]:
        with reading(self._engine).connect() as connection:
            return queries.read_recipe(connection, recipe_id) or {}


def read_given(job: RowMapping) -> dict[str, Any]:
    """The catalogue's own columns of a row, without what other columns and the recipe tell."""
    given: dict[str, Any] = json.loads(job["given"]) if job["given"] else {}
    return {name: redact_cell(value) if isinstance(value, str) else value for name, value in given.items()}


def _as_given(job: RowMapping, recipes: _Recipes) -> dict[str, Any]:
    """The catalogue's own values of a row; prompts, which many rows share, come from the recipe."""
    given: dict[str, Any] = json.loads(job["given"]) if job["given"] else {}
    if job["recipe_id"]:
        body = recipes.read(job["recipe_id"])
        names = ("negative_prompt",) if "preset" in given else ("prompt", "negative_prompt")
        given |= {name: body[name] for name in names if body.get(name)}
    return {name: redact_cell(value) if isinstance(value, str) else value for name, value in given.items()}
