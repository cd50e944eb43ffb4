"""Bulk insertion of jobs: COPY on PostgreSQL, executemany on SQLite.

Owns how a catalogue's rows get into SQL at the speed of the database's own bulk load. Refuses to judge rows; a doubled
custom_id is found by the unique index and reported, never stored twice.
"""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, bindparam, select
from sqlalchemy.exc import IntegrityError

from orchestrator.state.tables import jobs

COLUMNS = (
    "batch_id", "line", "custom_id", "image", "recipe_id", "seed", "priority", "given", "state", "ended_at", "code",
    "message",
)  # fmt: skip
JobRow = tuple[Any, ...]
"""Values in the order of COLUMNS."""

_LINE, _BATCH = COLUMNS.index("line"), COLUMNS.index("batch_id")
_INSERT = f"INSERT INTO jobs ({', '.join(COLUMNS)}) VALUES ({', '.join('?' * len(COLUMNS))}) ON CONFLICT DO NOTHING"


def insert_jobs(connection: Connection, rows: Sequence[JobRow]) -> list[JobRow]:
    """Insert jobs; gives back those whose (batch, custom_id) is taken, which were not inserted.

    The rows' lines must be new to the batch.
    """
    if not rows:
        return []
    if connection.dialect.name == "postgresql":
        return _copy(connection, rows)
    cursor = connection.connection.cursor()
    try:
        inserted = cursor.executemany(_INSERT, rows).rowcount
    finally:
        cursor.close()
    return [] if inserted == len(rows) else _refused(connection, rows)


def _copy(connection: Connection, rows: Sequence[JobRow]) -> list[JobRow]:
    target = f"({', '.join(COLUMNS)})"
    cursor = connection.connection.cursor()
    try:
        with connection.begin_nested(), cursor.copy(f"COPY jobs {target} FROM STDIN") as copy:
            for row in rows:
                copy.write_row(row)
        return []
    except _unique_violation():
        # Some custom_id is doubled: go through a staging table, which can skip it.
        cursor.execute(f"CREATE TEMP TABLE staged ON COMMIT DROP AS SELECT {', '.join(COLUMNS)} FROM jobs WITH NO DATA")
        with cursor.copy(f"COPY staged {target} FROM STDIN") as copy:
            for row in rows:
                copy.write_row(row)
        cursor.execute(
            f"INSERT INTO jobs {target} SELECT {', '.join(COLUMNS)} FROM staged ORDER BY line ON CONFLICT DO NOTHING"
        )
        cursor.execute("DROP TABLE staged")
        return _refused(connection, rows)
    finally:
        cursor.close()


def _unique_violation() -> tuple[type[Exception], ...]:
    from psycopg.errors import UniqueViolation

    return (UniqueViolation, IntegrityError)


def _refused(connection: Connection, rows: Sequence[JobRow]) -> list[JobRow]:
    lines = select(jobs.c.line).where(
        jobs.c.batch_id == rows[0][_BATCH], jobs.c.line.between(bindparam("first"), bindparam("last"))
    )
    given = [row[_LINE] for row in rows]
    stored = set(connection.execute(lines, {"first": min(given), "last": max(given)}).scalars())
    return [row for row in rows if row[_LINE] not in stored]
