"""A call's catalogue on its way to a server: its images with a bar of bytes, then its rows.

Owns what is shown meanwhile, and where the keys of interrupted submissions are kept. Refuses flags that only the
server's own settings decide.
"""

import time
from functools import partial
from typing import Any

import typer

from orchestrator.catalogs import Catalogue
from orchestrator.cli.display import Display, open_display
from orchestrator.cli.door import At, open_client
from orchestrator.cli.failures import CallError
from orchestrator.cli.request import Call, open_asked
from orchestrator.client import Asked, Batch, DryRun, Memory, Progress
from orchestrator.progress import Pace, show_duration
from orchestrator.settings import read_settings

FOLDER = "submissions"


def open_memory(*, until_forgotten: bool = False) -> Memory:
    """The keys of submissions that have not ended, in the home."""
    return Memory(read_settings().home.absolute() / FOLDER, until_forgotten=until_forgotten)


def send(at: At, call: Call, memory: Memory) -> Batch:
    """Bring a call's catalogue to a server as a batch. Raises ApiError, CatalogueError, CallError, StorageError."""
    catalogue = _open(call)
    display = open_display()
    try:
        with open_client(at) as client:
            tell = partial(_show, display, Pace())
            return client.submit_catalogue(catalogue, asked_of(call), memory=memory, tell=tell)
    finally:
        display.close()


def dry_run(at: At, call: Call) -> DryRun:
    """What a call's catalogue would become at a server. Raises as `send` does."""
    catalogue = _open(call)
    with open_client(at) as client:
        return client.dry_run(catalogue, asked_of(call))


def asked_of(call: Call) -> Asked:
    """What a call asks, as a server is asked. Raises CallError for what it cannot be asked."""
    if call.out is not None:
        hint = "fetch the pictures with kontext export ID DIR"
        raise CallError(f"--out {call.out}: where results go is the server's to say; {hint}")
    own: dict[str, Any] = {name: call.asked.get(name) for name in ("preset", "prompt", "deadline", "max_error_rate")}
    options = {name: value for name, value in call.asked.items() if name not in own}
    options = {name: str(value).lower() if isinstance(value, bool) else value for name, value in options.items()}
    return Asked(**own, options=options, priority=call.priority)


def _open(call: Call) -> Catalogue | str:
    """A catalogue of this machine, opened; one in S3 by its URI, for the server to read."""
    if call.catalogue.startswith("s3://"):
        return call.catalogue
    catalogue = open_asked(call, read_settings())
    for warning in catalogue.warnings:
        typer.echo(f"warning: {warning}", err=True)
    return catalogue


def _show(display: Display, pace: Pace, progress: Progress) -> None:
    """Bytes done of all, how fast, and how long still."""
    images = progress.images
    if not images.bytes_total:
        display.count("rows read", progress.rows)
        return
    pace.note(time.monotonic(), images.bytes_done)
    parts = [f"{show_bytes(images.bytes_done)} of {show_bytes(images.bytes_total)}"]
    parts += [
        f"{number:,} {what}" for number, what in ((images.sent, "sent"), (images.skipped, "there already")) if number
    ]
    if pace.rate and (left := pace.remaining_s(images.bytes_total - images.bytes_done)):
        parts += [f"{show_bytes(int(pace.rate))}/s", f"{show_duration(left)} left"]
    display.advance(", ".join(parts), images.bytes_done, images.bytes_total)


def show_bytes(size: int) -> str:
    """A number of bytes for people: 812 B, 3.4 MB, 12.0 GB."""
    value, unit = float(size), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
