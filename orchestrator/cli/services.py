"""Processes that run until they are told to stop: dispatcher, API, worker; and the schema they need.

Owns how SIGTERM reaches them. Refuses to start on a database with another schema.
"""

import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import typer

from orchestrator import dispatcher
from orchestrator.checkpoints import pin_checkpoint
from orchestrator.cli.crew import STOP_MARGIN_S, describe_status, end_worker, interruptible, worker_command
from orchestrator.cli.failures import CallError
from orchestrator.cli.locations import database_url, open_stack, open_state, show_url
from orchestrator.local_stack import Supervisor
from orchestrator.settings import configure_logs, read_settings
from orchestrator.state import migration
from orchestrator.state.database import open_database
from orchestrator.state.transitions import Stage


def run_dispatcher() -> None:
    """Dispatch and rescue until told to stop."""
    settings = read_settings()
    configure_logs(settings)
    with _told_to_stop() as stop, open_stack(settings) as settings:
        with open_state(settings):
            pass
        dispatcher.serve(settings, stop)


def serve_api(host: str, port: int) -> None:
    """Serve HTTP until told to stop; prints its address once it answers."""
    from orchestrator.api.app import serve

    settings = read_settings()
    configure_logs(settings)
    with open_stack(settings) as settings:
        serve(settings, host, port, lambda url: typer.echo(f"serving {url}"))


def run_worker(stages: str, name: str | None) -> None:
    """Keep one worker process alive until told to stop; its deaths are marked in SQL at once."""
    chosen = _read_stages(stages)
    role = name or ("worker" if len(chosen) == len(Stage) else f"worker-{'-'.join(chosen)}")
    if not re.fullmatch(r"[\w.-]{1,100}", role, re.ASCII):
        raise CallError(f"--name {name}: expected letters, digits, dots and dashes, at most 100")
    settings = read_settings()
    configure_logs(settings)
    say = partial(typer.echo, err=True)
    with _told_to_stop() as stop, open_stack(settings, say) as settings, open_state(settings) as engine:
        checkpoint = pin_checkpoint(settings)
        home = settings.home.absolute()
        settings = settings.model_copy(update={"checkpoint": checkpoint.ref, "home": home})

        def note_death(role: str, worker_id: str, returncode: int) -> None:
            end_worker(engine, worker_id)
            if not stop.is_set():
                say(f"{worker_id} ended ({describe_status(returncode)}); starting another")

        # Its log is this process's own output, where a container's log is read.
        supervisor = Supervisor({role: worker_command(chosen)}, settings.environment(), None, note_death)
        supervisor.start()
        say(f"worker for {', '.join(chosen)} of revision {checkpoint.revision[:12]}")
        stop.wait()
        try:
            with interruptible():
                supervisor.stop(settings.stop_s + STOP_MARGIN_S)
        except KeyboardInterrupt:
            say("killing what has not stopped; its jobs are taken back")
            supervisor.stop()


def _read_stages(text: str) -> tuple[Stage, ...]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in set(Stage)]
    if unknown or not names:
        raise CallError(f"--stages {text}: expected some of {', '.join(Stage)}, commas between")
    return tuple(stage for stage in Stage if stage in names)


def upgrade_database() -> None:
    """Bring the schema to the newest migration; safe beside others that do the same."""
    engine = open_database(database_url(read_settings()))
    try:
        typer.echo(f"{show_url(engine)} stands at {migration.upgrade(engine)}")
    finally:
        engine.dispose()


def show_migration() -> None:
    """Print where the schema stands, and where this version wants it."""
    engine = open_database(database_url(read_settings()))
    try:
        current, head = migration.current(engine), migration.head()
    finally:
        engine.dispose()
    typer.echo(f"{current or 'none'}{'' if current == head else f' (newest: {head}; run: kontext db upgrade)'}")


@contextmanager
def _told_to_stop() -> Iterator[threading.Event]:
    """An event that SIGTERM and Ctrl-C set; the second one ends the process at once."""
    stop = threading.Event()

    def note(number: int, frame: object) -> None:
        if stop.is_set():
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        stop.set()

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
