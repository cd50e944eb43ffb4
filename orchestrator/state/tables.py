"""The tables, as PostgreSQL and SQLite both hold them. Owns columns, keys and indexes; refuses statements.

Times are seconds since the epoch, from the database's own clock. Identifiers that people meet are short texts; jobs
have a running number, since there are millions of them.
"""

from sqlalchemy import (
    BigInteger,
    Column,
    Double,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    SmallInteger,
    Table,
    Text,
    literal_column,
    text,
)
from sqlalchemy.sql.elements import ColumnElement

from orchestrator.state.transitions import JobState

metadata = MetaData(
    naming_convention={
        "pk": "%(table_name)s_pkey",
        "fk": "%(table_name)s_%(column_0_name)s_fkey",
        "uq": "%(table_name)s_%(column_0_name)s_key",
        "ix": "%(table_name)s_%(column_0_name)s_idx",
    }
)

# SQLite numbers rows only in an INTEGER primary key, and gives the numbers of rows that were deleted last once more
# where the table does not say `sqlite_autoincrement`. Addresses, the audit log and workers name jobs by number alone.
RowNumber = BigInteger().with_variant(Integer, "sqlite")

PENDING_DELIVERY = text("state = 'pending'")
OF_BATCH = text("batch_id IS NOT NULL")
OPEN_RUN = text("state IN ('due', 'waiting', 'starting', 'started')")
"""The conditions of partial indexes: written out, not bound, or neither planner would use it."""

batches = Table(
    "batches",
    metadata,
    Column("id", Text, primary_key=True),
    Column("request", Text, nullable=False, comment="digest of catalogue, options, checkpoint revision and results"),
    Column("catalogue", Text, nullable=False),
    Column("image_root", Text, nullable=False, comment="what relative images are relative to"),
    Column("columns", Text, nullable=False, comment="JSON list: the catalogue's columns, mirrored in the manifest"),
    Column("options", Text, nullable=False, comment="JSON: what was asked for the batch as a whole"),
    Column("status", Text, nullable=False),
    Column("reason", Text, comment="why it is paused or failed"),
    Column("priority", SmallInteger, nullable=False, server_default="0"),
    Column("checkpoint", Text, nullable=False),
    Column("revision", Text, nullable=False),
    Column("numerics", Text, nullable=False),
    Column("handoff_bytes", BigInteger, nullable=False, comment="an upper bound for one job, bounds the window"),
    Column("results_uri", Text, nullable=False, comment="<results>/<batch>, the folder of its pictures and manifest"),
    Column("total", BigInteger, nullable=False, server_default="0"),
    Column("ingested_line", BigInteger, nullable=False, server_default="0", comment="where an ingest resumes"),
    Column("created_at", Double, nullable=False),
    Column("started_at", Double),
    Column("ended_at", Double),
    Column("deadline_at", Double, comment="what is not claimed by then fails as expired"),
    Column("dispatched_at", Double, comment="when it last had jobs queued: the longer ago, the more urgent"),
    Column("resumed_at", Double, comment="its error rate is that of the jobs that ended since"),
    Column("reopened", Integer, nullable=False, server_default="0", comment="how often ended jobs were asked again"),
    Column("decisions", Integer, nullable=False, server_default="0", comment="how often a decision was taken"),
    Column("decisions_told", Integer, nullable=False, server_default="0", comment="how many its manifest tells"),
    Index(
        "batches_open_idx",
        "status",
        sqlite_where=text("ended_at IS NULL"),
        postgresql_where=text("ended_at IS NULL"),
    ),
    Column("metadata", Text, comment="JSON object of texts: the caller's own"),
    Column("ingested_at", Double, comment="when rows of its catalogue were last stored, or somebody began to"),
    Column("ended_counts", Text, comment="JSON: jobs by state, of an ended batch"),
    Index("batches_request_idx", "request"),
    Index(
        "batches_untold_idx",
        "id",
        sqlite_where=text("decisions > decisions_told"),
        postgresql_where=text("decisions > decisions_told"),
    ),
)
Index("batches_created_idx", batches.c.created_at.desc(), batches.c.id.desc())

