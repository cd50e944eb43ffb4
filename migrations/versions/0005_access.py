"""Who may call: API keys, sign-ins by one-time token, the secret that signs sessions; and the audit log."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

# SQLite numbers rows only in an INTEGER primary key.
ROW_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "api_keys",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False, comment="of the whole secret, which nobody can show again"),
        sa.Column("scope", sa.Text(), nullable=False, comment="read, submit or admin; each includes those before it"),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("last_used_at", sa.Double(), comment="to the minute"),
        sa.Column("revoked_at", sa.Double()),
        sa.PrimaryKeyConstraint("id", name="api_keys_pkey"),
    )
    op.create_table(
        "sign_ins",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False, comment="of the one-time token"),
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("expires_at", sa.Double(), nullable=False, comment="of the token; the session has its own end"),
        sa.Column("used_at", sa.Double(), comment="set once: the session that it opened lives on"),
        sa.PrimaryKeyConstraint("id", name="sign_ins_pkey"),
    )
    op.create_table(
        "signing_secrets",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="signing_secrets_pkey"),
    )
    op.create_table(
        "audit",
        sa.Column("id", ROW_NUMBER, autoincrement=True, nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("caller", sa.Text(), nullable=False, comment="key:<id>, sign_in:<id>, or a process of ours"),
        sa.Column("action", sa.Text(), nullable=False, comment="batch.create, batch.pause, key.revoke, …"),
        sa.Column("target", sa.Text(), nullable=False, comment="the id of what was changed"),
        sa.Column("detail", sa.Text(), nullable=False, comment="JSON object: what was asked, without secrets"),
        sa.PrimaryKeyConstraint("id", name="audit_pkey"),
    )
    op.create_index("audit_target_idx", "audit", ["target", "id"])


def downgrade() -> None:
    for table in ("audit", "signing_secrets", "sign_ins", "api_keys"):
        op.drop_table(table)
