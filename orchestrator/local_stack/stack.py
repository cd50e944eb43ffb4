"""The stack of one home: which embedded servers run, under one lock.

Owns `stack.json` and `stack.lock`. Refuses a second set of servers for a home: concurrent starts take turns, and the
later ones adopt what the first one started.
"""

import fcntl
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import psutil

from orchestrator.local_stack.servers import SERVERS, Entry, Server, StackError, new_entry, spawn, sweep, write_private
from orchestrator.settings import Settings

START_S = 45.0  # a cold disk and a busy machine included; 2.5 s is usual
PATIENCE_S = 5.0  # for a server that runs but does not answer, before it is replaced
LOCK_S = 2 * START_S
TRIES = 3  # with other ports, when one was taken between the look and the start
LOG_LINES = 12


@dataclass(frozen=True)
class ServerStatus:
    """One embedded server, for `kontext doctor`. `problem` is None when it works."""

    name: str
    pid: int | None
    port: int | None
    memory_bytes: int
    log: Path
    problem: str | None


def ensure_stack(settings: Settings) -> Settings:
    """Start or adopt the embedded server of every location that is not set; return the settings with all of them set.

    Servers outlive this process. A call for servers that work takes some milliseconds and starts nothing.
    Raises StackError when a server cannot be started; the message carries the end of its log.
    """
    embedded = settings.embedded
    if not embedded:
        return settings
    home = settings.home.absolute()
    found: dict[str, object] = {"home": home}
    wanted = [server for server in SERVERS if server.serves & embedded]
    with _locked(home):
        if "database_url" in embedded:
            found["database_url"] = f"sqlite:///{home / 'state.db'}"
        for server, entry in _ensure(home, wanted).items():
            locations = server.locations(entry)
            found |= {name: uri for name, uri in locations.items() if name in embedded or name not in server.serves}
    return settings.model_copy(update=found)


def stop_stack(settings: Settings) -> None:
    """End the embedded servers of this home. Their data stay; the next start has new ports and keys.

    Raises StackError when a server survives SIGKILL, as one does that waits for a disk.
    """
    home = settings.home.absolute()
    if not (home / "stack.json").exists():
        return
    with _locked(home):
        entries = _read(home)
        # All are asked before the first is waited for.
        for entry in entries.values():
            _signal(entry, signal.SIGTERM)
        for server in SERVERS:
            if server.name in entries:
                _end(server, entries[server.name])
        (home / "stack.json").unlink(missing_ok=True)


def stack_status(settings: Settings) -> tuple[ServerStatus, ...]:
    """How the embedded servers of this home are, one row each; starts and stops nothing."""
    home = settings.home.absolute()
    entries = _read(home)
    return tuple(
        _status(server, entries.get(server.name), _log_path(home, server))
        for server in SERVERS
        if server.serves & settings.embedded or server.name in entries
    )


def _status(server: Server, entry: Entry | None, log: Path) -> ServerStatus:
    process = None if entry is None else _process(entry)
    if entry is None or process is None:
        return ServerStatus(server.name, None, None, 0, log, "it does not run")
    problem = _problem(server, entry)
    memory_bytes = 0
    with suppress(psutil.Error):
        memory_bytes = process.memory_info().rss
    return ServerStatus(server.name, entry.pid, entry.ports[server.door], memory_bytes, log, problem)


def _ensure(home: Path, wanted: list[Server]) -> dict[Server, Entry]:
    entries = _read(home)
    missing = [server for server in wanted if not _adopt(server, entries.get(server.name))]
    for attempt in range(TRIES):
        missing = _start(home, missing, entries, fresh_ports=attempt > 0)
        if not missing:
            return {server: entries[server.name] for server in wanted}
    names = ", ".join(server.name for server in missing)
    raise StackError(f"no free ports for {names} in {TRIES} tries; the logs are in {home / 'logs'}")


def _adopt(server: Server, entry: Entry | None) -> bool:
    """Whether the server works. One that does not is gone when this returns False."""
    if entry is None:
        return False
    process = _process(entry)
    if process is not None:
        # One that began just now, whose starter was killed, gets the time that a start takes.
        age_s = time.time() - process.create_time()
        deadline_s = time.monotonic() + max(PATIENCE_S, min(START_S, START_S - age_s))
        while _process(entry) is not None:
            if _problem(server, entry) is None:
                return True
            if time.monotonic() > deadline_s:
                break
            time.sleep(0.05)
    _end(server, entry)
    return False


