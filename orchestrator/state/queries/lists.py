"""Jobs in pages, statement by statement: filtered, by key, at the same cost on the first page and on the last.

A filter that an index answers is read along that index. Any other looks through a bounded number of rows for each page:
a page may then hold few jobs, or none, and still lead on to the next.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    RowMapping,
    Select,
    and_,
    or_,
    select,
    tuple_,
    union_all,
)

from orchestrator.state.tables import in_state, jobs
from orchestrator.state.transitions import Decision, JobState

LOOKED_AT = 10_000
"""Rows that a page with a filter without an index looks through at most."""
UNDECIDED = "none"
"""The filter for jobs that nobody has decided on."""


@dataclass(frozen=True)
class JobFilter:
    """Which jobs of a batch. `text` is looked for in custom_id, image and message; `decision` is one of approved,
    rejected and none. Codes are those of failed jobs, unless `states` says otherwise. `by_line` asks for the
    catalogue's order also where states alone are wanted."""

    states: tuple[JobState, ...] = ()
    codes: tuple[str, ...] = ()
    text: str = ""
    decision: str | None = None
    by_line: bool = False


@dataclass(frozen=True)
class JobPage:
    """Jobs as rows of the table; `after` is the key that the next page begins after, None on the last one."""

    jobs: list[RowMapping]
    after: tuple[int, int] | None


def list_jobs(
    connection: Connection,
    batch_id: str,
    wanted: JobFilter | None = None,
    *,
    limit: int,
    after: tuple[int, int] | None = None,
) -> JobPage:
    """A page of a batch's jobs: in the catalogue's order, or, filtered by state alone, in the order of work.

    `after` is the key that the page before gave for the same filter.
    """
    wanted = wanted or JobFilter()
    plan = _by_state if _works_by_state(wanted) else _by_line
    key, branches = plan(batch_id, wanted, after)
    rest = _unindexed(wanted)
    bound = None
    if rest:
        keys = _page(branches, key, LOOKED_AT + 1, columns=[jobs.c.priority, jobs.c.id, jobs.c.line, jobs.c.take])
        last = connection.execute(keys.offset(LOOKED_AT - 1).limit(1)).mappings().one_or_none()
        bound = None if last is None else _key(last, plan is _by_state)
    if bound is not None:
        branches = [branch.where(_not_after(bound, plan is _by_state)) for branch in branches]
    rows = connection.execute(_page([branch.where(*rest) for branch in branches], key, limit + 1)).mappings().all()
    if len(rows) > limit:
        return JobPage(list(rows[:limit]), _key(rows[limit - 1], plan is _by_state))
    return JobPage(list(rows), bound)


def _works_by_state(wanted: JobFilter) -> bool:
    indexed_otherwise = wanted.decision in (Decision.APPROVED, Decision.REJECTED) or _codes_of_failed(wanted)
    return bool(wanted.states) and not indexed_otherwise and not wanted.by_line


def _codes_of_failed(wanted: JobFilter) -> bool:
    return bool(wanted.codes) and wanted.states in ((), (JobState.FAILED,))


def _by_line(
    batch_id: str, wanted: JobFilter, after: tuple[int, int] | None
) -> tuple[tuple[Any, ...], list[Select[Any]]]:
    of_batch: list[ColumnElement[bool]] = [jobs.c.batch_id == batch_id]
    if after is not None:
        of_batch.append(tuple_(jobs.c.line, jobs.c.take) > after)
    if _codes_of_failed(wanted):
        parts = [[in_state(JobState.FAILED), jobs.c.code == code] for code in dict.fromkeys(wanted.codes)]
    elif wanted.decision in (Decision.APPROVED, Decision.REJECTED):
        # Written out too, or the partial index would not be used.
        parts = [[jobs.c.decision == wanted.decision, jobs.c.decision.is_not(None)]]
    else:
        parts = [[]]
    return (jobs.c.line, jobs.c.take), [select(jobs).where(*of_batch, *part) for part in parts]


def _by_state(
    batch_id: str, wanted: JobFilter, after: tuple[int, int] | None
) -> tuple[tuple[Any, ...], list[Select[Any]]]:
    """One branch a state; after a key two, of its own priority and of lower ones: each a range of the index."""
    branches = []
    for state in dict.fromkeys(wanted.states):
        of_state = select(jobs).where(jobs.c.batch_id == batch_id, jobs.c.state == state)
        if after is None:
            branches.append(of_state)
        else:
            priority, job_id = after
            branches.append(of_state.where(jobs.c.priority == priority, jobs.c.id > job_id))
            branches.append(of_state.where(jobs.c.priority < priority))
    return (jobs.c.priority.desc(), jobs.c.id), branches


def _page(branches: Sequence[Select[Any]], key: tuple[Any, ...], limit: int, columns: Any = None) -> Select[Any]:
    """The first rows of all branches together; each is read along its own index no further than the page."""
    names = [column.name for column in columns or jobs.c]
    limited = [
        branch.with_only_columns(*(jobs.c[name] for name in names)).order_by(*key).limit(limit) for branch in branches
    ]
    if len(limited) == 1:
        return limited[0]
    joined = union_all(*(select(part.subquery()) for part in limited)).subquery()
    by_state = key[1] is jobs.c.id
    order = (joined.c.priority.desc(), joined.c.id) if by_state else (joined.c.line, joined.c.take)
    return select(joined).order_by(*order).limit(limit)


def _unindexed(wanted: JobFilter) -> list[ColumnElement[bool]]:
    """The conditions that are looked for row by row."""
    found: list[ColumnElement[bool]] = []
    if wanted.codes and not _codes_of_failed(wanted):
        found.append(jobs.c.code.in_(wanted.codes))
    if wanted.states and not _works_by_state(wanted) and not _codes_of_failed(wanted):
        found.append(jobs.c.state.in_(wanted.states))
    if wanted.decision == UNDECIDED:
        found.append(jobs.c.decision.is_(None))
    elif wanted.decision is not None and _codes_of_failed(wanted):
        found.append(jobs.c.decision == wanted.decision)
    if wanted.text:
        columns = (jobs.c.custom_id, jobs.c.image, jobs.c.message)
        found.append(or_(*(column.icontains(wanted.text, autoescape=True) for column in columns)))
    return found


def _key(row: RowMapping, by_state: bool) -> tuple[int, int]:
    return (row["priority"], row["id"]) if by_state else (row["line"], row["take"])


def _not_after(key: tuple[int, int], by_state: bool) -> ColumnElement[bool]:
    if by_state:
        return or_(jobs.c.priority > key[0], and_(jobs.c.priority == key[0], jobs.c.id <= key[1]))
    return tuple_(jobs.c.line, jobs.c.take) <= key
