"""Control: deadlines, waiting and reopening of batches; urgency in seconds, unit limits and stage times of jobs."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

QUEUED = sa.text("state = 'queued'")


def upgrade() -> None:
    op.add_column(
        "batches", sa.Column("deadline_at", sa.Double(), comment="what is not claimed by then fails as expired")
    )
    op.add_column(
        "batches",
        sa.Column(
            "dispatched_at", sa.Double(), comment="when it last had jobs queued: the longer ago, the more urgent"
        ),
    )
    op.add_column(
        "batches",
        sa.Column("resumed_at", sa.Double(), comment="its error rate is that of the jobs that ended since"),
    )
    op.add_column(
        "batches",
        sa.Column(
            "reopened",
            sa.Integer(),
            server_default="0",
            nullable=False,
            comment="how often ended jobs were asked again",
        ),
    )
    op.add_column(
        "jobs",
        sa.Column("unit_limit", sa.SmallInteger(), comment="the largest unit it may be claimed in; null: any"),
    )
    op.add_column("jobs", sa.Column("stage_at", sa.Double(), comment="when the stage at hand began"))
    _replace_urgency(sa.Double(), "the order of claims, in seconds", [sa.text("urgency DESC"), "id"])


def downgrade() -> None:
    _replace_urgency(
        sa.Integer(),
        "the order of claims, set as it is queued",
        ["recipe_id", "canvas", sa.text("urgency DESC"), "id"],
    )
    for column in ("stage_at", "unit_limit"):
        op.drop_column("jobs", column)
    for column in ("reopened", "resumed_at", "dispatched_at", "deadline_at"):
        op.drop_column("batches", column)


def _replace_urgency(kind: "sa.types.TypeEngine[Any]", comment: str, key: list[Any]) -> None:
    """Jobs queued meanwhile get 0, and so go before those queued later: no value of the old kind is worth keeping."""
    op.drop_index("jobs_queued_idx", "jobs")
    op.drop_column("jobs", "urgency")
    op.add_column("jobs", sa.Column("urgency", kind, server_default="0", nullable=False, comment=comment))
    op.create_index("jobs_queued_idx", "jobs", ["stage", *key], sqlite_where=QUEUED, postgresql_where=QUEUED)
