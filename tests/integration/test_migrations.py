"""The schema's history gives the very tables the code knows, on both databases, also when two upgrade at once."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.command import downgrade as alembic_downgrade
from alembic.command import upgrade as alembic_upgrade
from alembic.config import Config
from alembic.config import main as alembic_command
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, Row, delete, insert, inspect, select, text

from orchestrator.state.database import open_database
from orchestrator.state.migration import FOLDER, MigrationError, current, head, upgrade
from orchestrator.state.tables import jobs, metadata
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


NUMBERED = [table.name for table in metadata.sorted_tables if table.autoincrement_column is not None]
ROWS = (
    "INSERT INTO batches (id, request, catalogue, image_root, columns, options, status, checkpoint, revision, numerics,"
    " handoff_bytes, results_uri, created_at)"
    " VALUES ('b', 'r', 'c', '/', '[]', '{}', 'running', 'k', 'r', 'n', 1, '/r', 1)",
    *(
        "INSERT INTO jobs (id, batch_id, line, custom_id, image, recipe_id, state, sha256, decision)"
        f" VALUES ({line + 6}, 'b', {line}, 'photo-{line}', 'é.jpg', 'recipe', 'succeeded', 'sha', 'approved')"
        for line in (1, 2, 3)
    ),
    "INSERT INTO attempts (id, job_id, attempt, stage, outcome, ended_at) VALUES (4, 8, 1, 'sample', 'retry', 2.5)",
    "INSERT INTO audit (id, at, caller, action, target, detail) VALUES (2, 1, 'key:k', 'batch.create', 'b', '{}')",
    "INSERT INTO schedules (name, cron, time_zone, catalogue, asked, overlap, missed, created_at)"
    " VALUES ('night', '0 2 * * *', 'UTC', 'c', '{}', 'skip', 'once', 1)",
    "INSERT INTO schedule_runs (id, schedule, fire_at, state, batch_id, created_at)"
    " VALUES (3, 'night', 1, 'due', 'n', 1)",
    "INSERT INTO webhooks (id, url, events, secret, created_at) VALUES ('w', 'https://h.example', '[]', 's', 1)",
    "INSERT INTO deliveries (id, webhook_id, message_id, event, body, state, attempts, created_at, since, next_at)"
    " VALUES (5, 'w', 'm', 'job.failed', '{}', 'pending', 3, 1, 1, 1)",
    "INSERT INTO idempotency (caller, key, sha256, batch_id, created_at) VALUES ('k', 'kept', 's', 'b', 1)",
    "INSERT INTO idempotency (caller, key, sha256, batch_id, created_at) VALUES ('k', 'of a deleted one', 's', 'x', 1)",
    "INSERT INTO delivery_attempts (id, delivery_id, attempt, at, latency_s) VALUES (6, 5, 3, 1, 0.5)",
)


def migrate(engine: Engine, command: Callable[[Config, str], None], revision: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(FOLDER))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command(config, revision)


def read_all(engine: Engine) -> Mapping[str, Sequence[Row[tuple[object, ...]]]]:
    """All rows of the numbered tables, without the column that came with the numbers."""
    with engine.connect() as connection:
        columns = {name: inspect(connection).get_columns(name) for name in NUMBERED}
        named = {name: [column["name"] for column in columns[name] if column["name"] != "tries"] for name in NUMBERED}
        return {
            name: connection.execute(text(f"SELECT {', '.join(named[name])} FROM {name} ORDER BY id")).all()
            for name in NUMBERED
        }


def test_numbering_anew_keeps_rows_indexes_and_what_they_refer_to(empty_url: str) -> None:
    engine = open_database(empty_url)
    migrate(engine, alembic_upgrade, "0009")
    with engine.begin() as connection:
        for statement in ROWS:
            connection.execute(text(statement))
    before = read_all(engine), definitions(engine)
    assert all(before[0].values()), "each table has a row"
    for _ in range(2):
        migrate(engine, alembic_upgrade, "0010")
        assert read_all(engine) == before[0]
        with engine.begin() as connection:
            assert connection.execute(text("SELECT tries FROM deliveries")).scalar_one() == 3
            assert connection.execute(text("SELECT key FROM idempotency")).scalars().all() == ["kept"]
        migrate(engine, alembic_downgrade, "0009")
        assert (read_all(engine), definitions(engine)) == before
    upgrade(engine)
    with engine.begin() as connection:
        if engine.dialect.name == "sqlite":
            assert connection.exec_driver_sql("PRAGMA foreign_key_check").all() == []
            assert connection.exec_driver_sql("PRAGMA integrity_check").scalar_one() == "ok"
        connection.execute(delete(jobs).where(jobs.c.id == 8))
    left = read_all(engine)
    assert (len(left["jobs"]), left["attempts"]) == (2, []), "an attempt goes with its job"
    engine.dispose()


def test_sqlite_gives_no_number_twice(tmp_path: Path) -> None:
    migrated, made = (open_database(f"sqlite:///{tmp_path / name}.db") for name in ("migrated", "made"))
    migrate(migrated, alembic_upgrade, "0009")
    metadata.create_all(made)
    for engine in (migrated, made):
        with engine.begin() as connection:
            for statement in ROWS:
                connection.execute(text(statement))
    upgrade(migrated)
    for engine in (migrated, made):
        with engine.connect() as connection:
            sql = "SELECT name FROM sqlite_master WHERE type = 'table' AND sql LIKE '% AUTOINCREMENT%'"
            assert sorted(connection.execute(text(sql)).scalars()) == sorted(NUMBERED)
        with engine.begin() as connection:
            connection.execute(delete(jobs))
            row = {"batch_id": "b", "line": 1, "custom_id": "photo-1", "state": "pending"}
            assert connection.execute(insert(jobs).values(row).returning(jobs.c.id)).scalar_one() == 10
            assert connection.execute(select(jobs.c.id)).scalars().all() == [10]
        engine.dispose()
