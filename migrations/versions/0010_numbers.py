"""Row numbers that SQLite gives once; when an ingest last moved; a delivery's tries since its day began."""

import re
from collections.abc import Callable

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

# A table before those that refer to it.
NUMBERED = ("audit", "jobs", "attempts", "schedule_runs", "deliveries", "delivery_attempts")
REUSED, ONCE = "id INTEGER NOT NULL,", "id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,"


def upgrade() -> None:
    told = "when rows of its catalogue were last stored, or somebody began to"
    op.add_column("batches", sa.Column("ingested_at", sa.Double(), comment=told))
    op.add_column(
        "deliveries",
        sa.Column(
            "tries", sa.Integer(), server_default="0", nullable=False, comment="of its day: what the back-off grows by"
        ),
    )
    op.execute("UPDATE deliveries SET tries = attempts WHERE state = 'pending'")
    # Keys of deleted batches: they would give the old ids once more, over the old pictures.
    op.execute("DELETE FROM idempotency WHERE batch_id NOT IN (SELECT id FROM batches)")
    op.create_index("idempotency_batch_id_idx", "idempotency", ["batch_id"])
    if op.get_bind().dialect.name == "sqlite":
        _rebuild(_number_once)


def downgrade() -> None:
    if op.get_bind().dialect.name == "sqlite":
        _rebuild(_number_again)
    op.drop_index("idempotency_batch_id_idx", "idempotency")
    op.drop_column("deliveries", "tries")
    op.drop_column("batches", "ingested_at")


def _number_once(name: str, definition: str) -> str:
    changed = definition.replace(REUSED, ONCE, 1)
    return re.sub(rf",\s*CONSTRAINT {name}_pkey PRIMARY KEY \(id\)", "", changed, count=1)


def _number_again(name: str, definition: str) -> str:
    changed = definition.replace(ONCE, REUSED, 1)
    return f"{changed[: changed.rindex(')')]}, CONSTRAINT {name}_pkey PRIMARY KEY (id))"


def _rebuild(change: Callable[[str, str], str]) -> None:
    """Copy the numbered tables into ones that are defined anew, and give those the names and the indexes of the old.

    All are copied before one is dropped, and those that refer to others are dropped first: dropping a table deletes its
    rows, and with them the rows that refer to them. Indexes are made last, of rows that stand in order.
    """
    connection = op.get_bind()
    kept = sa.text("SELECT type, tbl_name, sql FROM sqlite_master WHERE sql IS NOT NULL AND type IN ('table', 'index')")
    found = [tuple(row) for row in connection.execute(kept) if row.tbl_name in NUMBERED]
    definitions = {name: sql for kind, name, sql in found if kind == "table"}
    for name in NUMBERED:
        changed = change(name, definitions[name])
        if changed == definitions[name] or changed.count("PRIMARY KEY") != 1:
            raise RuntimeError(f"table {name} is not defined as this program defined it; its numbers stay as they are")
        _, opening, body = changed.partition("(")
        for parent in NUMBERED:
            body = re.sub(rf"REFERENCES \"?{parent}\"? \(", f'REFERENCES "{parent}_new" (', body)
        connection.exec_driver_sql(f'CREATE TABLE "{name}_new" {opening}{body}')
        connection.exec_driver_sql(f'INSERT INTO "{name}_new" SELECT * FROM "{name}" ORDER BY id')
    for name in reversed(NUMBERED):
        connection.exec_driver_sql(f'DROP TABLE "{name}"')
    for name in NUMBERED:
        connection.exec_driver_sql(f'ALTER TABLE "{name}_new" RENAME TO "{name}"')
    for kind, _, sql in found:
        if kind == "index":
            connection.exec_driver_sql(sql)
