"""Every statement, named: `batches` for what was asked, `jobs` for the way of a job, `workers` for who is alive.

Functions take an open connection and never commit: the caller says what belongs together. All of them run on
PostgreSQL and SQLite alike.
"""

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
    read_recipe,
    stage_seconds,
    start_batch,
    stream_jobs,
)
from orchestrator.state.queries.jobs import (
    advance,
    any_held,
    carry,
    claim,
    count_jobs,
    dispatch,
    fail,
    find_reusable,
    groups_queued,
    hand_back,
    in_flight,
    lose_handoffs,
    retry,
    succeed,
    take_back,
    unfinished,
)
from orchestrator.state.queries.rows import Advanced, Claimed, Ended, Failed, Finished, Group
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
    "Advanced", "Batch", "BatchCounts", "Claimed", "Ended", "Failed", "Finished", "Group", "Worker", "add_recipes",
    "advance", "any_held", "beat", "carry", "claim", "count_batches", "count_by_error", "count_by_state",
    "count_jobs", "create_batch", "dead_workers", "dispatch", "end_worker", "fail", "find_open_request",
    "find_reusable", "groups_queued", "hand_back", "has_backlog", "in_flight", "last_end", "list_batches",
    "live_workers", "lose_handoffs", "move_batch", "note_ingested", "open_batches", "read_batch", "read_recipe",
    "register_worker", "retry", "stage_seconds", "start_batch", "stream_jobs", "succeed", "take_back", "unfinished",
]  # fmt: skip
