"""`POST /v1/batches`: a batch of JSON items, of a file that was sent, or of a catalogue that lies somewhere.

Owns the reading of the body, which goes to a temporary file as it comes: memory does not grow with it. 202 means that
every row is stored. Refuses catalogues on the server's own disk to all but administrators.
"""

import hashlib
import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from fastapi import Header, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, Field, ValidationError
from starlette.datastructures import UploadFile

from orchestrator import submission
from orchestrator.access.scopes import Scope
from orchestrator.api import audit
from orchestrator.api.access import CSRF_FIELD, Caller, Submitter, open_router
from orchestrator.api.problems import Problem
from orchestrator.api.resources import Open, Resources
from orchestrator.api.shapes import BatchShape, batch_etag, batch_shape
from orchestrator.api.submit_body import BODY
from orchestrator.batches import dry_run
from orchestrator.catalogs import Catalogue, CatalogueError, open_catalogue, relayed
from orchestrator.catalogs.items import split_items
from orchestrator.catalogs.sent import Sent, open_items, open_sent, unpack_images
from orchestrator.settings import Settings
from orchestrator.storage import open_store
from orchestrator.tallies import Tallies

router = open_router(prefix="/v1/batches", tags=["batches"])


class Asked(BaseModel):
    """What is asked of a batch as a whole."""

    model_config = {"extra": "forbid"}
    catalogue: str | None = Field(None, min_length=1, max_length=2000)
    preset: str | None = Field(None, max_length=100)
    prompt: str | None = Field(None, max_length=10_000)
    options: dict[str, str | int | float | None] = Field({}, max_length=50)
    priority: int = Field(0, ge=-100, le=100)
    deadline: str | None = Field(None, max_length=100)
    max_error_rate: float | None = Field(None, ge=0, le=1)
    metadata: dict[str, str] | None = None
    dry_run: bool = False


class RowError(BaseModel):
    """What is wrong with one row."""

    line: int = Field(examples=[3])
    custom_id: str | None
    code: str = Field(examples=["missing_image"])
    message: str = Field(examples=["items, line 3, column image: the cell is empty; give a path or a URI"])


class DryRunShape(BaseModel):
    """What the request would become; no batch was made."""

    object: str = "dry_run"
    rows: int = Field(examples=[1000])
    bad: int = Field(examples=[1])
    recipes: int = Field(examples=[1])
    errors: list[RowError]
    warnings: list[str]
    estimated_seconds: float | None = Field(description="of work, by what recent jobs took", examples=[5900.0])
    estimated_wall_s: float | None = Field(description="until the end, with the workers that live now")
    estimated_cost: float | None = Field(description="by KONTEXT_COST_PER_HOUR", examples=[4.1])
    bytes_sent: int = Field(examples=[120_000])


@dataclass
class Sending:
    """A request as it came: what is asked, and the file that came with it."""

    folder: Path
    asked: Asked = field(default_factory=Asked)
    body: Path | None = None
    name: str = ""
    sha256: str = ""
    size: int = 0


@router.post(
    "",
    status_code=202,
    response_model=BatchShape,
    openapi_extra=BODY,
    responses={
        415: {"description": "neither JSON nor a form"},
        200: {"model": DryRunShape, "description": "a dry run: what the request would become"},
    },
)
async def create_batch(
    caller: Submitter,
    opened: Open,
    request: Request,
    response: Response,
    dry: Annotated[bool, Query(alias="dry_run", description="check every row; make no batch")] = False,
    idempotency_key: Annotated[str | None, Header(min_length=1, max_length=200, examples=["night-2026-11-25"])] = None,
) -> Any:
    """Make a batch. The same `Idempotency-Key` with the same body gives the same batch, however often it is sent."""
    with tempfile.TemporaryDirectory(prefix="kontext-sent-") as folder:
        sending = await _receive(request, Path(folder))
        answer = await run_in_threadpool(_answer, opened, caller, sending, dry, idempotency_key)
    if isinstance(answer, DryRunShape):
        return Response(answer.model_dump_json(), media_type="application/json")
    shape, etag = answer
    response.headers["etag"], response.headers["location"] = etag, f"/v1/batches/{shape.id}"
    return shape


