"""The client: a server and a key, and a method for everything that a caller may ask.

Owns which routes are called. Refuses to print, and to guess: what a server says is given as it is said.
"""

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx2

from orchestrator.catalogs import Catalogue, open_catalogue
from orchestrator.client import downloads, submitting
from orchestrator.client.administration import Administration, path_of
from orchestrator.client.shapes import Asked, Batch, Change, DryRun, Job
from orchestrator.client.submitting import Memory, Tell
from orchestrator.client.transport import Transport
from orchestrator.settings import Settings
from orchestrator.state.transitions import BatchStatus, JobState
from orchestrator.storage import open_store

PATIENCE_S = 30.0
WAIT_S = 30
WATCHING_PATIENCE_S = 600.0


class Client(Administration):
    """One server, one key. Threads may share it; `with` closes its connections.

    Busy servers and broken connections are tried again for `patience_s`, where that is safe; uploads, downloads and
    waiting have more patience. Everything raises ApiError.
    """

    def __init__(
        self, server: str, key: str, *, patience_s: float = PATIENCE_S, http: httpx2.Client | None = None
    ) -> None:
        super().__init__(Transport(server, key, patience_s, http))

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Client({self.server!r})"

    @property
    def server(self) -> str:
        """The address that is called."""
        return self._transport.server

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()

    # Batches

    def batches(self, limit: int | None = None, *, status: Sequence[BatchStatus] = ()) -> Iterator[Batch]:
        """The newest batches, all of them where no limit is given."""
        page = min(limit or 100, 100)
        return islice(self._pages(Batch, "/v1/batches", page=page, status=list(status)), limit)

    def batch(self, batch_id: str) -> Batch:
        """One batch, with its errors and what its stages took."""
        params = {"seconds": "true"}
        found: Batch = self._transport.read(Batch, "GET", path_of("/v1/batches", batch_id), params=params)
        return found

    def watch(self, batch_id: str, *, until_s: float | None = None) -> Iterator[Batch]:
        """How a batch stands, and again whenever that changes, until it stands still: ended, or paused.

        `until_s` is a monotonic clock's. Raises TimeoutError.
        """
        etag, path = None, path_of("/v1/batches", batch_id)
        while True:
            left_s = WAIT_S if until_s is None else min(WAIT_S, until_s - time.monotonic())
            if left_s < 0:
                raise TimeoutError(f"batch {batch_id} has not ended in time")
            given: dict[str, Any] = {"patience_s": WATCHING_PATIENCE_S, "allowed": frozenset({304})}
            if etag is not None:
                given |= {"params": {"wait": max(int(left_s), 1)}, "headers": {"if-none-match": etag}}
            answer = self._transport.call("GET", path, **given)
            if answer.status_code == 304:
                continue
            etag = answer.headers.get("etag")
            batch: Batch = self._transport.parse(Batch, answer, f"GET {path}")
            yield batch
            if batch.standing:
                return

    def wait(self, batch_id: str, timeout_s: float | None = None) -> Batch:
        """Wait until a batch has ended, or is paused; gives it. Raises TimeoutError."""
        until_s = None if timeout_s is None else time.monotonic() + timeout_s
        for batch in self.watch(batch_id, until_s=until_s):
            last = batch
        return last

    def pause(self, batch_id: str) -> Change:
        """Claim nothing more of a batch; what is running ends its stage."""
        return self._ask(batch_id, "pause")

    def resume(self, batch_id: str) -> Change:
        """Go on with a paused batch."""
        return self._ask(batch_id, "resume")

    def cancel(self, batch_id: str) -> Change:
        """End a batch early; what succeeded stays."""
        return self._ask(batch_id, "cancel")

    def retry(
        self,
        batch_id: str,
        states: Sequence[JobState] = (JobState.FAILED,),
        codes: Sequence[str] = (),
        lines: Sequence[int] = (),
    ) -> Change:
        """Try ended jobs again, those that all given conditions hold of."""
        return self._ask(batch_id, "retry", {"states": list(states), "codes": list(codes), "lines": list(lines)})

    def set_priority(self, batch_id: str, priority: int) -> Change:
        """Change a batch's urgency, -100 to 100."""
        path, body = path_of("/v1/batches", batch_id), {"priority": priority}
        change: Change = self._transport.read(Change, "PATCH", path, json=body)
        return change

    def delete(self, batch_id: str) -> None:
        """Forget an ended batch; its pictures stay."""
        self._transport.call("DELETE", path_of("/v1/batches", batch_id))

    def _ask(self, batch_id: str, what: str, body: Mapping[str, Any] | None = None) -> Change:
        # Each of these may be asked any number of times.
        path = path_of("/v1/batches", batch_id, what)
        change: Change = self._transport.read(Change, "POST", path, json=body, again=True)
        return change

    # Submitting

    def submit(self, items: Iterable[Mapping[str, Any]], asked: Asked, *, idempotency_key: str | None = None) -> Batch:
        """Make a batch of rows, each with `image` and any other column of a catalogue; gives it once all are stored.

        The same `idempotency_key` with the same rows gives the same batch, also after a call that was cut off.
        """
        return submitting.submit_items(self._transport, items, asked, idempotency_key)

    def submit_catalogue(
        self,
        catalogue: Catalogue | Path | str,
        asked: Asked,
        *,
        memory: Memory | None = None,
        tell: Tell = lambda progress: None,
    ) -> Batch:
        """Make a batch of a catalogue; one of this machine has its images sent first, `s3://…` the server reads itself.

        With a `memory`, a call that was cut off goes on when it is repeated, with the same batch.
        Also raises StorageError, CatalogueError.
        """
        memory, opened = memory or Memory(None), _open(catalogue)
        if isinstance(opened, str):
            return submitting.submit_uri(self._transport, opened, asked, memory)
        images = open_store(opened.image_root, Settings())
        return submitting.submit_catalogue(self._transport, opened, images, asked, memory, tell)

    def dry_run(self, catalogue: Catalogue | Path | str, asked: Asked) -> DryRun:
        """What a catalogue would become; no batch is made, no image is sent."""
        opened = _open(catalogue)
        if isinstance(opened, str):
            return submitting.dry_run_uri(self._transport, opened, asked)
        images = open_store(opened.image_root, Settings())
        return submitting.dry_run_catalogue(self._transport, opened, images, asked)

    # Jobs and results

    def jobs(self, batch_id: str, states: Sequence[JobState] = (), codes: Sequence[str] = ()) -> Iterator[Job]:
        """A batch's jobs in the catalogue's order."""
        path = path_of("/v1/batches", batch_id, "jobs")
        return self._pages(Job, path, state=list(states), code=list(codes), order="line")

    def picture(self, job: Job) -> bytes:
        """The picture of a succeeded job, a PNG."""
        return downloads.read_picture(self._transport, job)

    def save_manifest(self, batch_id: str, target: Path) -> None:
        """The manifest as it stands now, into a file: `.csv`, or JSONL under any other name."""
        kind = "manifest.csv" if target.suffix.lower() == ".csv" else "manifest.jsonl"
        downloads.save(self._transport, path_of("/v1/batches", batch_id, kind), target)

    def save_archive(self, batch_id: str, target: Path) -> None:
        """All pictures made so far and the manifest, as one ZIP."""
        downloads.save(self._transport, path_of("/v1/batches", batch_id, "results.zip"), target)

    def export(self, batch_id: str, folder: Path) -> Counter[str]:
        """All pictures made so far and the manifest, into a folder; what is there already and equal is skipped.

        Gives how many were `copied`, `equal`, and `failed`: missing there, or in the way of another picture here.
        """
        store = open_store(str(folder), Settings())
        jobs = self.jobs(batch_id, (JobState.SUCCEEDED,))
        found = downloads.copy_pictures(jobs, self.picture, store, lambda found, problem: None)
        for name in ("manifest.jsonl", "manifest.csv"):
            self.save_manifest(batch_id, Path(store.uri) / name)
        return found


def _open(catalogue: Catalogue | Path | str) -> Catalogue | str:
    """A catalogue of this machine, opened; one in S3 stays the server's to read. Raises CatalogueError."""
    if isinstance(catalogue, str) and catalogue.startswith("s3://"):
        return catalogue
    return open_catalogue(catalogue, Settings()) if isinstance(catalogue, str | Path) else catalogue
