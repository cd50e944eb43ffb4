"""A caller of the API in the tests' own process, on the database under test and a folder of results."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from sqlalchemy import Engine, event
from starlette.testclient import TestClient

from orchestrator.access.keys import create_key
from orchestrator.access.scopes import Scope
from orchestrator.api.app import build_app
from orchestrator.settings import Settings

BROKER = "redis://127.0.0.1:1/0"


@dataclass
class Api:
    """An application, and a client whose key may do everything."""

    app: FastAPI
    client: TestClient
    settings: Settings
    engine: Engine

    def get(self, path: str, **given: Any) -> Any:
        """The JSON of a successful GET."""
        answer = self.client.get(path, **given)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def post(self, path: str, status: int = 200, **given: Any) -> Any:
        """The JSON of a POST that ends with this status."""
        answer = self.client.post(path, **given)
        assert answer.status_code == status, answer.text
        return answer.json()

    def bearer(self, scope: Scope) -> dict[str, str]:
        """The header of a new key."""
        return {"authorization": f"Bearer {create_key(self.engine, 'another', scope).secret}"}


@contextmanager
def open_api(engine: Engine, folder: Path, **given: Any) -> Iterator[Api]:
    """The API on this database; results lie in a folder, and no broker answers. Leaves no connection open."""
    url = engine.url.render_as_string(hide_password=False)
    settings = Settings(
        **{
            "home": folder / "home", "database_url": url, "broker_url": BROKER, "results_uri": str(folder / "results"),
            "api_requests_per_s": 1e6, **given,
        }
    )  # fmt: skip
    app = build_app(settings)
    held = held_connections(app.state.resources.engine)
    with TestClient(app, follow_redirects=False, raise_server_exceptions=False) as client:
        secret = create_key(engine, "test", Scope.ADMIN).secret
        client.headers["authorization"] = f"Bearer {secret}"
        yield Api(app, client, settings, engine)
    assert not held, "the application ends its connections"


def held_connections(engine: Engine) -> set[object]:
    """The connections of an engine, from their beginning to their end."""
    held: set[object] = set()
    event.listen(engine, "connect", lambda connection, _: held.add(connection))
    event.listen(engine, "close", lambda connection, _: held.discard(connection))
    return held
