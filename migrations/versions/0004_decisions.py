"""Decisions on jobs, and the trail of a job through its stages."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

DECIDED = sa.text("decision IS NOT NULL")
UNTOLD = sa.text("decisions > decisions_told")
KINDS: tuple[tuple[str, type["sa.types.TypeEngine[Any]"]], ...] = (
    ("from", sa.Double),
    ("to", sa.Double),
    ("by", sa.Text),
)
TRAIL = [(f"{stage}_{name}", kind) for stage in ("encode", "sample", "decode") for name, kind in KINDS]


def upgrade() -> None:
    for name, comment in (
        ("decisions", "how often a decision was taken"),
        ("decisions_told", "how many its manifest tells"),
    ):
        op.add_column("batches", sa.Column(name, sa.Integer(), server_default="0", nullable=False, comment=comment))
    op.create_index("batches_untold_idx", "batches", ["id"], sqlite_where=UNTOLD, postgresql_where=UNTOLD)
    for name, kind in TRAIL:
        op.add_column("jobs", sa.Column(name, kind))
    op.add_column("jobs", sa.Column("decision", sa.Text(), comment="approved, rejected, or null: nobody has looked"))
    op.add_column("jobs", sa.Column("decided_at", sa.Double()))
    op.create_index(
        "jobs_decision_idx",
        "jobs",
        ["batch_id", "decision", "line"],
        sqlite_where=DECIDED,
        postgresql_where=DECIDED,
    )
    op.add_column(
        "attempts", sa.Column("began_at", sa.Double(), comment="when the stage began that it ended in")
    )  # fmt: skip


def downgrade() -> None:
    op.drop_column("attempts", "began_at")
    op.drop_index("jobs_decision_idx", "jobs")
    for name in ("decided_at", "decision", *(name for name, _ in reversed(TRAIL))):
        op.drop_column("jobs", name)
    op.drop_index("batches_untold_idx", "batches")
    for name in ("decisions_told", "decisions"):
        op.drop_column("batches", name)
