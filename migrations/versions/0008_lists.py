"""What lists need: counts of ended batches, indexes by time and code; metadata and idempotency of requests."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

FAILED, SUCCEEDED, REUSED = (sa.text(text) for text in ("state = 'failed'", "state = 'succeeded'", "reused = 1"))
INDEXES: tuple[tuple[str, list[str], "sa.TextClause"], ...] = (
    ("jobs_reused_idx", ["batch_id"], REUSED),
    ("jobs_failed_idx", ["batch_id", "code", "line", "take"], FAILED),
    ("jobs_failed_at_idx", ["ended_at", "code"], FAILED),
    ("jobs_succeeded_at_idx", ["ended_at", "batch_id"], SUCCEEDED),
)


def upgrade() -> None:
    op.add_column("batches", sa.Column("metadata", sa.Text(), comment="JSON object of texts: the caller's own"))
    op.add_column("batches", sa.Column("ended_counts", sa.Text(), comment="JSON: jobs by state, of an ended batch"))
    op.create_index("batches_created_idx", "batches", [sa.text("created_at DESC"), sa.text("id DESC")])
    for name, columns, where in INDEXES:
        op.create_index(name, "jobs", columns, sqlite_where=where, postgresql_where=where)
    op.create_table(
        "idempotency",
        sa.Column("caller", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False, comment="of the request"),
        sa.Column("batch_id", sa.Text(), nullable=False, comment="the batch that the request makes, or has made"),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("caller", "key", name="idempotency_pkey"),
    )


def downgrade() -> None:
    op.drop_table("idempotency")
    for name, _, _ in INDEXES:
        op.drop_index(name, "jobs")
    op.drop_index("batches_created_idx", "batches")
    for column in ("ended_counts", "metadata"):
        op.drop_column("batches", column)
