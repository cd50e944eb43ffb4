"""What people do with a batch on its page: pause, resume, cancel, retry a group, and act on many jobs at once.

Owns forms and what is said afterwards. The rules are those of `control` and `decisions`.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Annotated

from fastapi import Form, Response

from orchestrator import control, decisions
from orchestrator.access.audit import Note
from orchestrator.api import audit
from orchestrator.api.access import Caller, Submitter
from orchestrator.api.problems import Problem
from orchestrator.api.texts import Storable
from orchestrator.control import Change
from orchestrator.dashboard.finding import find_batch
from orchestrator.dashboard.job_filter import Filter, UrlFilter
from orchestrator.dashboard.page import page_router, redirect
from orchestrator.dashboard.services import Kept, Services
from orchestrator.dashboard.wording import plural
from orchestrator.state import queries
from orchestrator.state.database import reading
from orchestrator.state.queries import pages
from orchestrator.state.transitions import Decision, JobState

router = page_router()
CHUNK_JOBS = 1_000
# New takes cost model time: more at once are asked of the command line or the API, on purpose.
MOST_TAKES = 500
RETRIED = (JobState.FAILED, JobState.CANCELLED)
DECISIONS: Mapping[str, Decision] = {"approve": Decision.APPROVED, "reject": Decision.REJECTED}


@router.post("/batches/{batch_id}/pause")
def pause(caller: Submitter, kept: Services, batch_id: str) -> Response:
    """Claim nothing more of it."""
    return _steer(kept, caller, batch_id, "batch.pause", control.pause, "Paused: what is running ends its stage")


@router.post("/batches/{batch_id}/resume")
def resume(caller: Submitter, kept: Services, batch_id: str) -> Response:
    """Go on with it."""
    return _steer(kept, caller, batch_id, "batch.resume", control.resume, "Running again")


@router.post("/batches/{batch_id}/cancel")
def cancel(caller: Submitter, kept: Services, batch_id: str) -> Response:
    """End it early."""
    return _steer(kept, caller, batch_id, "batch.cancel", control.cancel, "Cancelled; pictures that were made stay")


def _steer(kept: Kept, caller: Caller, batch_id: str, action: str, ask: Callable[..., Change], said: str) -> Response:
    ask(kept.opened.engine, batch_id, note=audit.line(caller, action))
    return redirect(f"/batches/{batch_id}", said)


@router.post("/batches/{batch_id}/retry")
def retry_group(
    caller: Submitter, kept: Services, batch_id: str, code: Annotated[Storable, Form(max_length=100)]
) -> Response:
    """Try the failed jobs of one code again."""
    noted = audit.line(caller, "batch.retry", code=code)
    change = control.retry(kept.opened.engine, batch_id, codes=[code], note=noted)
    return redirect(f"/batches/{batch_id}", _retried(change.jobs, change.bad_rows))


@router.post("/batches/{batch_id}/bulk")
def act_on_many(
    caller: Submitter,
    kept: Services,
    batch_id: str,
    filter_: Filter,
    do: Annotated[str, Form(max_length=20)],
    job: Annotated[list[int] | None, Form(max_length=1000)] = None,
    every: Annotated[str, Form(alias="all", max_length=1)] = "",
) -> Response:
    """Retry, approve, reject or regenerate the jobs that are selected, or all that match the page's filter."""
    back = f"/batches/{batch_id}{filter_.query(after=filter_.after)}"
    if not every and not job:
        return redirect(back, "Select jobs first, or tick “all that match”", bad=True)
    with reading(kept.opened.engine).connect() as connection:
        find_batch(connection, batch_id)
    chosen = _matching(kept, batch_id, filter_) if every else _of_batch(kept, batch_id, job or [])
    noted = audit.line(caller, f"jobs.{do}", chosen="all that match" if every else job)
    said, bad = _act(kept, batch_id, do, chosen, noted)
    return redirect(back, said, bad=bad)


def _act(kept: Kept, batch_id: str, do: str, chosen: Iterator[list[int]], note: Note) -> tuple[str, bool]:
    """Do it chunk by chunk; gives what to say, and whether nothing came of it."""
    engine = kept.opened.engine
    if do in DECISIONS:
        decided = sum(decisions.decide_all(engine, batch_id, ids, DECISIONS[do], note=note) for ids in chosen)
        return f"{plural(decided, 'picture')} {DECISIONS[do]}", not decided
    if do == "retry":
        change = control.retry_jobs(engine, batch_id, chosen, note=note)
        return _retried(change.jobs, change.bad_rows), not change.jobs
    if do == "regenerate":
        made, refused = decisions.regenerate_all(engine, batch_id, chosen, most=MOST_TAKES, note=note)
        more = f"; {refused:,} could not be or were left, {MOST_TAKES:,} at a time" if refused else ""
        return f"{plural(made, 'new take')} asked for{more}", not made
    raise Problem(422, "bad_action", f"do {do!r}: expected retry, approve, reject or regenerate")


def _matching(kept: Kept, batch_id: str, filter_: UrlFilter) -> Iterator[list[int]]:
    """The ids of all jobs that match, in chunks; each is read when it is wanted."""
    after: tuple[int, int] | None = None
    while True:
        with reading(kept.opened.engine).connect() as connection:
            page = queries.list_jobs(connection, batch_id, filter_.wanted, limit=CHUNK_JOBS, after=after)
        yield [job["id"] for job in page.jobs]
        after = page.after
        if after is None:
            return


def _of_batch(kept: Kept, batch_id: str, given: list[int]) -> Iterator[list[int]]:
    """Those of the ids given that are the batch's: a form may name any."""
    with reading(kept.opened.engine).connect() as connection:
        found = pages.ids_of_batch(connection, batch_id, given)
    yield found


def _retried(jobs: int, bad_rows: int) -> str:
    """What a retry says."""
    if not jobs and bad_rows:
        return f"{plural(bad_rows, 'bad row')} cannot be tried again: correct the catalogue and submit it"
    more = f"; {plural(bad_rows, 'bad row')} left" if bad_rows else ""
    return f"{plural(jobs, 'job')} to be tried again{more}"
