"""`kontext up`: everything on this machine, until Ctrl-C.

Owns which processes that is. Refuses a second one in the same home.
"""

import socket
import time
import urllib.error
import urllib.request
from contextlib import ExitStack
from functools import partial

import typer

from orchestrator.access.sessions import create_token
from orchestrator.checkpoints import pin_checkpoint
from orchestrator.cli.crew import (
    DISPATCH,
    STOP_MARGIN_S,
    Wanted,
    describe_status,
    end_worker,
    hold_marker,
    interruptible,
    worker_command,
)
from orchestrator.cli.failures import SUCCESS, RunError
from orchestrator.cli.locations import log_to_file, open_stack, open_state, show_url
from orchestrator.local_stack import Supervisor
from orchestrator.settings import read_settings
from orchestrator.state.transitions import Stage

HOST, PORT = "127.0.0.1", 8080
READY_S = 60.0


def stay_up(port: int | None) -> int:
    """Start servers, dispatcher, worker and API; print the addresses; stay until told to stop."""
    settings = read_settings()
    log_to_file(settings)
    say = partial(typer.echo, err=True)
    with interruptible(), ExitStack() as opened:
        note = opened.enter_context(hold_marker(settings.home))
        settings = opened.enter_context(open_stack(settings, say))
        engine = opened.enter_context(open_state(settings))
        checkpoint = pin_checkpoint(settings)
        settings = settings.model_copy(update={"checkpoint": checkpoint.ref, "home": settings.home.absolute()})
        note(Wanted(checkpoint.revision, settings.numerics))
        url = f"http://{HOST}:{_choose_port(port)}"
        stopping = False

        def note_death(role: str, worker_id: str, returncode: int) -> None:
            if role == "worker":
                end_worker(engine, worker_id)
            if not stopping:
                say(
                    f"the {role} ended ({describe_status(returncode)}) and is started again; its log: {logs / role}.log"
                )

        logs = settings.home / "logs"
        commands = {
            "dispatcher": DISPATCH,
            "worker": worker_command(tuple(Stage)),
            "serve": (*DISPATCH[:-1], "serve", "--host", HOST, "--port", url.rpartition(":")[2]),
        }
        supervisor = Supervisor(commands, settings.environment(), logs, note_death)
        try:
            supervisor.start()
            _await_ready(url)
            typer.echo(f"serving   {url}")
            typer.echo(f"sign in   {url}/sign-in?token={create_token(engine)}  (works once)")
            typer.echo(f"results   {settings.results_uri}")
            typer.echo(f"database  {show_url(engine)}")
            typer.echo(f"logs      {logs}")
            say("submit work from this folder: kontext submit CATALOGUE --preset flat-lay; Ctrl-C ends everything")
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            stopping = True
            say("stopping; Ctrl-C again kills what is left")
        finally:
            stopping = True
            _stop(supervisor, settings.stop_s + STOP_MARGIN_S)
    return SUCCESS


def _stop(supervisor: Supervisor, timeout_s: float) -> None:
    try:
        supervisor.stop(timeout_s)
    except KeyboardInterrupt:
        supervisor.stop()


def _choose_port(asked: int | None) -> int:
    """The port asked for, which must be free; else the usual one, or any when that is taken."""
    # The next ones first: a port from the kernel's own range may be an outgoing connection's before it is bound.
    for port in (*range(PORT, PORT + 20), 0) if asked is None else (asked,):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise RunError(f"port {asked} is taken; give another: kontext up --port N")


def _await_ready(url: str) -> None:
    """Wait until the API says that it is ready. Raises RunError with its answer when it does not."""
    deadline_s, answer = time.monotonic() + READY_S, "no answer"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # our own address goes through no proxy
    while time.monotonic() < deadline_s:
        try:
            with opener.open(f"{url}/readyz", timeout=5):
                return
        except urllib.error.HTTPError as error:
            answer = error.read().decode("utf-8", "replace")[:500]
        except OSError as error:
            answer = str(error)
        time.sleep(0.1)
    raise RunError(f"{url}/readyz is not ready after {READY_S:.0f} s: {answer}")
