"""Every statement, named: `access` for who may call and what they changed, `batches` for what was asked, `jobs` for the
way of a job, `control` for what is asked of it meanwhile, `decisions` for what becomes of the pictures, `ledger` for
what is reused, `workers` for who is alive.

Functions take an open connection and never commit: the caller says what belongs together. All of them run on
PostgreSQL and SQLite alike.
"""

from orchestrator.state.queries.access import (
    ApiKey,
    AuditEntry,
    Credential,
    add_key,
    add_sign_in,
    count_keys,
    find_key,
    find_sign_in,
    keep_secret,
    list_audit,
    list_keys,
    note_key_used,
    read_key,
    record_audit,
    revoke_key,
    use_sign_in,
)
from orchestrator.state.queries.batches import (
    Batch,
    BatchCounts,
    add_recipes,
    count_batches,
    count_by_error,
    count_by_state,
    create_batch,
    find_open_request,
    last_end,
    list_batches,
    move_batch,
    note_ingested,
    open_batches,
    read_batch,
    read_clock,
    read_recipe,
    stage_seconds,
    start_batch,
    stream_jobs,
)
from orchestrator.state.queries.control import (
    ENDS,
    cancel_jobs,
    close_batch,
    count_failures,
    expire_jobs,
    match_jobs,
    reopen_batch,
    restart_jobs,
    resume_batch,
    set_priority,
)
from orchestrator.state.queries.decisions import (
    Take,
    add_take,
    count_decisions,
    decide,
    list_takes,
    note_told,
    untold_batches,
)
from orchestrator.state.queries.jobs import (
    AGING_S,
    advance,
    any_held,
    carry,
    claim,
    count_jobs,
    dispatch,
    fail,
    hand_back,
    in_flight,
    lose_handoffs,
    retry,
    succeed,
    take_back,
    unfinished,
    units_queued,
)
from orchestrator.state.queries.ledger import (
    Source,
    any_source,
    find_reusable,
    learn_sources,
    recall_sources,
    source_id,
)
from orchestrator.state.queries.rows import Advanced, Claimed, Ended, Failed, Finished, Group, Retried
from orchestrator.state.queries.workers import (
    Worker,
    beat,
    dead_workers,
    end_worker,
    has_backlog,
    live_workers,
    register_worker,
)

__all__ = [
    "AGING_S", "ENDS", "Advanced", "ApiKey", "AuditEntry", "Batch", "BatchCounts", "Claimed", "Credential", "Ended",
    "Failed", "Finished", "Group", "Retried", "Source", "Take", "Worker", "add_key", "add_recipes", "add_sign_in",
    "add_take", "advance", "any_held", "any_source", "beat", "cancel_jobs", "carry", "claim", "close_batch",
    "count_batches", "count_by_error", "count_by_state", "count_decisions", "count_failures", "count_jobs",
    "count_keys", "create_batch", "dead_workers", "decide", "dispatch", "end_worker", "expire_jobs", "fail",
    "find_key", "find_open_request", "find_reusable", "find_sign_in", "hand_back", "has_backlog", "in_flight",
    "keep_secret", "last_end", "learn_sources", "list_audit", "list_batches", "list_keys", "list_takes",
    "live_workers", "lose_handoffs", "match_jobs", "move_batch", "note_ingested", "note_key_used", "note_told",
    "open_batches", "read_batch", "read_clock", "read_key", "read_recipe", "recall_sources", "record_audit",
    "register_worker", "reopen_batch", "restart_jobs", "resume_batch", "retry", "revoke_key", "set_priority",
    "source_id", "stage_seconds", "start_batch", "stream_jobs", "succeed", "take_back", "unfinished",
    "units_queued", "untold_batches", "use_sign_in",
]  # fmt: skip
