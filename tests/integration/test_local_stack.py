"""The local stack with real servers and real processes, ended as laptops end them."""

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import boto3
import psutil
import pytest
import redis
from botocore.config import Config
from botocore.exceptions import ClientError
from redis.backoff import NoBackoff
from redis.retry import Retry

from orchestrator.local_stack import StackError, Supervisor, ensure_stack, servers, stack_status, stop_stack
from orchestrator.settings import Settings
from tests.waiting import PATIENCE_S, wait_until

STARTER = """
import sys, time
from pathlib import Path
from orchestrator.local_stack import ensure_stack
from orchestrator.settings import Settings

settings = ensure_stack(Settings(home=Path(sys.argv[1])))
print(settings.model_dump_json(), flush=True)
if sys.argv[2:]:
    time.sleep(600)
"""


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    home = tmp_path / "a home, with a comma"
    yield home
    stop_stack(Settings(home=home))


def start(home: Path, *arguments: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-c", STARTER, str(home), *arguments], stdout=subprocess.PIPE)


def pids(home: Path) -> dict[str, int]:
    content = json.loads((home / "stack.json").read_text())
    return {name: entry["pid"] for name, entry in content["servers"].items()}


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not runs(pid))


def runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def s3(settings: Settings, secret: str | None = None) -> "boto3.client":
    url = urlsplit(settings.local_s3_url)
    return boto3.client(
        "s3",
        endpoint_url=f"http://{url.hostname}:{url.port}",
        aws_access_key_id=url.username,
        aws_secret_access_key=secret or url.password,
        region_name="us-east-1",
        config=Config(retries={"total_max_attempts": 1}, proxies={}),
    )


def put(settings: Settings, key: str, body: bytes) -> None:
    client = s3(settings)
    client.put_object(Bucket="kontext-local", Key=key, Body=body)
    client.close()


def get(settings: Settings, key: str) -> bytes:
    client = s3(settings)
    body = client.get_object(Bucket="kontext-local", Key=key)["Body"].read()
    client.close()
    return body


def test_concurrent_starts_give_one_stack_that_outlives_its_killed_starter(home: Path) -> None:
    starters = [start(home, "stay"), start(home, "stay")]
    first, second = (Settings.model_validate_json(starter.stdout.readline()) for starter in starters)
    assert first == second
    running = pids(home)
    assert set(running) == {"valkey", "seaweedfs"}
    for starter in starters:
        starter.kill()
        starter.communicate()
    assert all(runs(pid) for pid in running.values())

    began_s = time.monotonic()
    adopted = ensure_stack(Settings(home=home))
    assert time.monotonic() - began_s < 15.0
    assert adopted == first
    assert pids(home) == running
    assert adopted.embedded == frozenset()
    assert adopted.database_url == f"sqlite:///{home}/state.db"

    # What a client was told is stored outlives the machine's worst: both servers killed at that moment.
    with redis.Redis.from_url(adopted.broker_url) as broker:
        assert broker.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        broker.set("bell", "rung")
        assert broker.execute_command("WAITAOF", 1, 0, 60_000) == [1, 0]
    bodies = {f"results/{number}.png": os.urandom(30_000) for number in range(20)}
    for key, body in bodies.items():
        put(adopted, key, body)
    for pid in running.values():
        kill(pid)

    replaced = ensure_stack(Settings(home=home))
    assert replaced == adopted, "running workers find the new servers where the old ones were"
    assert not set(pids(home).values()) & set(running.values())
    assert {key: get(replaced, key) for key in bodies} == bodies
    with redis.Redis.from_url(replaced.broker_url) as broker:
        assert broker.get("bell") == b"rung"

    # No stranger gets in, and none of it is for other users to read.
    port = urlsplit(replaced.broker_url).port
    with (
        redis.Redis(port=port, retry=Retry(NoBackoff(), 0)) as stranger,
        pytest.raises(redis.AuthenticationError),
    ):
        stranger.ping()
    client = s3(replaced, secret="wrong")
    with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
        client.list_buckets()
    client.close()
    assert (home / "stack.json").stat().st_mode & 0o077 == 0
    assert home.stat().st_mode & 0o077 == 0
    listening = {c.laddr.ip for pid in pids(home).values() for c in psutil.Process(pid).net_connections("tcp")}
    assert listening == {"127.0.0.1"}
    shown = " ".join(" ".join(psutil.Process(pid).cmdline()) for pid in pids(home).values())
    assert urlsplit(replaced.broker_url).password not in shown

    assert [(status.name, status.problem) for status in stack_status(Settings(home=home))] == [
        ("valkey", None),
        ("seaweedfs", None),
    ]
    running = pids(home)
    began_s = time.monotonic()
    stop_stack(Settings(home=home))
    assert time.monotonic() - began_s < 10.0, "SeaweedFS itself would wait for 15 s"
    assert not any(runs(pid) for pid in running.values())
    assert not (home / "stack.json").exists()
    assert {status.problem for status in stack_status(Settings(home=home))} == {"it does not run"}