def _start(home: Path, servers: list[Server], entries: dict[str, Entry], fresh_ports: bool) -> list[Server]:
    """Start these servers side by side and wait until they work. Returns those that met a port already taken."""
    prepared = {}
    for server in servers:
        taken = {port for entry in entries.values() for port in entry.ports.values()}
        entry = new_entry(server, None if fresh_ports else entries.get(server.name), taken)
        folder = home / server.name
        folder.mkdir(mode=0o700, exist_ok=True)
        prepared[server] = server.prepare(folder, entry)
        entries[server.name] = entry
    begun: list[tuple[Server, int, Callable[[], None]]] = []
    for server in servers:
        log_path = _log_path(home, server)
        log_start = log_path.stat().st_size if log_path.exists() else 0
        pid, go = spawn(server, prepared[server], home / server.name, log_path)
        entries[server.name] = replace(entries[server.name], pid=pid, started_s=_started_s(psutil.Process(pid)))
        begun.append((server, log_start, go))
    _write(home, entries)
    for _, _, go in begun:
        go()
    deadline_s = time.monotonic() + START_S
    return [
        server
        for server, log_start, _ in begun
        if not _await(server, entries[server.name], _log_path(home, server), log_start, deadline_s)
    ]


def _await(server: Server, entry: Entry, log_path: Path, log_start: int, deadline_s: float) -> bool:
    """Wait until the server works. False: it ended because a port was taken."""
    while True:
        problem = _problem(server, entry)
        if problem is None:
            return True
        ended = _process(entry) is None
        if not ended and time.monotonic() < deadline_s:
            time.sleep(0.02)
            continue
        _end(server, entry)
        said = _tail(log_path, log_start)
        if ended and "address already in use" in said.lower():
            return False
        reason = "ended at once" if ended else f"did not work within {START_S:.0f} s ({problem})"
        raise StackError(f"the embedded server {server.name} {reason}. The end of its log, {log_path}:\n{said}")


def _problem(server: Server, entry: Entry) -> str | None:
    try:
        server.check(entry)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def _process(entry: Entry) -> psutil.Process | None:
    """The running process of this entry; None when it has ended, or its number belongs to another process now."""
    with suppress(psutil.Error):
        process = psutil.Process(entry.pid)
        same = abs(_started_s(process) - entry.started_s) < 0.005  # half a tick of the kernel's clock
        if same and process.status() != psutil.STATUS_ZOMBIE:
            return process
    return None


def _started_s(process: psutil.Process) -> float:
    """Seconds from boot to start: unlike the time of day, no clock that is set later changes it."""
    boot_s = psutil.boot_time()
    return float(process.create_time() - boot_s)


def _signal(entry: Entry, number: signal.Signals) -> None:
    if _process(entry) is not None:
        with suppress(ProcessLookupError):
            os.kill(entry.pid, number)


def _end(server: Server, entry: Entry) -> None:
    """End the server and wait until it is gone, so that the next one finds its data folder and its ports free."""
    for number, patience_s in ((signal.SIGTERM, server.stop_s), (signal.SIGKILL, 10.0)):
        _signal(entry, number)
        deadline_s = time.monotonic() + patience_s
        while _process(entry) is not None and time.monotonic() < deadline_s:
            time.sleep(0.01)
    if _process(entry) is not None:
        raise StackError(f"{server.name} (process {entry.pid}) does not end, not even killed; is its disk away?")
    sweep(entry)


def _read(home: Path) -> dict[str, Entry]:
    try:
        content = json.loads((home / "stack.json").read_text(encoding="utf-8"))
        return {name: Entry(**entry) for name, entry in content["servers"].items()}
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise StackError(
            f"{home / 'stack.json'} is damaged ({error}); end its servers by hand, then delete it"
        ) from error


def _write(home: Path, entries: dict[str, Entry]) -> None:
    servers = {name: asdict(entry) for name, entry in entries.items()}
    write_private(home / "stack.json", json.dumps({"servers": servers}, indent=1))


@contextmanager
def _locked(home: Path) -> Iterator[None]:
    """Hold the home's lock. The kernel lets go of it when this process dies."""
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(home / "stack.lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise StackError(
            f"{home} cannot be used ({error.strerror}): set KONTEXT_HOME to a folder you may write"
        ) from error
    try:
        deadline_s = time.monotonic() + LOCK_S
        while not _try_lock(descriptor):
            if time.monotonic() > deadline_s:
                raise StackError(
                    f"another process has been starting or stopping the stack of {home} for {LOCK_S:.0f} s"
                )
            time.sleep(0.05)
        yield
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _log_path(home: Path, server: Server) -> Path:
    return home / "logs" / f"{server.name}.log"


def _tail(log_path: Path, start: int) -> str:
    with log_path.open("rb") as file:
        file.seek(max(start, log_path.stat().st_size - 16_384))
        return "\n".join(file.read().decode("utf-8", "replace").splitlines()[-LOG_LINES:])
