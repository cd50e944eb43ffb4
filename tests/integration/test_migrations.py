"""The schema's history gives the very tables the code knows, on both databases, also when two upgrade at once."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import pytest
from alembic.autogenerate import compare_metadata
from alembic.command import upgrade as alembic_upgrade
from alembic.config import Config
from alembic.config import main as alembic_command
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, inspect, text

from orchestrator.state.database import open_database
from orchestrator.state.migration import FOLDER, MigrationError, current, head, upgrade
from orchestrator.state.tables import metadata
from tests.waiting import PATIENCE_S


def definitions(engine: Engine) -> Mapping[str, str]:
    """Every index and table as the database itself would write it."""
    statement = {
        "sqlite": "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL",
        "postgresql": "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public' UNION ALL "
        "SELECT relname, coalesce(array_to_string(reloptions, ','), '') FROM pg_class WHERE relname = 'jobs' UNION ALL "
        "SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint WHERE connamespace = 'public'::regnamespace",
    }[engine.dialect.name]
    with engine.connect() as connection:
        found = {name: " ".join(definition.split()) for name, definition in connection.execute(text(statement))}
    return {name: definition for name, definition in found.items() if not name.startswith("alembic_version")}


def test_the_migrated_schema_is_the_tables_of_the_code(empty_url: str) -> None:
    engine = open_database(empty_url)
    assert upgrade(engine) == head()
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection, opts={"compare_type": True}), metadata) == []
    migrated = definitions(engine)
    with engine.begin() as connection:
        metadata.drop_all(connection)
        metadata.create_all(connection)
    assert migrated == definitions(engine)
    assert "jobs_queued_idx" in migrated and "WHERE" in migrated["jobs_queued_idx"]
    engine.dispose()


def test_an_upgrade_is_needed_once(empty_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = open_database(empty_url)
    assert current(engine) is None
    upgrade(engine)
    assert current(engine) == head()
    monkeypatch.setattr("alembic.command.upgrade", lambda *_: pytest.fail("nothing was left to do"))
    assert upgrade(engine) == head()
    engine.dispose()


def test_upgrades_at_the_same_time_wait_for_each_other(empty_url: str) -> None:
    first, second = open_database(empty_url), open_database(empty_url)
    config = Config()
    config.set_main_option("script_location", str(FOLDER))
    with ThreadPoolExecutor(1) as pool:
        with first.begin() as connection:
            config.attributes["connection"] = connection
            alembic_upgrade(config, "head")
            other = pool.submit(upgrade, second)
            with pytest.raises(TimeoutError):
                other.result(timeout=0.7)
        assert other.result(timeout=PATIENCE_S) == head() == current(first)
    first.dispose()
    second.dispose()


def test_a_newer_database_is_refused(empty_url: str) -> None:
    engine = open_database(empty_url)
    upgrade(engine)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(MigrationError, match="revision 9999"):
        upgrade(engine)
    engine.dispose()


def test_the_plain_alembic_command_goes_up_and_down(empty_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KONTEXT_DATABASE_URL", empty_url.replace("+psycopg", ""))
    monkeypatch.chdir("/")
    command = ["-c", str(FOLDER / "alembic.ini")]
    alembic_command([*command, "upgrade", "head"])
    engine = open_database(empty_url)
    assert current(engine) == head()
    alembic_command([*command, "downgrade", "base"])
    assert current(engine) is None
    assert set(inspect(engine).get_table_names()) <= {"alembic_version"}
    engine.dispose()


def test_the_newest_revision_by_name_is_alembics_head() -> None:
    assert ScriptDirectory(str(FOLDER)).get_heads() == [head()]
