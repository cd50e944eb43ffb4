"""Opening the database: PostgreSQL through psycopg, SQLite with the settings that let several processes share it.

Owns engines, the clock expression and short transactions; refuses statements about jobs.
"""

from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Double, Engine, Table, create_engine, event, func, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from orchestrator.redaction import redact

SQLITE_BUSY_TIMEOUT_S = 30
TEXT_MAX_CHARACTERS = 2_000
DATABASE_AWAY: tuple[type[Exception], ...] = (DBAPIError, PoolTimeout)
"""What a statement raises that a database does not answer; the second is told to who waits for a connection meanwhile,
while others' statements wait on all of them."""
# A server whose host is gone sends no reset: it is given up after half a minute, not after TCP's two hours.
_KEEPALIVE = {"keepalives_idle": 15, "keepalives_interval": 5, "keepalives_count": 3, "tcp_user_timeout": 30_000}


class now(FunctionElement[float]):
    """Seconds since the epoch by the database's own clock, also inside a long transaction."""

    type = Double()
    inherit_cache = True
    name = "now"


_NOW = {
    "sqlite": "((julianday('now') - 2440587.5) * 86400.0)",
    "postgresql": "extract(epoch from clock_timestamp())::double precision",
}


def now_text(dialect: str) -> str:
    """The clock expression for a statement that is written out."""
    return _NOW[dialect].replace(":", r"\:")


@compiles(now)
def _compile_now(element: Any, compiler: Any, **_: Any) -> str:
    return _NOW[compiler.dialect.name]


def take_turn(connection: Connection, to: str) -> None:
    """Until the transaction ends, do alone what `to` names; waits for who does. SQLite has one writer anyway."""
    if connection.dialect.name == "postgresql":
        connection.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(to, 0))))


def insert_new(connection: Connection, table: Table) -> Any:
    """An INSERT that passes over rows whose key is taken, as this connection's database writes it."""
    dialect = {"postgresql": postgresql, "sqlite": sqlite}[connection.dialect.name]
    return dialect.insert(table).on_conflict_do_nothing()


def open_database(url: str, *, pool_size: int = 4, relaxed: bool = False) -> Engine:
    """Open an engine whose `begin()` takes the write lock at once on SQLite and pings pooled connections on PostgreSQL.

    `relaxed` is for the many small writes of dispatcher and workers: PostgreSQL does not wait for its disk at a commit,
    and connections are not pinged before use. A crash of the server may then forget the last moments; those jobs run
    again and adopt the pictures they stored. Raises ValueError for a database that is neither.
    """
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        return _open_sqlite(url, Path(parsed.database or "").parent, pool_size)
    if parsed.get_backend_name() == "postgresql":
        arguments: dict[str, Any] = {"connect_timeout": 10, **_KEEPALIVE}
        if relaxed:
            arguments["options"] = "-c synchronous_commit=off"
        return create_engine(parsed, pool_size=pool_size, pool_pre_ping=not relaxed, connect_args=arguments)
    raise ValueError(f"{parsed.get_backend_name()} is no database we know; use sqlite:///… or postgresql://…")


def _open_sqlite(url: str, folder: Path, pool_size: int) -> Engine:
    folder.mkdir(parents=True, exist_ok=True)
    arguments = {"timeout": SQLITE_BUSY_TIMEOUT_S, "check_same_thread": False}
    engine = create_engine(url, pool_size=pool_size, connect_args=arguments)

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # the driver begins nothing by itself: `_begin` below does
        for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON", "temp_store=MEMORY"):
            connection.execute(f"PRAGMA {pragma}").close()

    # A deferred transaction that turns into a writer fails with BUSY whatever the timeout, hence IMMEDIATE.
    @event.listens_for(engine, "begin")
    def _begin(connection: Any) -> None:
        if connection.get_execution_options().get("isolation_level") != "AUTOCOMMIT":
            connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def reading(engine: Engine) -> Engine:
    """The same pool for statements that only read: no transaction is opened, so no write lock is taken."""
    return single(engine)


def single(engine: Engine) -> Engine:
    """The same pool for single statements, each a transaction of its own: one round trip instead of three."""
    return engine.execution_options(isolation_level="AUTOCOMMIT")


def storable(text: str) -> str:
    """A text that both databases store, whatever it came from: no NUL, no half of a surrogate pair, not endless."""
    return text[:TEXT_MAX_CHARACTERS].replace("\x00", "\ufffd").encode("utf-8", "replace").decode()


def tellable(text: str) -> str:
    """A message that both databases store and everybody may read: no secret is in it."""
    return storable(redact(text[: 2 * TEXT_MAX_CHARACTERS]))
