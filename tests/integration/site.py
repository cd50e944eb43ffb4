"""A server that runs: the real application behind a real port, with a key for each scope."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from sqlalchemy import Engine

from orchestrator.access.keys import create_key
from orchestrator.access.scopes import Scope
from orchestrator.api.app import build_app
from orchestrator.client import Client
from orchestrator.settings import Settings
from orchestrator.storage import Store, open_store
from tests.integration.api_client import BROKER, held_connections
from tests.waiting import PATIENCE_S


@dataclass
class Site:
    """Its address, what it runs on, and its keys."""

    url: str
    settings: Settings
    engine: Engine
    keys: dict[Scope, str]

    def client(self, scope: Scope = Scope.ADMIN) -> Client:
        """A client with a key of that scope; the caller closes it."""
        return Client(self.url, self.keys[scope])

    @property
    def inputs(self) -> Store:
        """Where images that were sent lie."""
        return open_store(f"{self.settings.results_uri}/inputs", self.settings)


@contextmanager
def open_site(engine: Engine, folder: Path, **given: object) -> Iterator[Site]:
    """Serve on this database; results lie in a folder unless told otherwise."""
    url = engine.url.render_as_string(hide_password=False)
    named = {"home": folder / "home", "database_url": url, "broker_url": BROKER, "results_uri": str(folder / "results")}
    settings = Settings.model_validate({**named, "api_requests_per_s": 1e6, **given})
    app = build_app(settings)
    held = held_connections(app.state.resources.engine)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            threading.Event().wait(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        keys = {scope: create_key(engine, f"a key to {scope}", scope).secret for scope in Scope}
        yield Site(f"http://127.0.0.1:{port}", settings, engine, keys)
    finally:
        server.should_exit = True
        thread.join(PATIENCE_S)
    assert not held, "the application ends its connections"