recipes = Table(
    "recipes",
    metadata,
    Column("id", Text, primary_key=True, comment="digest of the body"),
    Column("body", Text, nullable=False, comment="canonical JSON, defaults resolved"),
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", RowNumber, primary_key=True, autoincrement=True),
    Column("batch_id", Text, ForeignKey("batches.id", ondelete="CASCADE"), nullable=False),
    Column("line", BigInteger, nullable=False),
    Column("take", SmallInteger, nullable=False, server_default="1"),
    Column("custom_id", Text),
    Column("image", Text),
    Column("recipe_id", Text, comment="null for a bad row"),
    Column("seed", BigInteger, nullable=False, server_default="0"),
    Column("priority", SmallInteger, nullable=False, server_default="0"),
    Column("urgency", Double, nullable=False, server_default="0", comment="the order of claims, in seconds"),
    Column("given", Text, comment="JSON: the row as given, but for what other columns and the recipe tell"),
    Column("state", Text, nullable=False),
    Column("stage", Text),
    Column("canvas", Text),
    Column("attempt", Integer, nullable=False, server_default="0", comment="the fencing token"),
    Column("failures", SmallInteger, nullable=False, server_default="0"),
    Column("crashes", SmallInteger, nullable=False, server_default="0"),
    Column("unit_limit", SmallInteger, comment="the largest unit it may be claimed in; null: any"),
    Column("worker_id", Text),
    Column("queued_at", Double),
    Column("stage_at", Double, comment="when the stage at hand began"),
    Column("run_at", Double, comment="not before; the back-off of a retry"),
    Column("ended_at", Double),
    Column("code", Text),
    Column("message", Text),
    Column("image_sha256", Text),
    Column("fingerprint", Text),
    Column("result", Text, comment="absolute URI of the picture"),
    Column("sha256", Text, comment="of the picture"),
    Column("reused", SmallInteger, nullable=False, server_default="0"),
    Column("encode_s", Float),
    Column("sample_s", Float),
    Column("decode_s", Float),
    # From when to when a stage was worked on, and by whom: what the waterfall of a job is drawn from.
    *(
        Column(f"{stage}_{name}", kind)
        for stage in ("encode", "sample", "decode")
        for name, kind in (("from", Double), ("to", Double), ("by", Text))
    ),
    Column("decision", Text, comment="approved, rejected, or null: nobody has looked"),
    Column("decided_at", Double),
    Index("jobs_batch_line_key", "batch_id", "line", "take", unique=True),
    # A bad row keeps the custom_id it came with, even a doubled one.
    Index(
        "jobs_batch_custom_id_key",
        "batch_id",
        "custom_id",
        "take",
        unique=True,
        sqlite_where=text("recipe_id IS NOT NULL"),
        postgresql_where=text("recipe_id IS NOT NULL"),
    ),
    # These, and `jobs_queued_idx` below, are small sets that workers and rescuer look through: they hold the window,
    # never the backlog.
    Index(
        "jobs_running_idx",
        "worker_id",
        sqlite_where=text("state = 'running'"),
        postgresql_where=text("state = 'running'"),
    ),
    Index(
        "jobs_fingerprint_idx",
        "fingerprint",
        sqlite_where=text("state = 'succeeded'"),
        postgresql_where=text("state = 'succeeded'"),
    ),
    Index(
        "jobs_decision_idx",
        "batch_id",
        "decision",
        "line",
        sqlite_where=text("decision IS NOT NULL"),
        postgresql_where=text("decision IS NOT NULL"),
    ),
    postgresql_with={"fillfactor": "70"},
    sqlite_autoincrement=True,
)
# Counts, and the dispatcher's next rows in its own order: without it, each tick would sort the whole backlog.
Index("jobs_batch_state_idx", jobs.c.batch_id, jobs.c.state, jobs.c.priority.desc(), jobs.c.id)
Index(
    "jobs_queued_idx",
    jobs.c.stage,
    jobs.c.urgency.desc(),
    jobs.c.id,
    sqlite_where=text("state = 'queued'"),
    postgresql_where=text("state = 'queued'"),
)
# What pages ask of many jobs: how many were reused, what failed, how fast it went.
for _name, _columns, _where in (
    ("jobs_reused_idx", ("batch_id",), "reused = 1"),
    ("jobs_failed_idx", ("batch_id", "code", "line", "take"), "state = 'failed'"),
    ("jobs_failed_at_idx", ("ended_at", "code"), "state = 'failed'"),
    ("jobs_succeeded_at_idx", ("ended_at", "batch_id"), "state = 'succeeded'"),
):
    Index(_name, *(jobs.c[column] for column in _columns), sqlite_where=text(_where), postgresql_where=text(_where))