async def _receive(request: Request, folder: Path) -> Sending:
    """Take the body as it comes. Raises Problem for one of another kind."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        return await _receive_json(request, folder)
    if kind == "multipart/form-data":
        return await _receive_form(request, folder)
    raise Problem(415, "unsupported_media_type", "send application/json with items, or multipart/form-data with a file")


async def _receive_json(request: Request, folder: Path) -> Sending:
    digest, size, path = hashlib.sha256(), 0, folder / "body.json"
    with path.open("wb") as file:
        async for chunk in request.stream():
            digest.update(chunk)
            size += len(chunk)
            file.write(chunk)
    lines = folder / "items.jsonl"
    members, _ = await run_in_threadpool(split_items, path, lines)
    has_items = "items" in members
    members.pop("items", None)
    asked = _validate(members)
    if has_items == (asked.catalogue is not None):
        raise Problem(422, "no_rows", "give either items or catalogue")
    return Sending(folder, asked, lines if has_items else None, "", digest.hexdigest(), size)


async def _receive_form(request: Request, folder: Path) -> Sending:
    async with request.form(max_files=1, max_fields=20) as form:
        file = form.get("file")
        if not isinstance(file, UploadFile):
            raise Problem(422, "no_rows", "file: send a catalogue or a ZIP of images in the field `file`")
        asked = _read_fields({name: value for name, value in form.items() if name not in ("file", CSRF_FIELD)})
        path, digest, size = folder / "sent", hashlib.sha256(asked.model_dump_json().encode()), 0
        with path.open("wb") as target:
            while chunk := await file.read(1 << 20):
                digest.update(chunk)
                size += len(chunk)
                target.write(chunk)
        return Sending(folder, asked, path, file.filename or "", digest.hexdigest(), size)


def _read_fields(fields: dict[str, Any]) -> Asked:
    members = {name: value for name, value in fields.items() if value != ""}
    for name in ("options", "metadata"):
        if isinstance(text := members.get(name), str):
            try:
                members[name] = json.loads(text)
            except ValueError as error:
                raise Problem(422, "invalid", f"{name}: expected a JSON object: {error}") from None
    asked = _validate(members)
    if asked.catalogue is not None:
        raise Problem(422, "no_rows", "give either a file or catalogue")
    return asked


def _validate(members: dict[str, Any]) -> Asked:
    try:
        return Asked.model_validate(members)
    except ValidationError as error:
        errors = [
            {"where": ".".join(map(str, found["loc"])), "message": found["msg"]} for found in error.errors()[:100]
        ]
        first = f"{errors[0]['where']}: {errors[0]['message']}"
        raise Problem(422, "invalid", first, errors=errors) from None


def _answer(
    opened: Resources, caller: Caller, sending: Sending, dry: bool, key: str | None
) -> DryRunShape | tuple[BatchShape, str]:
    asked = _read_options(sending.asked)
    metadata = submission.read_metadata(sending.asked.metadata)
    settings = opened.settings
    request = submission.make_request(settings, asked, sending.asked.priority)
    catalogue = _open(settings, caller, sending)
    submission.check_prompted(catalogue, asked)
    if dry or sending.asked.dry_run:
        found = dry_run(catalogue, request.asked, request.checkpoint.defaults, request.pin_lora)
        guess = submission.estimate(opened.engine, settings, request.checkpoint.revision, found.rows - found.bad)
        return DryRunShape(
            rows=found.rows,
            bad=found.bad,
            recipes=found.recipes,
            errors=[RowError(**error) for error in found.errors],
            warnings=list(found.warnings),
            estimated_seconds=guess.seconds,
            estimated_wall_s=guess.wall_s,
            estimated_cost=guess.cost,
            bytes_sent=sending.size,
        )
    named = None if key is None else (caller.id, key, sending.sha256)
    noted = audit.line(caller, "batch.create", catalogue=catalogue.uri, options=asked)
    try:
        batch = submission.submit(opened.engine, catalogue, request, metadata, named, note=noted)
    except submission.KeyReused as error:
        raise Problem(422, "idempotency_key_reused", str(error)) from error
    counts = opened.service(Tallies).counts(batch)
    return batch_shape(batch, counts), batch_etag(batch, counts)


def _read_options(asked: Asked) -> dict[str, Any]:
    named = {name: getattr(asked, name) for name in ("preset", "prompt", "deadline", "max_error_rate")}
    twice = [name for name, value in named.items() if value is not None and name in asked.options]
    if twice:
        raise Problem(422, "invalid", f"{twice[0]} is set twice; keep one")
    return submission.read_asked({**asked.options, **{name: v for name, v in named.items() if v is not None}})


def _open(settings: Settings, caller: Caller, sending: Sending) -> Catalogue:
    inputs = submission.inputs_uri(settings)
    if sending.asked.catalogue is not None:
        uri = sending.asked.catalogue
        if not uri.startswith("s3://") and not caller.scope.covers(Scope.ADMIN):
            raise Problem(
                403,
                "scope",
                "catalogue: a path on the server's disk needs a key of scope admin; give s3:// or send the file",
            )
        return open_catalogue(uri, settings)
    assert sending.body is not None
    if not sending.name and sending.body.suffix == ".jsonl":
        if sending.body.stat().st_size == 0:
            raise CatalogueError("items is empty: there is nothing to do")
        return open_items(sending.body, inputs, sending.sha256)
    if sending.name.endswith(relayed.SUFFIX):
        name = PurePosixPath(sending.name.removesuffix(relayed.SUFFIX)).name[:200] or "catalogue"
        return Sent(relayed.Relayed(sending.body, name, inputs), f"sent:{name}", sending.sha256)
    if sending.name.lower().endswith(".zip"):
        store, lines = open_store(inputs, settings), sending.folder / "images.jsonl"
        return unpack_images(sending.body, sending.name, store, lines, settings, version=sending.sha256)
    return open_sent(sending.body, sending.name, inputs, sending.sha256)
