"""Databases for the tests of the state: a SQLite file and a real PostgreSQL, both with today's tables and empty."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from orchestrator import tallies
from orchestrator.state.database import open_database
from orchestrator.state.tables import metadata
from tests.integration.seeding import Seeder


@pytest.fixture(scope="session", autouse=True)
def counts_of_now() -> Iterator[None]:
    """A count that took long is told again for a while: here a caller is told of what was done just before."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tallies, "REST", 0.0)
        patch.setattr(tallies, "PATIENCE_S", float("inf"))
        yield


@pytest.fixture(scope="session")
def postgres_tables(postgres_url: str) -> Iterator[Engine]:
    """PostgreSQL with the tables, shared by all tests."""
    engine = open_database(postgres_url)
    metadata.create_all(engine)
    yield engine
    engine.dispose()


@pytest.fixture(params=["sqlite", "postgresql"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    """An empty database, once of each kind."""
    if request.param == "postgresql":
        shared: Engine = request.getfixturevalue("postgres_tables")
        yield shared
        with shared.begin() as connection:
            connection.execute(text(f"TRUNCATE {', '.join(metadata.tables)} RESTART IDENTITY"))
        return
    engine = open_database(f"sqlite:///{tmp_path / 'state.db'}")
    metadata.create_all(engine)
    yield engine
    engine.dispose()


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a database without tables, once of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'empty.db'}"
    url: str = request.getfixturevalue("fresh_database_url")
    return url


@pytest.fixture
def seed(engine: Engine) -> Seeder:
    """Makes batches and jobs in the database under test."""
    return Seeder(engine)
