"""The schema's version: bringing a database to the newest one, and saying where it stands.

Owns the call of alembic; the steps are files in `migrations`, each named after its revision. Refuses to touch a
database that is newer than this version of the program.
"""

from pathlib import Path

from sqlalchemy import Connection, Engine, column, inspect, select, table

from orchestrator.state.database import reading

FOLDER = Path(__file__).resolve().parents[2] / "migrations"
_VERSION = table("alembic_version", column("version_num"))


class MigrationError(RuntimeError):
    """The database cannot be brought to this version; the message says what to do."""


def upgrade(engine: Engine) -> str:
    """Bring the database to the newest schema and give its revision; costs two queries when it stands there already.

    Two at once are safe: one waits for the other. Raises MigrationError when the database is newer than this program.
    """
    stands, newest = current(engine), head()
    if stands == newest:
        return newest
    if stands is not None and stands not in _revisions():
        raise MigrationError(
            f"the database stands at revision {stands}, which this version (newest: {newest}) does not know; "
            "run the version that made it, or a newer one"
        )
    # Here and not above: loading alembic takes longer than finding that there is nothing to do.
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(FOLDER).replace("%", "%%"))
    with engine.connect() as connection:
        _sort_in_files(connection, on=True)
        try:
            with connection.begin():
                config.attributes["connection"] = connection
                command.upgrade(config, "head")
        finally:
            _sort_in_files(connection, on=False)
    return newest


def _sort_in_files(connection: Connection, *, on: bool) -> None:
    """Have SQLite sort in files what it puts into an index: of a large table it would fill the memory.

    Told to the driver, since no transaction may be open.
    """
    if connection.dialect.name == "sqlite":
        driver = connection.connection.dbapi_connection
        assert driver is not None
        driver.cursor().execute(f"PRAGMA temp_store = {'FILE' if on else 'MEMORY'}").close()


def current(engine: Engine) -> str | None:
    """The revision the database stands at; None for one without our tables."""
    with reading(engine).connect() as connection:
        if not inspect(connection).has_table(_VERSION.name):
            return None
        revision: str | None = connection.execute(select(_VERSION.c.version_num)).scalar_one_or_none()
        return revision


def head() -> str:
    """The newest revision there is."""
    return _revisions()[-1]


def _revisions() -> list[str]:
    """Revisions are numbers with leading zeros, so that their order by name is their order."""
    return sorted(path.name.partition("_")[0] for path in (FOLDER / "versions").glob("[0-9]*_*.py"))
