"""The first schema: batches, recipes, jobs, their attempts and the workers."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# SQLite numbers rows only in an INTEGER primary key.
ROW_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def only(condition: str) -> dict[str, Any]:
    """The options of an index over some of the rows, on either database."""
    return {"sqlite_where": sa.text(condition), "postgresql_where": sa.text(condition)}


def upgrade() -> None:
    op.create_table(
        "batches",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column(
            "request",
            sa.Text(),
            nullable=False,
            comment="digest of catalogue, options, checkpoint revision and results",
        ),
        sa.Column("catalogue", sa.Text(), nullable=False),
        sa.Column("image_root", sa.Text(), nullable=False, comment="what relative images are relative to"),
        sa.Column(
            "columns", sa.Text(), nullable=False, comment="JSON list: the catalogue's columns, mirrored in the manifest"
        ),
        sa.Column("options", sa.Text(), nullable=False, comment="JSON: what was asked for the batch as a whole"),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), comment="why it is paused or failed"),
        sa.Column("priority", sa.SmallInteger(), server_default="0", nullable=False),
        sa.Column("checkpoint", sa.Text(), nullable=False),
        sa.Column("revision", sa.Text(), nullable=False),
        sa.Column("numerics", sa.Text(), nullable=False),
        sa.Column(
            "handoff_bytes", sa.BigInteger(), nullable=False, comment="an upper bound for one job, bounds the window"
        ),
        sa.Column(
            "results_uri",
            sa.Text(),
            nullable=False,
            comment="<results>/<batch>, the folder of its pictures and manifest",
        ),
        sa.Column("total", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column(
            "ingested_line", sa.BigInteger(), server_default="0", nullable=False, comment="where an ingest resumes"
        ),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("started_at", sa.Double()),
        sa.Column("ended_at", sa.Double()),
        sa.PrimaryKeyConstraint("id", name="batches_pkey"),
    )
    op.create_index("batches_open_idx", "batches", ["status"], **only("ended_at IS NULL"))
    op.create_index("batches_request_idx", "batches", ["request"])
    op.create_table(
        "recipes",
        sa.Column("id", sa.Text(), nullable=False, comment="digest of the body"),
        sa.Column("body", sa.Text(), nullable=False, comment="canonical JSON, defaults resolved"),
        sa.PrimaryKeyConstraint("id", name="recipes_pkey"),
    )
    op.create_table(
        "workers",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("stages", sa.Text(), nullable=False),
        sa.Column("device", sa.Text(), nullable=False),
        sa.Column("revision", sa.Text(), nullable=False),
        sa.Column("numerics", sa.Text(), nullable=False),
        sa.Column("started_at", sa.Double(), nullable=False),
        sa.Column("seen_at", sa.Double(), nullable=False),
        sa.Column("ended_at", sa.Double()),
        sa.Column("rss_bytes", sa.BigInteger(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("id", name="workers_pkey"),
    )
    op.create_table(
        "jobs",
        sa.Column("id", ROW_NUMBER, autoincrement=True, nullable=False),
        sa.Column("batch_id", sa.Text(), nullable=False),
        sa.Column("line", sa.BigInteger(), nullable=False),
        sa.Column("take", sa.SmallInteger(), server_default="1", nullable=False),
        sa.Column("custom_id", sa.Text()),
        sa.Column("image", sa.Text()),
        sa.Column("recipe_id", sa.Text(), comment="null for a bad row"),
        sa.Column("seed", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("priority", sa.SmallInteger(), server_default="0", nullable=False),
        sa.Column(
            "urgency",
            sa.Integer(),
            server_default="0",
            nullable=False,
            comment="the order of claims, set as it is queued",
        ),
        sa.Column("given", sa.Text(), comment="JSON: the row as given, but for what other columns and the recipe tell"),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("stage", sa.Text()),
        sa.Column("canvas", sa.Text()),
        sa.Column("attempt", sa.Integer(), server_default="0", nullable=False, comment="the fencing token"),
        sa.Column("failures", sa.SmallInteger(), server_default="0", nullable=False),
        sa.Column("crashes", sa.SmallInteger(), server_default="0", nullable=False),
        sa.Column("worker_id", sa.Text()),
        sa.Column("queued_at", sa.Double()),
        sa.Column("run_at", sa.Double(), comment="not before; the back-off of a retry"),
        sa.Column("ended_at", sa.Double()),
        sa.Column("code", sa.Text()),
        sa.Column("message", sa.Text()),
        sa.Column("image_sha256", sa.Text()),
        sa.Column("fingerprint", sa.Text()),
        sa.Column("result", sa.Text(), comment="absolute URI of the picture"),
        sa.Column("sha256", sa.Text(), comment="of the picture"),
        sa.Column("reused", sa.SmallInteger(), server_default="0", nullable=False),
        sa.Column("encode_s", sa.Float()),
        sa.Column("sample_s", sa.Float()),
        sa.Column("decode_s", sa.Float()),
        sa.ForeignKeyConstraint(["batch_id"], ["batches.id"], name="jobs_batch_id_fkey", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name="jobs_pkey"),
        postgresql_with={"fillfactor": "70"},
    )
    op.create_index(
        "jobs_batch_custom_id_key",
        "jobs",
        ["batch_id", "custom_id", "take"],
        unique=True,
        **only("recipe_id IS NOT NULL"),
    )
    op.create_index("jobs_batch_line_key", "jobs", ["batch_id", "line", "take"], unique=True)
    op.create_index("jobs_batch_state_idx", "jobs", ["batch_id", "state", sa.text("priority DESC"), "id"])
    op.create_index("jobs_fingerprint_idx", "jobs", ["fingerprint"], **only("state = 'succeeded'"))
    op.create_index(
        "jobs_queued_idx",
        "jobs",
        ["stage", "recipe_id", "canvas", sa.text("urgency DESC"), "id"],
        **only("state = 'queued'"),
    )
    op.create_index("jobs_running_idx", "jobs", ["worker_id"], **only("state = 'running'"))
    op.create_table(
        "attempts",
        sa.Column("id", ROW_NUMBER, autoincrement=True, nullable=False),
        sa.Column("job_id", ROW_NUMBER, nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("stage", sa.Text(), nullable=False),
        sa.Column("worker_id", sa.Text()),
        sa.Column(
            "outcome",
            sa.Text(),
            nullable=False,
            comment="the move that ended it: retry, hand_back, lose_handoff, fail, …",
        ),
        sa.Column("code", sa.Text()),
        sa.Column("message", sa.Text()),
        sa.Column("ended_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="attempts_job_id_fkey", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name="attempts_pkey"),
    )
    op.create_index("attempts_job_id_idx", "attempts", ["job_id"])


def downgrade() -> None:
    for table in ("attempts", "jobs", "workers", "recipes", "batches"):
        op.drop_table(table)
