"""Which batch a message about a failed job is of: so many of a batch are told, not all."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

OF_BATCH = sa.text("batch_id IS NOT NULL")


def upgrade() -> None:
    op.add_column("deliveries", sa.Column("batch_id", sa.Text(), comment="of job.failed: whose job it is"))
    op.create_index(
        "deliveries_batch_id_idx",
        "deliveries",
        ["batch_id", "webhook_id", "created_at"],
        sqlite_where=OF_BATCH,
        postgresql_where=OF_BATCH,
    )


def downgrade() -> None:
    op.drop_index("deliveries_batch_id_idx", "deliveries")
    op.drop_column("deliveries", "batch_id")
