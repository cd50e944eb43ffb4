"""How alembic reaches the database: over the connection it is given, or by KONTEXT_DATABASE_URL from its command line.

Two upgrades at once wait for each other; the second finds its work done.
"""

import os

from alembic import context
from sqlalchemy import Connection, create_engine, make_url, text

from orchestrator.state.tables import metadata

# Any number of our own: every upgrade of this schema takes the same lock.
LOCK_KEY = 0x6B6F6E7465787462


def migrate(connection: Connection) -> None:
    """Run what was asked of alembic, in one transaction, alone."""
    context.configure(connection=connection, target_metadata=metadata, transactional_ddl=True)
    with context.begin_transaction():
        if connection.dialect.name == "postgresql":
            connection.execute(text(f"SELECT pg_advisory_xact_lock({LOCK_KEY})"))
        elif not connection.connection.dbapi_connection.in_transaction:  # type: ignore[union-attr]
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        context.run_migrations()


def migrate_by_environment() -> None:
    """Open the database that KONTEXT_DATABASE_URL names and migrate it."""
    address = os.environ.get("KONTEXT_DATABASE_URL")
    if not address:
        raise SystemExit("set KONTEXT_DATABASE_URL: sqlite:///path or postgresql://user@host/database")
    url = make_url(address)
    if url.get_backend_name() in {"postgres", "postgresql"}:
        url = url.set(drivername="postgresql+psycopg")
    # SQLite's driver would begin a transaction only at the first row, after the tables were made.
    engine = create_engine(url, connect_args={"isolation_level": None} if url.drivername.startswith("sqlite") else {})
    with engine.begin() as connection:
        migrate(connection)
    engine.dispose()


given = context.config.attributes.get("connection")
if given is None:
    migrate_by_environment()
else:
    migrate(given)
