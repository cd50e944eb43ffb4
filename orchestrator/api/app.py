"""The application: which routers it has, what stands before them, and how it is served.

Owns the table of routers; a part of the API or of the pages is one line of it.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from importlib.metadata import version

import uvicorn
from fastapi import APIRouter, FastAPI

from orchestrator import dashboard
from orchestrator.api import (
    batches,
    exports,
    health,
    jobs,
    keys,
    live,
    reference,
    schedules,
    sign_in,
    standing,
    submit,
    uploads,
    webhooks,
)
from orchestrator.api.access import Gate
from orchestrator.api.headers import SecurityHeaders, security_headers
from orchestrator.api.problems import TellTooLarge, install_problems
from orchestrator.api.resources import open_resources
from orchestrator.api.watcher import Watcher
from orchestrator.settings import Settings
from orchestrator.tallies import Tallies

MAX_BODY_BYTES = 1 << 20
"""Of any request, where a route does not allow more."""

ROUTERS: tuple[APIRouter, ...] = (
    health.public,
    health.router,
    sign_in.public,
    sign_in.router,
    reference.router,
    batches.router,
    jobs.router,
    exports.router,
    live.router,
    standing.router,
    keys.router,
    schedules.router,
    webhooks.router,
    webhooks.all_deliveries,
    *dashboard.ROUTERS,
)
UPLOADING: tuple[APIRouter, ...] = (submit.router, uploads.router, *dashboard.UPLOADING)
"""Those that take bodies as large as `max_upload_bytes`."""


def build_app(settings: Settings) -> FastAPI:
    """The application for these settings; needs `database_url` and `broker_url`. Connects to nothing yet."""
    resources = open_resources(settings)
    tallies = Tallies(resources.engine)
    services = {Tallies: tallies, Watcher: Watcher(resources.engine, tallies)}
    resources = replace(resources, services={**services, **dashboard.open_services(settings)})

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await resources.service(Watcher).close()
        resources.service(Tallies).close()
        resources.broker.close()
        resources.engine.dispose()

    app = FastAPI(
        title="Kontext Batch",
        version=version("kontext-batch"),
        lifespan=lifespan,
        openapi_url=None,
        redirect_slashes=False,
    )
    headers = security_headers(settings)
    app.state.resources, app.state.error_headers = resources, headers
    for router in ROUTERS:
        app.include_router(router, max_body_size=MAX_BODY_BYTES)
    for router in UPLOADING:
        app.include_router(router, max_body_size=settings.max_upload_bytes)
    install_problems(app)
    reference.install_reference(app)
    app.add_middleware(TellTooLarge)
    app.add_middleware(Gate, resources=resources)
    app.add_middleware(SecurityHeaders, headers=headers)
    return app


def serve(settings: Settings, host: str, port: int, ready: Callable[[str], None] = lambda url: None) -> None:
    """Serve until SIGTERM or Ctrl-C. `ready` is called with the address once requests are answered.

    Raises SystemExit when the address cannot be bound, after uvicorn has said why.
    """
    config = uvicorn.Config(build_app(settings), host=host, port=port, log_level="warning", timeout_graceful_shutdown=5)
    server = uvicorn.Server(config)

    async def run() -> None:
        serving = asyncio.ensure_future(server.serve())
        while not server.started and not serving.done():
            await asyncio.sleep(0.02)
        if server.started:
            bound = server.servers[0].sockets[0].getsockname()[1]  # with port 0, the one that was free
            shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, host)
            ready(f"http://{shown}:{bound}")
        await serving

    asyncio.run(run())
