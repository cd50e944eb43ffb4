"""What routes work with: the settings, the database, the broker. Opened once for a process, closed with it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar

import redis
from fastapi import Depends, Request
from redis.backoff import NoBackoff
from redis.retry import Retry
from sqlalchemy import Engine

from orchestrator.access.sessions import Sessions
from orchestrator.settings import Settings
from orchestrator.state import patience
from orchestrator.state.database import open_database

BROKER_S = 2.0
# Routes run in threads, and each holds a connection for its statements alone.
POOL_SIZE = 16
T = TypeVar("T")


@dataclass(frozen=True)
class Resources:
    """One of each for a process. `services` holds what a part of the application opens for itself, by its type."""

    settings: Settings
    engine: Engine
    broker: "redis.Redis"
    sessions: Sessions
    services: Mapping[type, Any] = field(default_factory=dict)

    def service(self, kind: type[T]) -> T:
        """The one object of that type."""
        found: T = self.services[kind]
        return found


def open_resources(settings: Settings) -> Resources:
    """Open what these settings name; nothing is connected yet. Needs `database_url` and `broker_url`."""
    assert settings.database_url is not None and settings.broker_url is not None
    engine = open_database(settings.database_url, pool_size=POOL_SIZE)
    patience.watch(engine)
    # One retry, for a pooled connection that the broker has closed meanwhile.
    options = {"socket_timeout": BROKER_S, "socket_connect_timeout": BROKER_S, "retry": Retry(NoBackoff(), 1)}
    broker = redis.Redis.from_url(settings.broker_url, **options)
    return Resources(settings, engine, broker, Sessions(engine))


def resources_of(request: Request) -> Resources:
    """The resources of the application that answers this request."""
    found: Resources = request.app.state.resources
    return found


async def _opened(request: Request) -> Resources:
    return resources_of(request)  # at once: a plain function would be sent to a thread


Open = Annotated[Resources, Depends(_opened)]
"""The parameter of a route that works with them."""
