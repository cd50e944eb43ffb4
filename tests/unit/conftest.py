"""A small database for what needs one and not both: a SQLite file with today's tables, empty."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from orchestrator.state.database import open_database
from orchestrator.state.tables import metadata
from tests.integration.seeding import Seeder


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = open_database(f"sqlite:///{tmp_path / 'state.db'}")
    metadata.create_all(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def seed(engine: Engine) -> Seeder:
    return Seeder(engine)