attempts = Table(
    "attempts",
    metadata,
    Column("id", RowNumber, primary_key=True, autoincrement=True),
    Column("job_id", RowNumber, ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("attempt", Integer, nullable=False),
    Column("stage", Text, nullable=False),
    Column("worker_id", Text),
    Column("outcome", Text, nullable=False, comment="the move that ended it: retry, hand_back, lose_handoff, fail, …"),
    Column("code", Text),
    Column("message", Text),
    Column("ended_at", Double, nullable=False),
    Column("began_at", Double, comment="when the stage began that it ended in"),
    sqlite_autoincrement=True,
)

sources = Table(
    "sources",
    metadata,
    Column("id", Text, primary_key=True, comment="digest of the image's absolute URI"),
    Column("validator", Text, nullable=False, comment="a strong ETag, or a file's identity and times"),
    Column("image_sha256", Text, nullable=False),
)

workers = Table(
    "workers",
    metadata,
    Column("id", Text, primary_key=True),
    Column("host", Text, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("stages", Text, nullable=False),
    Column("device", Text, nullable=False),
    Column("revision", Text, nullable=False),
    Column("numerics", Text, nullable=False),
    Column("started_at", Double, nullable=False),
    Column("seen_at", Double, nullable=False),
    Column("ended_at", Double),
    Column("rss_bytes", BigInteger, nullable=False, server_default="0"),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("sha256", Text, nullable=False, comment="of the whole secret, which nobody can show again"),
    Column("scope", Text, nullable=False, comment="read, submit or admin; each includes those before it"),
    Column("created_at", Double, nullable=False),
    Column("last_used_at", Double, comment="to the minute"),
    Column("revoked_at", Double),
)

sign_ins = Table(
    "sign_ins",
    metadata,
    Column("id", Text, primary_key=True),
    Column("sha256", Text, nullable=False, comment="of the one-time token"),
    Column("scope", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double, nullable=False, comment="of the token; the session has its own end"),
    Column("used_at", Double, comment="set once: the session that it opened lives on"),
)

signing_secrets = Table(
    "signing_secrets",
    metadata,
    Column("name", Text, primary_key=True),
    Column("value", Text, nullable=False),
)

audit = Table(
    "audit",
    metadata,
    Column("id", RowNumber, primary_key=True, autoincrement=True),
    Column("at", Double, nullable=False),
    Column("caller", Text, nullable=False, comment="key:<id>, sign_in:<id>, or a process of ours"),
    Column("action", Text, nullable=False, comment="batch.create, batch.pause, key.revoke, …"),
    Column("target", Text, nullable=False, comment="the id of what was changed"),
    Column("detail", Text, nullable=False, comment="JSON object: what was asked, without secrets"),
    Index("audit_target_idx", "target", "id"),
    sqlite_autoincrement=True,
)

schedules = Table(
    "schedules",
    metadata,
    Column("name", Text, primary_key=True),
    Column("cron", Text, nullable=False),
    Column("time_zone", Text, nullable=False, comment="IANA name; the cron expression is read in it"),
    Column("catalogue", Text, nullable=False),
    Column("asked", Text, nullable=False, comment="JSON: options of its batches, as values already read"),
    Column("results_uri", Text, comment="null: where the dispatcher's settings say"),
    Column("priority", SmallInteger, nullable=False, server_default="0"),
    Column("only_changed", SmallInteger, nullable=False, server_default="1", comment="0: nothing is reused"),
    Column("overlap", Text, nullable=False),
    Column("missed", Text, nullable=False),
    Column("paused", SmallInteger, nullable=False, server_default="0"),
    Column("next_fire_at", Double, comment="null: never, or paused"),
    Column("created_at", Double, nullable=False),
    Index("schedules_next_fire_at_idx", "next_fire_at"),
)

schedule_runs = Table(
    "schedule_runs",
    metadata,
    Column("id", RowNumber, primary_key=True, autoincrement=True),
    Column("schedule", Text, ForeignKey("schedules.name", ondelete="CASCADE"), nullable=False),
    Column("fire_at", Double, nullable=False, comment="the time it was due, or was asked for"),
    Column("by_request", SmallInteger, nullable=False, server_default="0"),
    Column("missed", Integer, nullable=False, server_default="0", comment="earlier fire times that it stands for"),
    Column("state", Text, nullable=False),
    Column("reason", Text, comment="why it was skipped, failed, waits, or is tried again"),
    Column("batch_id", Text, nullable=False, comment="its batch's id, fixed before the batch is made"),
    Column("claimed_by", Text, comment="the scheduler that makes its batch"),
    Column("lease_until", Double, comment="then another scheduler goes on"),
    Column("tries", SmallInteger, nullable=False, server_default="0"),
    Column("created_at", Double, nullable=False),
    Column("started_at", Double),
    Column("ended_at", Double),
    Column("total_jobs", BigInteger),
    Column("new_jobs", BigInteger),
    Column("changed_jobs", BigInteger),
    Column("reused_jobs", BigInteger),
    Column("failed_jobs", BigInteger),
    Column("cancelled_jobs", BigInteger),
    # Decides who fires: any number of schedulers may try.
    Index("schedule_runs_fire_at_key", "schedule", "fire_at", unique=True),
    Index("schedule_runs_batch_id_idx", "batch_id"),
    Index("schedule_runs_open_idx", "state", sqlite_where=OPEN_RUN, postgresql_where=OPEN_RUN),
    sqlite_autoincrement=True,
)

webhooks = Table(
    "webhooks",
    metadata,
    Column("id", Text, primary_key=True),
    Column("url", Text, nullable=False),
    Column("events", Text, nullable=False, comment="JSON list"),
    Column("secret", Text, nullable=False, comment="what messages are signed with; shown once"),
    Column("secret_before", Text, comment="signs beside the new one for a day after a rotation"),
    Column("rotated_at", Double),
    Column("created_at", Double, nullable=False),
)

# The outbox: written in the transaction of the change that it tells of.
deliveries = Table(
    "deliveries",
    metadata,
    Column("id", RowNumber, primary_key=True, autoincrement=True),
    Column("webhook_id", Text, ForeignKey("webhooks.id", ondelete="CASCADE"), nullable=False),
    Column("message_id", Text, nullable=False, comment="the same for all webhooks, tries and replays"),
    Column("event", Text, nullable=False),
    Column("body", Text, nullable=False, comment="JSON, sent and signed as it stands"),
    Column("state", Text, nullable=False),
    Column("attempts", Integer, nullable=False, server_default="0"),
    Column("tries", Integer, nullable=False, server_default="0", comment="of its day: what the back-off grows by"),
    Column("created_at", Double, nullable=False),
    Column("since", Double, nullable=False, comment="its day began: when it was made, or replayed"),
    Column("next_at", Double, nullable=False, comment="not before; while it is being sent, the end of its lease"),
    Column("ended_at", Double),
    Column("status", SmallInteger, comment="HTTP, of the last answer; null: there was none"),
    Column("latency_s", Float, comment="of the last try"),
    Column("error", Text, comment="of the last try; null: it was taken"),
    Column("batch_id", Text, comment="of job.failed: whose job it is"),
    Index(
        "deliveries_pending_idx",
        "webhook_id",
        "next_at",
        "id",
        sqlite_where=PENDING_DELIVERY,
        postgresql_where=PENDING_DELIVERY,
    ),
    Index("deliveries_webhook_id_idx", "webhook_id", "id"),
    Index(
        "deliveries_batch_id_idx",
        "batch_id",
        "webhook_id",
        "created_at",
        sqlite_where=OF_BATCH,
        postgresql_where=OF_BATCH,
    ),
    sqlite_autoincrement=True,
)

delivery_attempts = Table(
    "delivery_attempts",
    metadata,
    Column("id", RowNumber, primary_key=True, autoincrement=True),
    Column("delivery_id", RowNumber, ForeignKey("deliveries.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("attempt", Integer, nullable=False),
    Column("at", Double, nullable=False),
    Column("status", SmallInteger),
    Column("latency_s", Float, nullable=False),
    Column("error", Text),
    Column("answer", Text, comment="the beginning of the answer's body, without secrets"),
    sqlite_autoincrement=True,
)

idempotency = Table(
    "idempotency",
    metadata,
    Column("caller", Text, primary_key=True),
    Column("key", Text, primary_key=True),
    Column("sha256", Text, nullable=False, comment="of the request"),
    Column("batch_id", Text, nullable=False, comment="the batch that the request makes, or has made"),
    Column("created_at", Double, nullable=False),
    Index("idempotency_batch_id_idx", "batch_id"),
)


def in_state(state: JobState) -> ColumnElement[bool]:
    """The condition of the partial indexes: written out, not bound, or neither planner would use them."""
    return jobs.c.state == literal_column(f"'{state.value}'")
