"""What a worker makes of messages that others put into its queue: bells are answered, everything else is dropped."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import kombu

from orchestrator.settings import Settings
from orchestrator.state.messages import TASK, Bell, queue_names
from orchestrator.state.transitions import Stage
from tests.waiting import PATIENCE_S
from workers.listener import Listener

REVISION = "a" * 40
WORKER = """
import os, signal, sys
from orchestrator.settings import Settings
from orchestrator.state.transitions import Stage
from workers.listener import Listener

def answer(bell):
    print("answered", bell.recipe_id, flush=True)
    if bell.recipe_id == "good":
        os.kill(os.getpid(), signal.SIGTERM)
    return 0

sys.exit(Listener(Settings(broker_url=sys.argv[1]), list(Stage), sys.argv[2], "test").listen(answer))
"""


class Bomb:
    """A pickle that leaves a mark when it is opened."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.mark),)


def test_a_worker_opens_no_pickle_and_goes_on(valkey_url: str, tmp_path: Path) -> None:
    mark, (_, queue) = tmp_path / "exploded", queue_names(Stage.ENCODE, REVISION)
    with kombu.Connection(valkey_url) as connection:
        producer = connection.Producer()

        def send(body: bytes, content_type: str, encoding: str = "binary") -> None:
            headers = {"task": TASK, "id": "1", "lang": "py"}
            producer.publish(
                body, routing_key=queue, content_type=content_type, content_encoding=encoding, headers=headers
            )

        connection.SimpleQueue(queue).close()
        send(pickle.dumps(((), {"bomb": Bomb(mark)}, {})), "application/x-python-serialize")
        send(pickle.dumps(Bomb(mark)), "application/json", "utf-8")
        send(b"!!python/object/apply:os.mkdir ['x']", "application/x-yaml", "utf-8")
        send(b"[[], {}, {}]", "application/json", "utf-8")
        send(
            b'[[], {"stage": "encode", "revision": [], "recipe_id": {}, "canvas": 1}, {}]', "application/json", "utf-8"
        )
    listener = Listener(Settings(broker_url=valkey_url), [Stage.ENCODE], REVISION, "test")
    listener.ring([Bell(Stage.ENCODE, REVISION, "good")])
    done = _listen(valkey_url, tmp_path)
    assert done.returncode == 0 and "answered good" in done.stdout.splitlines(), done.stderr
    assert os.listdir(tmp_path) == [], "nothing in a message was run"


def test_bells_for_recovered_jobs_are_heard_before_all_others(valkey_url: str, tmp_path: Path) -> None:
    revision = "c" * 40
    listener = Listener(Settings(broker_url=valkey_url), list(Stage), revision, "test")
    listener.ring([Bell(stage, revision, "good" if stage == Stage.ENCODE else str(stage)) for stage in Stage])
    listener.ring([Bell(Stage.ENCODE, revision, "recovered", recovered=True)])
    done = _listen(valkey_url, tmp_path, revision)
    answered = [line.removeprefix("answered ") for line in done.stdout.splitlines() if line.startswith("answered")]
    assert answered == ["recovered", "decode", "sample", "good"], done.stderr


def _listen(valkey_url: str, folder: Path, revision: str = REVISION) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", WORKER, valkey_url, revision],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONWARNINGS": "ignore"},
        cwd=folder, capture_output=True, text=True, timeout=PATIENCE_S,
    )  # fmt: skip
