"""How SQLite is opened: readers wait for nobody, writers take their lock at once."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import OperationalError

from orchestrator.state.database import open_database, reading, single


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Engine]:
    engine = open_database(f"sqlite:///{tmp_path / 'state.db'}")
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE numbers (number INTEGER)"))
    yield engine
    engine.dispose()


def test_readers_go_on_while_a_writer_holds_the_lock(database: Engine) -> None:
    with database.begin() as writer, reading(database).connect() as reader:
        writer.execute(text("INSERT INTO numbers VALUES (1)"))
        assert reader.execute(text("SELECT count(*) FROM numbers")).scalar_one() == 0


def test_a_transaction_takes_the_write_lock_at_its_start(database: Engine) -> None:
    with database.begin(), reading(database).connect() as other:
        other.execute(text("PRAGMA busy_timeout = 1"))
        with pytest.raises(OperationalError, match="locked"):
            other.execute(text("INSERT INTO numbers VALUES (1)"))
        other.execute(text("PRAGMA busy_timeout = 30000"))


def test_single_statements_are_committed(database: Engine) -> None:
    with single(database).connect() as connection:
        connection.execute(text("INSERT INTO numbers VALUES (1)"))
    with reading(database).connect() as connection:
        assert connection.execute(text("SELECT number FROM numbers")).scalar_one() == 1


def test_an_error_undoes_the_whole_transaction(database: Engine) -> None:
    with pytest.raises(RuntimeError), database.begin() as connection:
        connection.execute(text("INSERT INTO numbers VALUES (1)"))
        raise RuntimeError
    with reading(database).connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM numbers")).scalar_one() == 0
