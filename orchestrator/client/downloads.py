"""What a batch has made, brought here: pictures into a store, manifests and archives into files.

Owns that a file is whole or not there, and that a picture is what its job says. Refuses to overwrite a picture that
differs.
"""

import hashlib
import os
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import httpx2

from orchestrator.client.errors import ApiError
from orchestrator.client.shapes import Job
from orchestrator.client.transport import Transport
from orchestrator.storage import StorageError, Store, result_name

THREADS = 8
PAGE_JOBS = 64
PATIENCE_S = 120.0
BREAKS = 3
PNG = "image/png"


def copy_pictures(
    jobs: Iterable[Job],
    picture: Callable[[Job], bytes],
    target: Store,
    tell: Callable[[Counter[str], str | None], None],
) -> Counter[str]:
    """Copy the pictures of succeeded jobs; gives how many were `copied`, were `equal` already, or `failed`.

    `picture` reads one. `tell` hears after each, with what is wrong with it, if anything.
    """
    found: Counter[str] = Counter()
    rest = iter(jobs)
    with ThreadPoolExecutor(THREADS) as threads:
        try:
            while page := list(islice(rest, PAGE_JOBS)):
                for outcome, problem in threads.map(lambda job: _copy(job, picture, target), page):
                    found[outcome] += 1
                    tell(found, problem)
        finally:
            threads.shutdown(cancel_futures=True)
    return found


def _copy(job: Job, picture: Callable[[Job], bytes], target: Store) -> tuple[str, str | None]:
    """Copy one result; gives what became of it, and what is wrong."""
    key = result_name(job.custom_id or "", job.take, ignore_case=target.ignores_case)
    try:
        if target.head(key) is not None:
            return _compare(job, target, key)
        data = picture(job)
        if hashlib.sha256(data).hexdigest() != job.sha256:
            return "failed", f"{job.result} is not what was stored (its sha256 differs); it was not copied"
        return ("copied", None) if target.put(key, data, content_type=PNG) else _compare(job, target, key)
    except StorageError as error:
        return "failed", str(error)
    except ApiError as error:
        if error.status != 404:
            raise
        return "failed", str(error)


def _compare(job: Job, target: Store, key: str) -> tuple[str, str | None]:
    if hashlib.sha256(target.get(key)).hexdigest() == job.sha256:
        return "equal", None
    return "failed", f"{target.locate(key)} holds another picture and is kept; export into another folder"


def read_picture(transport: Transport, job: Job) -> bytes:
    """A job's picture: from the store's own address where the server gives one that answers, else through the server.

    Raises ApiError.
    """
    path = f"/v1/jobs/{job.id}/result"
    answer = transport.call("GET", path, allowed=frozenset({302}), patience_s=PATIENCE_S)
    if answer.status_code == 302:
        try:
            direct = transport.store("GET", answer.headers["location"])
        except httpx2.TransportError:
            direct = None
        if direct is not None and direct.is_success:
            return direct.content
        answer = transport.call("GET", path, params={"redirect": "false"}, patience_s=PATIENCE_S)
    return answer.content


def save(transport: Transport, path: str, target: Path) -> None:
    """Stream what a path gives into a file, which is replaced at once when all of it has come.

    Begins anew where the connection breaks, a few times. Raises ApiError.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".part-{uuid.uuid4().hex}")
    try:
        for left in reversed(range(BREAKS)):
            try:
                with part.open("wb") as file:
                    for chunk in _chunks(transport, path):
                        file.write(chunk)
                    file.flush()
                    os.fsync(file.fileno())
                break
            except ApiError as error:
                if error.status is not None or not left:
                    raise
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


def _chunks(transport: Transport, path: str) -> Iterator[bytes]:
    with transport.stream(path) as answer:
        yield from answer.iter_bytes()