def queues_only(home: Path) -> Settings:
    """Only Valkey is embedded: these tests are about the stack, and it starts in no time."""
    return Settings(home=home, database_url="sqlite:///elsewhere.db", results_uri="/elsewhere")


def test_only_what_is_not_set_is_started(home: Path) -> None:
    settings = ensure_stack(queues_only(home))
    assert set(pids(home)) == {"valkey"}
    assert settings.results_uri == "/elsewhere"
    assert settings.local_s3_url is None
    assert settings.broker_url.endswith("/0") and settings.cache_url == settings.broker_url[:-1] + "1"
    everything = settings.model_copy(update={"home": home / "none"})
    assert ensure_stack(everything) is everything
    assert not (home / "none").exists()


def test_a_server_that_runs_but_does_not_answer_is_replaced(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ensure_stack(queues_only(home))
    stuck = pids(home)["valkey"]
    monkeypatch.setattr("orchestrator.local_stack.servers.ANSWER_S", 0.2)
    monkeypatch.setattr("orchestrator.local_stack.stack.PATIENCE_S", 0.3)
    later = SimpleNamespace(time=lambda: time.time() + 3600, monotonic=time.monotonic, sleep=time.sleep)
    monkeypatch.setattr("orchestrator.local_stack.stack.time", later)  # it did not begin just now
    os.kill(stuck, signal.SIGSTOP)
    ensure_stack(queues_only(home))
    assert not runs(stuck)
    assert pids(home)["valkey"] != stuck


def test_a_process_that_took_the_number_of_a_dead_server_is_left_alone(home: Path) -> None:
    ensure_stack(queues_only(home))
    kill(pids(home)["valkey"])
    bystander = subprocess.Popen(["sleep", "60"])
    content = json.loads((home / "stack.json").read_text())
    content["servers"]["valkey"]["pid"] = bystander.pid
    (home / "stack.json").write_text(json.dumps(content))
    ensure_stack(queues_only(home))
    stop_stack(queues_only(home))
    assert bystander.poll() is None
    bystander.kill()
    bystander.wait()


def test_a_port_taken_meanwhile_is_given_up_for_another(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with redis_port_taken(servers._is_free) as (taken, offers):
        monkeypatch.setattr(servers, "_is_free", lambda port: True)
        monkeypatch.setattr("random.sample", lambda *_: next(offers))
        settings = ensure_stack(queues_only(home))
    assert urlsplit(settings.broker_url).port != taken


class redis_port_taken:
    """A listening port, and offers of ports that begin with it; those after it are free."""

    def __init__(self, is_free: Callable[[int], bool]) -> None:
        self._is_free = is_free

    def __enter__(self) -> tuple[int, Iterator[list[int]]]:
        import socket

        self._listener = socket.create_server(("127.0.0.1", 0))
        taken = int(self._listener.getsockname()[1])
        others = ([port] for port in itertools.count(20_000) if self._is_free(port))
        return taken, itertools.chain([[taken]], others)

    def __exit__(self, *_: object) -> None:
        self._listener.close()


def test_a_server_that_cannot_start_shows_the_end_of_its_log(home: Path) -> None:
    (home / "valkey" / "appendonlydir").mkdir(parents=True)
    (home / "valkey" / "appendonlydir" / "appendonly.aof.manifest").write_text("no manifest\n")
    with pytest.raises(StackError) as raised:
        ensure_stack(queues_only(home))
    assert "valkey ended at once" in str(raised.value)
    assert str(home / "logs" / "valkey.log") in str(raised.value)
    assert "manifest" in str(raised.value).split("valkey.log:")[1]


def test_a_home_that_cannot_be_written_names_the_variable(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StackError, match="KONTEXT_HOME"):
        ensure_stack(Settings(home=tmp_path / "file" / "home"))


def test_a_damaged_stack_file_is_no_licence_to_start_a_second_stack(home: Path) -> None:
    home.mkdir()
    (home / "stack.json").write_text("{")
    with pytest.raises(StackError, match="damaged"):
        ensure_stack(queues_only(home))
    (home / "stack.json").unlink()


class Deaths(list[tuple[str, str, int]]):
    last_s = 0.0

    def __call__(self, role: str, worker_id: str, returncode: int) -> None:
        self.last_s = time.monotonic()
        self.append((role, worker_id, returncode))


SLEEPER = [sys.executable, "-c", "import sys, time; print(sys.argv[1], flush=True); time.sleep(600)", "{name}"]
STUBBORN = [
    sys.executable,
    "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)",
]


def says(path: Path, text: str) -> bool:
    return path.exists() and text in path.read_text()


def kill_child(worker_id: str) -> None:
    """Ours may have other children, left by whichever tests ran before."""
    [child] = [child for child in psutil.Process().children() if worker_id in child.cmdline()]
    child.kill()


def test_a_killed_child_is_reported_and_started_again_after_a_while(tmp_path: Path) -> None:
    deaths = Deaths()
    supervisor = Supervisor({"sample": SLEEPER}, {}, tmp_path, deaths)
    supervisor.start()
    wait_until(lambda: says(tmp_path / "sample.log", "-sample-0"))
    first = supervisor.workers()["sample"]
    kill_child(first)
    wait_until(lambda: deaths)
    assert deaths == [("sample", first, -signal.SIGKILL)]
    wait_until(lambda: says(tmp_path / "sample.log", "-sample-1"))
    assert 1.0 < time.monotonic() - deaths.last_s < 25.0
    assert supervisor.workers()["sample"] != first
    supervisor.stop(5.0)
    assert [returncode for _, _, returncode in deaths] == [-signal.SIGKILL, -signal.SIGTERM]
    assert supervisor.workers() == {}


class Hurried(threading.Event):
    """An event that nobody waits for as long as he says; what each said is kept."""

    def __init__(self) -> None:
        super().__init__()
        self.pauses_s: list[float | None] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.pauses_s.append(timeout)
        return super().wait(0.01)


def test_children_that_fail_at_once_are_started_less_and_less_often(tmp_path: Path) -> None:
    died: list[str] = []

    def on_death(role: str, worker_id: str, returncode: int) -> None:
        died.append(worker_id)
        raise ConnectionError("the database is away")

    supervisor = Supervisor({"encode": ["/nowhere/program"]}, {}, tmp_path, on_death)
    supervisor._stopping = hurried = Hurried()
    supervisor.start()
    wait_until(lambda: len(hurried.pauses_s) >= 7)
    supervisor.stop()
    assert hurried.pauses_s[:7] == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    assert len(set(died)) >= 7
    assert "/nowhere/program: No such file or directory" in (tmp_path / "encode.log").read_text()


def test_no_name_of_a_child_comes_again(tmp_path: Path) -> None:
    """Not even with host name and process id, as they do where a container starts anew: SQL knows the old worker."""
    deaths = Deaths()
    for count in (1, 2):
        with Supervisor({"encode": ["/nowhere/program"]}, {}, tmp_path, deaths):
            wait_until(lambda count=count: len(deaths) >= count)
    names = [worker_id for _, worker_id, _ in deaths]
    assert len(set(names)) == len(names) >= 2


def test_a_death_that_could_not_be_reported_is_reported_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.local_stack.supervisor.FIRST_DELAY_S", 0.1)
    monkeypatch.setattr("orchestrator.local_stack.supervisor.REPORT_S", 0.2)
    told: list[str] = []

    def on_death(role: str, worker_id: str, returncode: int) -> None:
        told.append(worker_id)
        if len(told) < 3:
            raise ConnectionError("the database is away")

    with Supervisor({"sample": SLEEPER}, {}, tmp_path, on_death) as supervisor:
        wait_until(lambda: says(tmp_path / "sample.log", "-sample-0"))
        first = supervisor.workers()["sample"]
        kill_child(first)
        wait_until(lambda: len(told) == 3)
        assert set(told) == {first} and supervisor.workers()["sample"] != first
        time.sleep(0.5)
        assert len(told) == 3


def test_stopping_kills_what_does_not_end_and_a_second_stop_does_not_wait(tmp_path: Path) -> None:
    deaths = Deaths()
    supervisor = Supervisor({"decode": STUBBORN}, {}, tmp_path, deaths)
    supervisor.start()
    wait_until(lambda: says(tmp_path / "decode.log", "up"))
    waiting = threading.Thread(target=supervisor.stop, args=(60.0,))
    waiting.start()
    wait_until(supervisor._stopping.is_set)
    time.sleep(0.2)
    assert deaths == []
    began_s = time.monotonic()
    supervisor.stop(60.0)
    assert time.monotonic() - began_s < 30.0
    assert [returncode for _, _, returncode in deaths] == [-signal.SIGKILL]
    waiting.join(PATIENCE_S)
    assert not waiting.is_alive() and time.monotonic() - began_s < 50.0


def test_without_a_folder_children_write_where_their_supervisor_does(capfd: pytest.CaptureFixture[str]) -> None:
    said: list[str] = []
    with Supervisor({"sample": SLEEPER}, {}, None, Deaths()):
        wait_until(lambda: said.append(capfd.readouterr().out) or "-sample-0" in "".join(said))


SUPERVISOR = """
import sys, time
from pathlib import Path
from orchestrator.local_stack import Supervisor

grandparent = [sys.executable, "-c", "import subprocess, sys; subprocess.run(['sleep', '600'])"]
commands = {"polite": ["sleep", "600"], "stubborn": sys.argv[2:], "parent": grandparent}
Supervisor(commands, {}, Path(sys.argv[1]), print).start()
time.sleep(600)
"""


def test_children_end_with_a_supervisor_that_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guard = Path(servers.__file__).with_name("child.py")
    impatient = tmp_path / "child.py"
    impatient.write_text(guard.read_text().replace("GRACE_S = 10.0", "GRACE_S = 0.5"))
    program = SUPERVISOR.replace(
        "grandparent =",
        f"from orchestrator.local_stack import child\nchild.__file__ = {str(impatient)!r}\ngrandparent =",
        1,
    )
    supervisor = subprocess.Popen([sys.executable, "-c", program, str(tmp_path), *STUBBORN])
    wait_until(lambda: says(tmp_path / "stubborn.log", "up"))
    # Three children, three guards, one grandchild.
    wait_until(lambda: len(psutil.Process(supervisor.pid).children(recursive=True)) == 7)
    family = [process.pid for process in psutil.Process(supervisor.pid).children(recursive=True)]
    supervisor.kill()
    supervisor.wait()
    wait_until(lambda: not any(runs(pid) for pid in family))
