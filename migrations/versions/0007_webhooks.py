"""Webhooks, their outbox, and the log of what was sent."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
PENDING = sa.text("state = 'pending'")


def upgrade() -> None:
    op.create_table(
        "webhooks",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("events", sa.Text(), nullable=False, comment="JSON list"),
        sa.Column("secret", sa.Text(), nullable=False, comment="what messages are signed with; shown once"),
        sa.Column("secret_before", sa.Text(), comment="signs beside the new one for a day after a rotation"),
        sa.Column("rotated_at", sa.Double()),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("webhooks_pkey")),
    )
    _create_deliveries()
    op.create_table(
        "delivery_attempts",
        sa.Column("id", NUMBER, autoincrement=True, nullable=False),
        sa.Column("delivery_id", NUMBER, nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("status", sa.SmallInteger()),
        sa.Column("latency_s", sa.Float(), nullable=False),
        sa.Column("error", sa.Text()),
        sa.Column("answer", sa.Text(), comment="the beginning of the answer's body, without secrets"),
        sa.ForeignKeyConstraint(
            ["delivery_id"], ["deliveries.id"], name=op.f("delivery_attempts_delivery_id_fkey"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("delivery_attempts_pkey")),
    )
    op.create_index(op.f("delivery_attempts_delivery_id_idx"), "delivery_attempts", ["delivery_id"])


def _create_deliveries() -> None:
    op.create_table(
        "deliveries",
        sa.Column("id", NUMBER, autoincrement=True, nullable=False),
        sa.Column("webhook_id", sa.Text(), nullable=False),
        sa.Column("message_id", sa.Text(), nullable=False, comment="the same for all webhooks, tries and replays"),
        sa.Column("event", sa.Text(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False, comment="JSON, sent and signed as it stands"),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("since", sa.Double(), nullable=False, comment="its day began: when it was made, or replayed"),
        sa.Column(
            "next_at", sa.Double(), nullable=False, comment="not before; while it is being sent, the end of its lease"
        ),
        sa.Column("ended_at", sa.Double()),
        sa.Column("status", sa.SmallInteger(), comment="HTTP, of the last answer; null: there was none"),
        sa.Column("latency_s", sa.Float(), comment="of the last try"),
        sa.Column("error", sa.Text(), comment="of the last try; null: it was taken"),
        sa.ForeignKeyConstraint(
            ["webhook_id"], ["webhooks.id"], name=op.f("deliveries_webhook_id_fkey"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("deliveries_pkey")),
    )
    op.create_index(
        "deliveries_pending_idx",
        "deliveries",
        ["webhook_id", "next_at", "id"],
        sqlite_where=PENDING,
        postgresql_where=PENDING,
    )
    op.create_index("deliveries_webhook_id_idx", "deliveries", ["webhook_id", "id"])


def downgrade() -> None:
    for table in ("delivery_attempts", "deliveries", "webhooks"):
        op.drop_table(table)
