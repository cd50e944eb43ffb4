"""What a batch has made, as one download: the manifest while the batch runs, and its pictures in a ZIP.

Owns the streaming; a caller who reads slowly holds one page of rows and one picture, and no connection of the database.
"""

import tempfile
from collections.abc import Iterator
from typing import IO, Any

from fastapi.responses import StreamingResponse

from orchestrator import manifest
from orchestrator.api.access import Reader, open_router
from orchestrator.api.archive import CHUNK_BYTES, Archive
from orchestrator.api.batches import BatchId, find_batch
from orchestrator.api.resources import Open, Resources
from orchestrator.state import queries
from orchestrator.state.queries import Batch
from orchestrator.state.transitions import JobState
from orchestrator.storage import StorageError, open_object, result_name

router = open_router(prefix="/v1/batches/{batch_id}", tags=["batches"])


def _file(media_type: str, example: str) -> dict[int | str, dict[str, Any]]:
    told = {"schema": {"type": "string"}, "example": example}
    return {200: {"description": "a stream", "content": {media_type: told}}}


LINES, TABLE, ARCHIVE = "application/x-ndjson", "text/csv", "application/zip"
_LINE = (
    '{"custom_id": "dress-1", "line": 1, "take": 1, "status": "succeeded", "result": "s3://shop-results/dress-1.png"}\n'
)
_ROWS = "custom_id,image,line,take,status\ndress-1,photos/dress-1.jpg,1,1,succeeded\n"


@router.get("/manifest.jsonl", response_class=StreamingResponse, responses=_file(LINES, _LINE))
def get_manifest_lines(_: Reader, opened: Open, batch_id: BatchId) -> StreamingResponse:
    """The manifest as it stands now, one job a line."""
    batch = find_batch(opened, batch_id)
    return StreamingResponse(manifest.stream_lines(opened.engine, batch), media_type=LINES)


@router.get("/manifest.csv", response_class=StreamingResponse, responses=_file(TABLE, _ROWS))
def get_manifest_table(_: Reader, opened: Open, batch_id: BatchId) -> StreamingResponse:
    """The manifest as it stands now: the catalogue's columns and what became of each row."""
    batch = find_batch(opened, batch_id)
    headers = {"content-disposition": f'attachment; filename="{batch.id}.csv"'}
    return StreamingResponse(manifest.stream_table(opened.engine, batch), media_type=TABLE, headers=headers)


@router.get("/results.zip", response_class=StreamingResponse, responses=_file(ARCHIVE, "PK…"))
def get_archive(_: Reader, opened: Open, batch_id: BatchId) -> StreamingResponse:
    """All pictures made so far, and the manifest, in one ZIP; what cannot be read is named in `missing.txt`."""
    batch = find_batch(opened, batch_id)
    headers = {"content-disposition": f'attachment; filename="{batch.id}.zip"'}
    return StreamingResponse(_write_archive(opened, batch), media_type=ARCHIVE, headers=headers)


def _write_archive(opened: Resources, batch: Batch) -> Iterator[bytes]:
    with Archive() as archive, tempfile.TemporaryFile() as missing:
        for job in queries.stream_jobs(opened.engine, batch.id, states=(JobState.SUCCEEDED,)):
            name = result_name(job["custom_id"], job["take"])
            try:
                store, key = open_object(job["result"], opened.settings)
                with store.open(key) as picture:
                    yield from archive.add(name, _read(picture))
            except StorageError as error:
                missing.write(f"{name}: {error}\n".encode())
        yield from archive.add("manifest.jsonl", manifest.stream_lines(opened.engine, batch))
        yield from archive.add("manifest.csv", manifest.stream_table(opened.engine, batch))
        if missing.tell():
            missing.seek(0)
            yield from archive.add("missing.txt", _read(missing))
        yield from archive.finish()


def _read(stream: IO[bytes]) -> Iterator[bytes]:
    while chunk := stream.read(CHUNK_BYTES):
        yield chunk
