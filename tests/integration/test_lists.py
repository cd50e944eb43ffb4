"""Lists and groups that pages are made of: filtered jobs by key, failures, images by minute, a job's history."""

from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest
from sqlalchemy import Engine, insert, update

from orchestrator import control
from orchestrator.closing import Closer
from orchestrator.settings import Settings
from orchestrator.state import queries
from orchestrator.state.database import reading
from orchestrator.state.queries import JobFilter, lists
from orchestrator.state.tables import attempts, batches, jobs
from orchestrator.state.transitions import BatchStatus, JobState, Stage
from tests.integration.seeding import Seeder

STATES = tuple(JobState)


def fill(seed: Seeder, count: int = 40) -> None:
    """A batch whose jobs stand in every state, priority and decision."""
    seed.batch(jobs=count, priorities=[(line // 7) % 3 for line in range(count)])
    for row in seed.rows():
        line = row["line"]
        state = STATES[line % len(STATES)]
        values: dict[str, Any] = {"state": state, "ended_at": 1e9 + line}
        if state is JobState.FAILED:
            values |= {"code": ("bad_row", "unavailable")[line % 4 // 2], "message": f"100% of line {line} is bad"}
        if state is JobState.SUCCEEDED and line % 5:
            values["decision"] = ("approved", "rejected")[line % 2]
        seed.do(lambda c, v=values, i=row["id"]: c.execute(update(jobs).where(jobs.c.id == i).values(v)))
    seed.do(queries.add_take, seed.rows()[3]["id"], take=2, seed=5)


def pages(seed: Seeder, wanted: JobFilter, limit: int = 9) -> Iterator[list[Any]]:
    after = None
    while True:
        with reading(seed.engine).connect() as connection:
            page = queries.list_jobs(connection, "b", wanted, limit=limit, after=after)
        yield page.jobs
        if (after := page.after) is None:
            return


def matches(row: dict[str, Any], wanted: JobFilter) -> bool:
    states = wanted.states or ((JobState.FAILED,) if wanted.codes else STATES)
    texts = [str(row[name]).lower() for name in ("custom_id", "image", "message")]
    return (
        row["state"] in states
        and (not wanted.codes or row["code"] in wanted.codes)
        and (not wanted.text or any(wanted.text.lower() in text for text in texts))
        and (wanted.decision is None or row["decision"] == (None if wanted.decision == "none" else wanted.decision))
    )


def test_every_filter_gives_each_job_once_whatever_the_pages(seed: Seeder, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(seed)
    monkeypatch.setattr(lists, "LOOKED_AT", 11)
    filters = [
        JobFilter(states, codes, text, decision)
        for states, codes, text, decision in product(
            ((), (JobState.FAILED,), (JobState.RUNNING, JobState.SUCCEEDED)),
            ((), ("bad_row", "unavailable")),
            ("", "PHOTO-1", "100%"),
            (None, "approved", "none"),
        )
    ]
    for wanted in filters:
        found = [job for page in pages(seed, wanted) for job in page]
        expected = [row for row in seed.rows() if matches(row, wanted)]
        assert len(found) == len(expected) and {job["id"] for job in found} == {row["id"] for row in expected}, wanted
        if not wanted.states or wanted.codes or wanted.decision == "approved":
            keys = [(job["line"], job["take"]) for job in found]
        else:
            keys = [(-job["priority"], job["id"]) for job in found]
        assert keys == sorted(keys), wanted


def test_a_page_looks_through_a_bounded_number_of_rows(seed: Seeder, monkeypatch: pytest.MonkeyPatch) -> None:
    seed.batch(jobs=50)
    monkeypatch.setattr(lists, "LOOKED_AT", 20)
    found = [[job["line"] for job in page] for page in pages(seed, JobFilter(text="photo-50"))]
    assert found == [[], [], [50]]


def test_counts_of_an_ended_batch_are_kept_and_forgotten_when_it_is_reopened(seed: Seeder, tmp_path: Any) -> None:
    batch = seed.batch(jobs=3, results_uri=str(tmp_path / "results"))
    with seed.engine.begin() as connection:
        connection.execute(update(jobs).values(state="succeeded", reused=1, ended_at=5.0))
        connection.execute(update(jobs).where(jobs.c.line == 2).values(state="failed", reused=0, code="unavailable"))
    closer = Closer(seed.engine, Settings(home=tmp_path))
    closer.begin(batch)
    closer.wait()
    closed = seed.do(queries.read_batch, "b")
    assert closed.status == BatchStatus.COMPLETED
    assert closed.ended_counts == seed.do(queries.count_by_state, "b")
    assert (closed.ended_counts.succeeded, closed.ended_counts.failed, closed.ended_counts.reused) == (2, 1, 2)
    control.retry(seed.engine, "b")
    assert seed.do(queries.read_batch, "b").ended_counts is None


def test_batches_are_listed_newest_first_in_pages(seed: Seeder) -> None:
    for number in range(5):
        seed.batch(f"b{number}", status="paused" if number % 2 else "running")
        seed.do(lambda c, n=number: c.execute(update(batches).where(batches.c.id == f"b{n}").values(created_at=n // 2)))
    first = seed.do(queries.list_batches, limit=2)
    rest = seed.do(queries.list_batches, limit=9, before=(first[-1].created_at, first[-1].id))
    assert [batch.id for batch in first + rest] == ["b4", "b3", "b2", "b1", "b0"]
    paused = seed.do(queries.list_batches, limit=9, statuses=[BatchStatus.PAUSED])
    assert [batch.id for batch in paused] == ["b3", "b1"]


def test_counts_of_several_batches_come_together(seed: Seeder) -> None:
    seed.batch("a", jobs=2)
    seed.batch("b", jobs=3)
    seed.do(lambda c: c.execute(update(jobs).where(jobs.c.batch_id == "b").values(state="succeeded", reused=1)))
    counts = seed.do(queries.count_many_by_state, ["a", "b", "none"])
    assert (counts["a"].pending, counts["a"].total, counts["a"].reused) == (2, 2, 0)
    assert (counts["b"].succeeded, counts["b"].total, counts["b"].reused) == (3, 3, 3)
    assert counts["none"].total == 0


def test_failures_are_grouped_by_code_with_an_example(seed: Seeder) -> None:
    fill(seed)
    groups = seed.do(queries.failures_grouped, batch_id="b")
    expected: dict[str, int] = {}
    for row in seed.rows():
        if row["state"] == "failed":
            expected[row["code"]] = expected.get(row["code"], 0) + 1
    assert {group.code: group.count for group in groups} == expected
    assert [group.count for group in groups] == sorted(expected.values(), reverse=True)
    for group in groups:
        example = seed.row(group.job_id)
        assert (example["code"], example["message"], example["batch_id"]) == (group.code, group.message, "b")
    late = seed.do(queries.failures_grouped, since=1e9 + 20)
    assert sum(group.count for group in late) == sum(
        row["state"] == "failed" and row["line"] >= 20 for row in seed.rows()
    )


def test_pictures_are_counted_by_minute(seed: Seeder) -> None:
    seed.batch("a", jobs=4)
    seed.batch("b", jobs=1)
    for row, at in zip([*seed.rows("a"), *seed.rows("b")], (59.9, 60.0, 119.0, 240.5, 61.0), strict=True):
        seed.do(lambda c, i=row["id"], t=at: c.execute(
            update(jobs).where(jobs.c.id == i).values(state="succeeded", ended_at=t)
        ))  # fmt: skip
    assert seed.do(queries.throughput, since=0) == [(0, 1), (60, 3), (240, 1)]
    assert seed.do(queries.throughput, since=60, until=240, batch_id="a") == [(60, 2)]


def test_a_jobs_history_has_its_attempts_and_takes(seed: Seeder) -> None:
    seed.batch(jobs=1)
    job_id = seed.rows()[0]["id"]
    seed.do(queries.add_take, job_id, take=2, seed=9)
    seed.do(lambda c: c.execute(
        insert(attempts).values(job_id=job_id, attempt=0, stage="encode", outcome="retry", code="x", ended_at=1.0)
    ))  # fmt: skip
    history = seed.do(queries.job_history, job_id)
    assert history.job["id"] == job_id
    assert [(row["outcome"], row["code"]) for row in history.attempts] == [("retry", "x")]
    assert [(row["take"], row["seed"]) for row in history.takes] == [(1, 0), (2, 9)]
    assert seed.do(queries.job_history, 10**9) is None


def test_the_overview_tells_all_at_once(seed: Seeder, engine: Engine) -> None:
    group = seed.queued(3)
    seed.do(queries.register_worker, {
        "id": "w", "host": "h", "pid": 1, "stages": "encode", "device": "cpu", "revision": "r", "numerics": "n",
    })  # fmt: skip
    seed.claim(group, limit=1)
    seen = seed.do(queries.overview, lease_s=15.0)
    assert seen.batches == {"running": 1}
    assert seen.depths[JobState.QUEUED, Stage.ENCODE] == 2 and seen.depths[JobState.RUNNING, Stage.ENCODE] == 1
    assert seen.depths[JobState.QUEUED, Stage.DECODE] == 0
    assert [worker.id for worker in seen.workers] == ["w"]
    assert seen.images_by_minute == [] and seen.failures == []
