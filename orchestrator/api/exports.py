"""What a batch has made, as one download: the manifest while the batch runs, and its pictures in a ZIP.

Owns the streaming; a caller who reads slowly holds one page of rows and one picture.
"""

import zipfile
from collections.abc import Iterator
from typing import Any

from fastapi.responses import StreamingResponse

from orchestrator import manifest
from orchestrator.api.access import Reader, open_router
from orchestrator.api.batches import BatchId, find_batch
from orchestrator.api.resources import Open, Resources
from orchestrator.state import queries
from orchestrator.state.database import reading
from orchestrator.state.queries import Batch
from orchestrator.state.transitions import JobState
from orchestrator.storage import StorageError, open_object, result_name

CHUNK_BYTES = 1 << 18
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


class _Pipe:
    """What the ZIP writer writes to, taken out in pieces. It cannot seek: sizes follow each picture."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def write(self, data: Any) -> int:
        self._pieces.append(bytes(data))
        return len(data)

    def flush(self) -> None:
        """Nothing is held back."""

    def take(self) -> bytes:
        data = b"".join(self._pieces)
        self._pieces.clear()
        return data


def _write_archive(opened: Resources, batch: Batch) -> Iterator[bytes]:
    pipe, missing = _Pipe(), []
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:  # type: ignore[call-overload]
        with reading(opened.engine).connect() as connection:
            for job in queries.stream_jobs(connection, batch.id, states=(JobState.SUCCEEDED,)):
                name = result_name(job["custom_id"], job["take"])
                try:
                    store, key = open_object(job["result"], opened.settings)
                    with store.open(key) as picture, archive.open(name, "w", force_zip64=True) as entry:
                        while chunk := picture.read(CHUNK_BYTES):
                            entry.write(chunk)
                            yield pipe.take()
                except StorageError as error:
                    missing.append(f"{name}: {error}\n")
        for name, pieces in (
            ("manifest.jsonl", manifest.stream_lines(opened.engine, batch)),
            ("manifest.csv", manifest.stream_table(opened.engine, batch)),
            ("missing.txt", iter([line.encode() for line in missing])),
        ):
            if name == "missing.txt" and not missing:
                continue
            with archive.open(name, "w", force_zip64=True) as entry:
                for piece in pieces:
                    entry.write(piece)
                    yield pipe.take()
    yield pipe.take()
