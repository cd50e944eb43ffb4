"""What is remembered of source images, so that an unchanged one is not downloaded again."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "sources",
        sa.Column("id", sa.Text(), nullable=False, comment="digest of the image's absolute URI"),
        sa.Column("validator", sa.Text(), nullable=False, comment="a strong ETag, or a file's identity and times"),
        sa.Column("image_sha256", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="sources_pkey"),
    )


def downgrade() -> None:
    op.drop_table("sources")
