"""The statements that run thousands of times a minute, written out as text.

A VALUES list would be compiled anew for every size of unit, while one JSON value keeps the text constant and lets the
driver prepare it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import cache
from typing import Any

from sqlalchemy import TextClause, text

from orchestrator.state.database import now_text
from orchestrator.state.queries.rows import Advanced, Claimed, Ended, Failed, Finished, Retried
from orchestrator.state.transitions import Stage

_ROWS: Mapping[str, type[Ended]] = {
    "advance": Advanced, "succeed": Finished, "fail": Failed, "retry": Retried, "lose_handoff": Ended,
}  # fmt: skip
# Where and when the stage at hand was worked on.
_TRAIL = "{stage}_s = given.seconds, {stage}_from = jobs.stage_at, {stage}_to = {now}, {stage}_by = jobs.worker_id"
_CHANGES: Mapping[str, str] = {
    "advance": """
        state = 'queued', stage = :stage_to, worker_id = NULL, queued_at = {now}, unit_limit = NULL, failures = 0,
        canvas = given.canvas,
        image_sha256 = coalesce(given.image_sha256, jobs.image_sha256),
        fingerprint = coalesce(given.fingerprint, jobs.fingerprint), {trail}""",
    "succeed": """
        state = 'succeeded', ended_at = {now}, code = NULL, message = NULL,
        result = given.result, sha256 = given.sha256, reused = given.reused,
        canvas = coalesce(given.canvas, jobs.canvas), image_sha256 = coalesce(given.image_sha256, jobs.image_sha256),
        fingerprint = coalesce(given.fingerprint, jobs.fingerprint), {trail}""",
    "fail": """
        state = 'failed', ended_at = {now}, failures = jobs.failures + 1,
        code = given.code, message = given.message, {trail}""",
    "retry": """
        state = 'queued', worker_id = NULL, attempt = jobs.attempt + 1,
        failures = jobs.failures + given.counted, unit_limit = coalesce(given.unit_limit, jobs.unit_limit),
        queued_at = {now}, run_at = {now} + given.delay_s, code = given.code, message = given.message""",
    "lose_handoff": """
        state = 'queued', stage = 'encode', canvas = '', worker_id = NULL, attempt = jobs.attempt + 1,
        queued_at = {now}""",
}
_SQL_TYPES: Mapping[Any, str] = {
    int: "bigint",
    float: "double precision",
    str: "text",
    str | None: "text",
    int | None: "bigint",
}
_RUNS = "batches.status = 'running' AND (batches.deadline_at IS NULL OR batches.deadline_at > {now})"
_CLAIMED = ", ".join(f"jobs.{field.name}" for field in fields(Claimed))


def _given_text(dialect: str, row: type[Ended]) -> str:
    """The parameter `given`, a JSON list of such rows, as a table."""
    columns = [(field.name, _SQL_TYPES[field.type]) for field in fields(row)]
    if dialect == "postgresql":
        types = ", ".join(f"{name} {sql_type}" for name, sql_type in columns)
        return f"jsonb_to_recordset(CAST(:given AS jsonb)) AS given({types})"
    names = ", ".join(f"value ->> '{name}' AS {name}" for name, _ in columns)
    return f"(SELECT {names} FROM json_each(:given)) AS given"


def _trail(dialect: str, stage: Stage) -> str:
    return _TRAIL.format(now=now_text(dialect), stage=stage.value)


def as_json(ends: Sequence[Ended]) -> str:
    """The value of `given`."""
    # In one order for all who write to several jobs, or they would wait for each other for ever.
    return json.dumps([vars(end) for end in sorted(ends, key=lambda end: end.id)])


@cache
def carry_statement(dialect: str, stage: Stage) -> TextClause:
    """Advance jobs and claim them for the next stage at once; gives them as `Claimed`."""
    return text(
        f"""
        UPDATE jobs SET stage = :stage_to, canvas = given.canvas, queued_at = {now_text(dialect)},
            stage_at = {now_text(dialect)}, unit_limit = NULL, failures = 0,
            image_sha256 = coalesce(given.image_sha256, jobs.image_sha256),
            fingerprint = coalesce(given.fingerprint, jobs.fingerprint), {_trail(dialect, stage)}
        FROM {_given_text(dialect, Advanced)}
        WHERE jobs.id = given.id AND jobs.attempt = given.attempt AND jobs.stage = :stage AND jobs.state = 'running'
          AND EXISTS (SELECT 1 FROM batches WHERE batches.id = jobs.batch_id AND {_RUNS.format(now=now_text(dialect))})
        RETURNING {_CLAIMED}"""
    )


@cache
def write_statement(dialect: str, move: str, stage: Stage) -> TextClause:
    """Write how a stage ended for jobs still running at the attempt given; gives the ids that moved."""
    changes = _CHANGES[move].format(now=now_text(dialect), trail=_trail(dialect, stage))
    return text(
        f"UPDATE jobs SET {changes} FROM {_given_text(dialect, _ROWS[move])}"
        " WHERE jobs.id = given.id AND jobs.attempt = given.attempt AND jobs.stage = :stage"
        " AND jobs.state = 'running' RETURNING jobs.id"
    )


@cache
def claim_statement(dialect: str) -> TextClause:
    """Take up to `:limit` queued jobs of the most urgent group of a stage; nothing for a worker declared dead.

    A job with a unit limit shares its unit only with jobs of the same limit.
    """
    locked = "FOR UPDATE OF jobs SKIP LOCKED" if dialect == "postgresql" else ""
    least, now = {"postgresql": "least", "sqlite": "min"}[dialect], now_text(dialect)
    claimable = f"""jobs.state = 'queued' AND jobs.stage = :stage AND (jobs.run_at IS NULL OR jobs.run_at <= {now})
              AND batches.revision = :revision AND batches.numerics = :numerics AND {_RUNS.format(now=now)}"""
    # MATERIALIZED: inlined, PostgreSQL may run the locking subquery again for each row and take more than the limit.
    # What is chosen is locked; to ask for its state once more would make PostgreSQL compare it with the whole window.
    return text(
        f"""
        WITH first AS MATERIALIZED (
            SELECT jobs.recipe_id, jobs.canvas, jobs.unit_limit FROM jobs JOIN batches ON batches.id = jobs.batch_id
            WHERE {claimable}
              AND NOT EXISTS (SELECT 1 FROM workers WHERE workers.id = :worker_id AND workers.ended_at IS NOT NULL)
            ORDER BY jobs.urgency DESC, jobs.id
            LIMIT 1 {locked}),
        chosen AS MATERIALIZED (
            SELECT jobs.id FROM first
            JOIN jobs ON jobs.recipe_id = first.recipe_id AND jobs.canvas = first.canvas
              AND coalesce(jobs.unit_limit, 0) = coalesce(first.unit_limit, 0)
            JOIN batches ON batches.id = jobs.batch_id
            WHERE {claimable}
            ORDER BY jobs.urgency DESC, jobs.id
            LIMIT {least}(:limit, coalesce((SELECT first.unit_limit FROM first), :limit)) {locked})
        UPDATE jobs SET state = 'running', worker_id = :worker_id, run_at = NULL, stage_at = {now}
        WHERE id IN (SELECT id FROM chosen)
        RETURNING {_CLAIMED}"""
    )
