"""The HTTP face, on a real broker and a real database, and as a process."""

import json
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from fastapi.routing import iter_route_contexts

from orchestrator.access.keys import create_key
from orchestrator.access.scopes import Scope
from orchestrator.api.app import build_app
from orchestrator.local_stack import ensure_stack, stop_stack
from orchestrator.settings import Settings
from orchestrator.state import migration
from orchestrator.state.database import open_database
from tests.waiting import PATIENCE_S, wait_until

SERVE = """
import sys
from orchestrator.api.app import serve
from orchestrator.settings import Settings

serve(Settings.model_validate_json(sys.argv[1]), "127.0.0.1", 0, lambda url: print(url, flush=True))
"""


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Settings]:
    database_url = f"sqlite:///{tmp_path / 'state.db'}"
    settings = ensure_stack(Settings(home=tmp_path / "home", database_url=database_url, results_uri=str(tmp_path)))
    yield settings
    stop_stack(settings)


@pytest.fixture
def url(settings: Settings) -> Iterator[str]:
    process = subprocess.Popen([sys.executable, "-c", SERVE, settings.model_dump_json()], stdout=subprocess.PIPE)
    yield process.stdout.readline().decode().strip()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=PATIENCE_S)
    assert process.returncode in {0, -signal.SIGTERM}


def get(url: str, key: str = "") -> tuple[int, str]:
    request = urllib.request.Request(url, headers={"authorization": f"Bearer {key}"} if key else {})
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_readiness_follows_the_database_and_the_broker(url: str, settings: Settings) -> None:
    assert get(f"{url}/healthz") == (200, "ok\n")
    status, text = get(f"{url}/readyz")
    assert status == 503
    assert json.loads(text)["broker"] == "ok"
    assert re.search("stands at no schema, needed is .*; run: kontext db upgrade", json.loads(text)["database"])
    assert get(f"{url}/metrics", "kx_0123456789ab_" + "x" * 43)[0] == 503

    engine = open_database(settings.database_url)
    migration.upgrade(engine)
    key = create_key(engine, "prometheus", Scope.READ).secret
    engine.dispose()
    wait_until(lambda: get(f"{url}/readyz")[0] == 200, "it is ready")
    assert json.loads(get(f"{url}/readyz")[1]) == {"ready": True, "database": "ok", "broker": "ok"}

    assert get(f"{url}/metrics")[0] == 401
    status, text = get(f"{url}/metrics", key)
    assert status == 200
    lines = text.splitlines()
    assert 'kontext_jobs{stage="",state="pending"} 0.0' in lines
    assert 'kontext_batches{status="running"} 0.0' in lines
    assert 'kontext_workers{stage="sample"} 0.0' in lines
    assert "kontext_broker_up 1.0" in lines

    stop_stack(settings)
    status, text = get(f"{url}/readyz")
    assert status == 503
    assert json.loads(text)["broker"].startswith("the broker does not answer: ")
    secret = redis.connection.parse_url(settings.broker_url)["password"]
    assert secret not in text
    assert get(f"{url}/healthz") == (200, "ok\n")
    status, text = get(f"{url}/metrics", key)
    assert status == 200
    assert "kontext_broker_up 0.0" in text
    assert "kontext_queue_length" not in text


def test_the_application_opens_nothing_before_it_is_asked(tmp_path: Path) -> None:
    app = build_app(
        Settings(
            home=tmp_path,
            database_url="postgresql://nobody@127.0.0.1:1/none",
            broker_url="redis://127.0.0.1:1/0",
        )
    )
    assert {route.path for route in iter_route_contexts(app.routes)} >= {"/healthz", "/readyz", "/metrics"}
