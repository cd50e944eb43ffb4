"""Schedules and their runs: one run for each time a schedule fires, whoever fires it."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
OPEN_RUN = sa.text("state IN ('due', 'waiting', 'starting', 'started')")


def upgrade() -> None:
    op.create_table(
        "schedules",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("cron", sa.Text(), nullable=False),
        sa.Column("time_zone", sa.Text(), nullable=False, comment="IANA name; the cron expression is read in it"),
        sa.Column("catalogue", sa.Text(), nullable=False),
        sa.Column("asked", sa.Text(), nullable=False, comment="JSON: options of its batches, as values already read"),
        sa.Column("results_uri", sa.Text(), comment="null: where the dispatcher's settings say"),
        sa.Column("priority", sa.SmallInteger(), server_default="0", nullable=False),
        sa.Column(
            "only_changed", sa.SmallInteger(), server_default="1", nullable=False, comment="0: nothing is reused"
        ),
        sa.Column("overlap", sa.Text(), nullable=False),
        sa.Column("missed", sa.Text(), nullable=False),
        sa.Column("paused", sa.SmallInteger(), server_default="0", nullable=False),
        sa.Column("next_fire_at", sa.Double(), comment="null: never, or paused"),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("schedules_pkey")),
    )
    op.create_index("schedules_next_fire_at_idx", "schedules", ["next_fire_at"])
    _create_runs()


def _create_runs() -> None:
    op.create_table(
        "schedule_runs",
        sa.Column("id", NUMBER, autoincrement=True, nullable=False),
        sa.Column("schedule", sa.Text(), nullable=False),
        sa.Column("fire_at", sa.Double(), nullable=False, comment="the time it was due, or was asked for"),
        sa.Column("by_request", sa.SmallInteger(), server_default="0", nullable=False),
        sa.Column(
            "missed", sa.Integer(), server_default="0", nullable=False, comment="earlier fire times that it stands for"
        ),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), comment="why it was skipped, failed, waits, or is tried again"),
        sa.Column("batch_id", sa.Text(), nullable=False, comment="its batch's id, fixed before the batch is made"),
        sa.Column("claimed_by", sa.Text(), comment="the scheduler that makes its batch"),
        sa.Column("lease_until", sa.Double(), comment="then another scheduler goes on"),
        sa.Column("tries", sa.SmallInteger(), server_default="0", nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("started_at", sa.Double()),
        sa.Column("ended_at", sa.Double()),
        *(
            sa.Column(f"{name}_jobs", sa.BigInteger())
            for name in ("total", "new", "changed", "reused", "failed", "cancelled")
        ),
        sa.ForeignKeyConstraint(
            ["schedule"], ["schedules.name"], name=op.f("schedule_runs_schedule_fkey"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("schedule_runs_pkey")),
    )
    op.create_index("schedule_runs_fire_at_key", "schedule_runs", ["schedule", "fire_at"], unique=True)
    op.create_index("schedule_runs_batch_id_idx", "schedule_runs", ["batch_id"])
    op.create_index(
        "schedule_runs_open_idx", "schedule_runs", ["state"], sqlite_where=OPEN_RUN, postgresql_where=OPEN_RUN
    )


def downgrade() -> None:
    op.drop_table("schedule_runs")
    op.drop_table("schedules")
