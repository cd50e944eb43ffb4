"""`kontext run` at a server: a catalogue sent, watched to its end, and its pictures fetched.

Owns the order of it. An interrupted call goes on with the same batch when it is repeated, as one on this machine does.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import typer

from orchestrator.cli.crew import interruptible
from orchestrator.cli.display import Display, open_display
from orchestrator.cli.door import At, open_client
from orchestrator.cli.export import copy_all
from orchestrator.cli.failures import ERROR, INTERRUPTED, CallError
from orchestrator.cli.locations import log_to_file
from orchestrator.cli.request import Call
from orchestrator.cli.run import FAILURES_SHOWN, print_summary, show_failures
from orchestrator.cli.sending import open_memory, send
from orchestrator.cli.summary import sum_up
from orchestrator.client import Batch, Client, Counts
from orchestrator.progress import Pace
from orchestrator.settings import read_settings
from orchestrator.state.transitions import BatchStatus
from orchestrator.storage import StorageError, Store, open_store


@dataclass(frozen=True)
class _Seen:
    """A batch as the server told of it."""

    status: BatchStatus
    counts: Counts
    at_s: float
    standing: bool


def run_at(at: At, call: Call, *, as_json: bool) -> int:
    """Run a call at a server to its end, fetch its pictures where `--out` says, print the summary; gives the status."""
    began_s, settings = time.monotonic(), read_settings()
    log_to_file(settings)
    target = None if call.out is None else _open_target(call.out)
    memory, pace, missing = open_memory(until_forgotten=True), Pace(), 0
    with interruptible(), open_client(at) as client:
        batch = send(at, replace(call, out=None), memory)
        display = open_display()
        try:
            display.say(f"batch {batch.id}")
            interrupted = not _watch(client, batch, pace, display)
        finally:
            display.close()
        summary = sum_up(client, batch.id, time.monotonic() - began_s, pace.mean_rate)
        if interrupted:
            display.say(f"interrupted; the same command goes on with batch {batch.id}")
        elif target is not None:
            missing = copy_all(client, batch.id, target(batch.id))["failed"]
        if summary.batch.ended_at is not None and not interrupted:
            memory.forget()
        print_summary(summary, None, as_json)
        if target is not None and not interrupted and not as_json:
            typer.echo(f"  pictures  {target(batch.id).uri}")
    if interrupted:
        return INTERRUPTED
    return ERROR if missing else summary.exit_status


def _watch(client: Client, batch: Batch, pace: Pace, display: Display) -> bool:
    """Show the batch until it stands; False when that was interrupted."""
    shown: set[int] = set()
    try:
        for seen in client.watch(batch.id):
            at_s, counts = time.monotonic(), seen.request_counts
            pace.note(at_s, counts.ended)
            if counts.failed > len(shown) and len(shown) < FAILURES_SHOWN:
                show_failures(client, batch.id, shown, display.say)
            display.show(_Seen(seen.status, counts, at_s, seen.standing), pace)
    except KeyboardInterrupt:
        return False
    return True


def _open_target(out: str) -> Callable[[str], Store]:
    """Where a batch's pictures go, checked before the work. Raises CallError."""
    settings = read_settings()
    try:
        open_store(out, settings).check_writable()
    except StorageError as error:
        raise CallError(f"--out {out} cannot be written: {error}") from error
    return lambda batch_id: open_store(f"{out.rstrip('/')}/{batch_id}", settings)
