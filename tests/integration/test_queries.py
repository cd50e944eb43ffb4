"""The statements of the state by what they do, each on SQLite and PostgreSQL."""

import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import Engine, event, select, text, update

from orchestrator.state import queries
from orchestrator.state.bulk import insert_jobs
from orchestrator.state.database import now, open_database, reading
from orchestrator.state.queries import AGING_S, Advanced, BatchCounts, Claimed, Ended, Failed, Finished, Group, Retried
from orchestrator.state.queries.batches import PAGE_ROWS
from orchestrator.state.tables import batches, jobs, workers
from orchestrator.state.transitions import BatchStatus, JobState, Stage
from tests.integration.seeding import NUMERICS, RECIPE, REVISION, Seeder, job_row
from tests.waiting import PATIENCE_S, wait_until

SAMPLE = Group(Stage.SAMPLE, RECIPE, "256x256", REVISION)


def advanced(job: Claimed, seconds: float = 0.5) -> Advanced:
    return Advanced(job.id, job.attempt, seconds, "256x256", "image-sha", f"print-{job.id}")


def finished(job: Claimed, **more: Any) -> Finished:
    return Finished(job.id, job.attempt, 0.25, f"/results/{job.id}.png", f"sha-{job.id}", **more)


def failed(job: Claimed, message: str = "no route") -> Failed:
    return Failed(job.id, job.attempt, 0.1, "unavailable", message)


def retried(job: Claimed, delay_s: float = 0.0, **more: Any) -> Retried:
    return Retried(job.id, job.attempt, 0.1, "unavailable", "no route", delay_s, **more)


def silence_s(seed: Seeder) -> dict[str, float]:
    """For how long the workers that have not ended were not heard of."""
    return {life.id: life.at - life.seen_at for life in seed.do(queries.signs_of_life)}


def ended(job: Claimed) -> Ended:
    return Ended(job.id, job.attempt, 0.0)


def bring_to_sample(seed: Seeder, count: int) -> list[Claimed]:
    """Jobs held by worker w at the stage sample."""
    claimed = seed.claim(seed.queued(count))
    seed.do(queries.advance, Stage.ENCODE, [advanced(job) for job in claimed])
    return seed.claim(SAMPLE)


class TestDispatch:
    def test_the_most_urgent_go_first_then_the_earliest(self, seed: Seeder) -> None:
        seed.batch(jobs=5, priorities=[0, 5, 0, 5, -1])
        order = []
        for _ in range(5):
            assert seed.do(queries.dispatch, "b", 1) == {RECIPE: 1}
            order += [row["line"] for row in seed.rows() if row["state"] == "queued" and row["line"] not in order]
        assert order == [2, 4, 1, 3, 5]

    def test_it_stops_at_the_limit_and_counts_by_recipe(self, seed: Seeder) -> None:
        seed.batch(jobs=0)
        rows = [job_row("b", line, recipe=f"recipe-{line % 2}") for line in range(1, 8)]
        assert seed.do(insert_jobs, rows) == []
        assert seed.do(queries.dispatch, "b", 4) == {"recipe-0": 2, "recipe-1": 2}
        assert seed.do(queries.dispatch, "b", 100) == {"recipe-0": 1, "recipe-1": 2}
        assert seed.do(queries.dispatch, "b", 100) == {}

    def test_the_backlog_is_not_read_to_find_the_next_rows(self, seed: Seeder) -> None:
        # At ten million rows a tick that sorts the backlog takes seconds and holds SQLite's only write lock.
        seed.batch(jobs=3)
        plan = "EXPLAIN QUERY PLAN" if seed.engine.dialect.name == "sqlite" else "EXPLAIN"
        statement = "SELECT id FROM jobs WHERE batch_id = 'b' AND state = 'pending' ORDER BY priority DESC, id LIMIT 5"
        with seed.engine.begin() as connection:
            if seed.engine.dialect.name == "postgresql":
                connection.execute(text("SET LOCAL enable_seqscan = off"))
            lines = " ".join(str(row) for row in connection.execute(text(f"{plan} {statement}")))
        assert "jobs_batch_state_idx" in lines
        assert "Sort" not in lines and "TEMP B-TREE" not in lines

    def test_the_window_is_counted_without_reading_the_backlog(self, seed: Seeder) -> None:
        """Each tick counts it, and once more under the lock of those who fill it."""
        asked: list[tuple[str, Any]] = []

        def note(_: Any, __: Any, statement: str, given: Any, *___: Any) -> None:
            asked.append((statement, given))

        with seed.engine.begin() as connection:
            event.listen(connection, "before_cursor_execute", note)
            queries.in_flight(connection)
            [(statement, given)] = asked
            plan = "EXPLAIN QUERY PLAN" if seed.engine.dialect.name == "sqlite" else "EXPLAIN"
            if seed.engine.dialect.name == "postgresql":
                connection.execute(text("SET LOCAL enable_seqscan = off"))
            lines = " ".join(str(row) for row in connection.exec_driver_sql(f"{plan} {statement}", given))
        assert "jobs_queued_idx" in lines and "jobs_running_idx" in lines and "SCAN jobs" not in lines

    def test_two_dispatchers_queue_each_job_once(self, seed: Seeder) -> None:
        seed.batch(jobs=60)
        with ThreadPoolExecutor(4) as pool:
            queued = sum(
                sum(each.values()) for each in pool.map(lambda _: seed.do(queries.dispatch, "b", 10), range(8))
            )
        assert queued == 60 == sum(row["state"] == "queued" for row in seed.rows())


class TestClaim:
    def test_a_worker_takes_up_to_its_limit_and_holds_it(self, seed: Seeder) -> None:
        group = seed.queued(5)
        first, second = seed.claim(group, 3, "one"), seed.claim(group, 3, "two")
        assert [job.line for job in first] == [1, 2, 3] and [job.line for job in second] == [4, 5]
        assert [row["worker_id"] for row in seed.rows()] == ["one"] * 3 + ["two"] * 2
        assert {row["state"] for row in seed.rows()} == {"running"}
        assert seed.claim(group, 3, "three") == []

    def test_the_most_urgent_batch_goes_first_then_the_most_urgent_job(self, seed: Seeder) -> None:
        group = seed.queued(3, "calm", priorities=[0, 9, 0])
        seed.queued(2, "urgent", priority=1)
        order = [seed.claim(group, 1)[0] for _ in range(5)]
        assert [(job.batch_id, job.line) for job in order] == [
            ("urgent", 1), ("urgent", 2), ("calm", 2), ("calm", 1), ("calm", 3),
        ]  # fmt: skip

    @pytest.mark.parametrize("status", ["paused", "cancelling"])
    def test_a_batch_that_does_not_run_gives_nothing(self, seed: Seeder, status: str) -> None:
        group = seed.queued(2)
        assert seed.do(queries.move_batch, "b", BatchStatus(status))
        assert seed.claim(group) == []
        assert seed.do(queries.units_queued, older_than_s=0, unit_size=1) == {}

    def test_another_model_or_stage_gives_nothing(self, seed: Seeder) -> None:
        group = seed.queued(1)
        assert seed.claim(group, numerics="bfloat16/v1") == []
        assert seed.claim(Group(Stage.ENCODE, RECIPE, "", "b" * 64)) == []
        assert seed.claim(Group(Stage.SAMPLE, RECIPE, "", REVISION)) == []
        assert len(seed.claim(group)) == 1

    def test_a_unit_is_of_one_group_the_most_urgent_one(self, seed: Seeder) -> None:
        # Whatever group the bell named: priority acts at the next claim.
        calm = seed.queued(3, "calm", recipe="calm")
        seed.queued(2, "urgent", recipe="urgent", priority=1)
        assert [job.batch_id for job in seed.claim(calm, 8)] == ["urgent", "urgent"]
        assert [job.batch_id for job in seed.claim(calm, 8)] == ["calm"] * 3

    def test_what_has_waited_long_goes_before_what_is_urgent(self, seed: Seeder) -> None:
        group = seed.queued(1, "calm")
        with seed.engine.begin() as connection:
            connection.execute(update(jobs).values(urgency=jobs.c.urgency + 2.1 * AGING_S))
        seed.queued(1, "urgent", priority=2)
        seed.queued(1, "more urgent", priority=3)
        assert [seed.claim(group, 1)[0].batch_id for _ in range(3)] == ["more urgent", "calm", "urgent"]

    def test_a_worker_that_was_declared_dead_gets_nothing(self, seed: Seeder) -> None:
        group = seed.queued(1)
        TestWorkers().register(seed)
        seed.do(queries.end_worker, "w")
        assert seed.claim(group, worker="w") == []
        assert len(seed.claim(group, worker="other")) == 1

    def test_an_overdue_batch_gives_nothing(self, seed: Seeder) -> None:
        group = seed.queued(2, deadline_at=time.time() + 3600)
        (job,) = seed.claim(group, 1)
        with seed.engine.begin() as connection:
            connection.execute(update(batches).values(deadline_at=now() - 1))
        assert seed.claim(group) == []
        assert seed.do(queries.carry, Stage.ENCODE, [advanced(job)]) == []
        assert seed.do(queries.units_queued, older_than_s=0, unit_size=1) == {}

    def test_no_job_is_ever_held_twice_nor_a_unit_larger_than_asked(self, seed: Seeder) -> None:
        group, held, lock = seed.queued(120), Counter[int](), threading.Lock()

        def work(worker: int) -> None:
            while unit := seed.claim(group, 7, f"w{worker}"):
                assert len(unit) <= 7
                with lock:
                    held.update(job.id for job in unit)

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(work, range(4)))
        assert len(held) == 120 and set(held.values()) == {1}

    @pytest.mark.parametrize("engine", ["postgresql"], indirect=True)
    def test_a_worker_does_not_wait_for_anothers_claim(self, seed: Seeder) -> None:
        seed.queued(6)
        given = {"revision": REVISION, "numerics": NUMERICS, "limit": 3}
        with seed.engine.begin() as slow, seed.engine.begin() as quick:
            quick.execute(text("SET LOCAL lock_timeout = '2s'"))
            first = queries.claim(slow, Stage.ENCODE, worker_id="slow", **given)
            second = queries.claim(quick, Stage.ENCODE, worker_id="quick", **given)
        assert {job.id for job in first}.isdisjoint(job.id for job in second) and len(first) == len(second) == 3

    def test_a_claim_tells_all_that_a_stage_needs(self, seed: Seeder) -> None:
        (job,) = bring_to_sample(seed, 1)
        assert (job.batch_id, job.custom_id, job.image, job.recipe_id, job.seed, job.take) == (
            "b", "photo-1", "1.jpg", RECIPE, 0, 1,
        )  # fmt: skip
        assert (job.canvas, job.fingerprint, job.attempt) == ("256x256", f"print-{job.id}", 0)


class TestEnds:
    def test_a_job_goes_through_its_stages_and_keeps_what_they_found(self, seed: Seeder) -> None:
        (job,) = seed.claim(seed.queued(1))
        assert seed.do(queries.advance, Stage.ENCODE, [advanced(job, 0.5)]) == {job.id}
        row = seed.row(job.id)
        assert (row["state"], row["stage"], row["canvas"], row["worker_id"]) == ("queued", "sample", "256x256", None)
        (job,) = seed.claim(SAMPLE)
        assert seed.do(queries.advance, Stage.SAMPLE, [Advanced(job.id, job.attempt, 2.0, "256x256")]) == {job.id}
        (job,) = seed.claim(Group(Stage.DECODE, RECIPE, "256x256", REVISION))
        assert seed.do(queries.succeed, Stage.DECODE, [finished(job)]) == {job.id}
        row = seed.row(job.id)
        assert (row["state"], row["result"], row["sha256"]) == ("succeeded", f"/results/{job.id}.png", f"sha-{job.id}")
        assert (row["image_sha256"], row["fingerprint"]) == ("image-sha", f"print-{job.id}")
        assert (row["encode_s"], row["sample_s"], row["decode_s"]) == (0.5, 2.0, 0.25)
        assert row["attempt"] == row["failures"] == row["crashes"] == 0 and row["ended_at"] >= row["queued_at"]
        assert seed.do(queries.stage_seconds, "b") == {"encode": 0.5, "sample": 2.0, "decode": 0.25}
        assert seed.do(queries.last_end, "b") == row["ended_at"]

    def test_decode_is_the_last_stage(self, seed: Seeder) -> None:
        seed.batch()
        with pytest.raises(ValueError, match="no stage follows"):
            seed.do(queries.advance, Stage.DECODE, [])

    def test_a_reused_picture_ends_a_job_at_encode(self, seed: Seeder) -> None:
        (job,) = seed.claim(seed.queued(1))
        end = finished(job, image_sha256="image-sha", fingerprint="print", reused=1)
        assert seed.do(queries.succeed, Stage.ENCODE, [end]) == {job.id}
        counts = seed.do(queries.count_by_state, "b")
        assert (counts.total, counts.succeeded, counts.reused, counts.ended) == (1, 1, 1, 1)

    @pytest.mark.parametrize("stale", ["attempt", "stage", "state"])
    def test_a_stale_worker_changes_no_row(self, seed: Seeder, stale: str) -> None:
        (job,) = seed.claim(seed.queued(1))
        stage = Stage.ENCODE
        if stale == "attempt":
            seed.do(queries.take_back, "w", crashes_allowed=2)
            seed.claim(Group(Stage.ENCODE, RECIPE, "", REVISION), worker="new")
        elif stale == "stage":
            stage = Stage.SAMPLE
        else:
            seed.do(queries.advance, Stage.ENCODE, [advanced(job)])
        before = seed.row(job.id), seed.history(job.id)
        assert seed.do(queries.advance, stage, [advanced(job)]) == set()
        assert seed.do(queries.succeed, stage, [finished(job)]) == set()
        assert seed.do(queries.fail, stage, [failed(job)]) == set()
        assert seed.do(queries.retry, stage, [retried(job)]) == set()
        assert seed.do(queries.lose_handoffs, stage, [ended(job)]) == set()
        assert (seed.row(job.id), seed.history(job.id)) == before

    def test_one_stale_job_does_not_stop_its_unit(self, seed: Seeder) -> None:
        first, second, third = seed.claim(seed.queued(3))
        seed.do(queries.fail, Stage.ENCODE, [failed(second)])
        moved = seed.do(queries.advance, Stage.ENCODE, [advanced(job) for job in (first, second, third)])
        assert moved == {first.id, third.id}
        assert seed.row(second.id)["state"] == "failed"

    def test_a_retry_waits_for_its_time_and_counts_a_failure(self, seed: Seeder) -> None:
        (job,) = bring_to_sample(seed, 1)
        assert seed.do(queries.retry, Stage.SAMPLE, [retried(job, 60)]) == {job.id}
        row = seed.row(job.id)
        assert (row["state"], row["stage"], row["attempt"], row["failures"], row["crashes"]) == (
            "queued", "sample", 1, 1, 0,
        )  # fmt: skip
        assert (row["code"], row["message"], row["worker_id"]) == ("unavailable", "no route", None)
        assert seed.claim(SAMPLE) == [] and seed.do(queries.units_queued, older_than_s=0, unit_size=1) == {}
        assert seed.do(queries.backing_off) == seed.do(queries.in_flight) == {"b": 1}
        with seed.engine.begin() as connection:
            connection.execute(update(jobs).values(run_at=now() - 0.001))
        assert seed.do(queries.units_queued, older_than_s=0, unit_size=1) == {SAMPLE: 1}
        assert seed.do(queries.backing_off) == {} and seed.do(queries.in_flight) == {"b": 1}
        (again,) = seed.claim(SAMPLE)
        assert (again.attempt, again.failures, seed.row(job.id)["run_at"]) == (1, 1, None)
        assert seed.history(job.id) == [(0, "retry")]

    @pytest.mark.parametrize("move", [queries.advance, queries.carry])
    def test_failures_count_for_their_stage_alone(self, seed: Seeder, move: Any) -> None:
        (job,) = seed.claim(seed.queued(1))
        for _ in range(2):
            seed.do(queries.retry, Stage.ENCODE, [retried(job)])
            (job,) = seed.claim(Group(Stage.ENCODE, RECIPE, "", REVISION))
        assert job.failures == 2
        (moved,) = seed.do(move, Stage.ENCODE, [advanced(job)])
        (job,) = [moved] if isinstance(moved, Claimed) else seed.claim(SAMPLE)
        assert (job.failures, job.attempt) == (0, 2)

    def test_a_job_that_succeeds_after_a_retry_shows_no_error(self, seed: Seeder) -> None:
        (job,) = seed.claim(seed.queued(1))
        seed.do(queries.retry, Stage.ENCODE, [retried(job)])
        (job,) = seed.claim(Group(Stage.ENCODE, RECIPE, "", REVISION))
        seed.do(queries.succeed, Stage.ENCODE, [finished(job)])
        assert (seed.row(job.id)["code"], seed.row(job.id)["message"]) == (None, None)

    def test_a_failure_ends_a_job_and_says_why(self, seed: Seeder) -> None:
        first, second = seed.claim(seed.queued(2))
        seed.do(queries.fail, Stage.ENCODE, [failed(first)])
        row = seed.row(first.id)
        assert (row["state"], row["code"], row["failures"], row["attempt"]) == ("failed", "unavailable", 1, 0)
        assert row["ended_at"] is not None and seed.row(second.id)["state"] == "running"
        (group,) = seed.do(queries.failures_grouped, batch_id="b")
        assert (group.code, group.count) == ("unavailable", 1)
        assert seed.history(first.id) == [(0, "fail")]

    @pytest.mark.parametrize("message", ["a\x00b", "half a pair \ud83d", "🧥 جاكيت " * 1000, "'\"\\\n{};--"])
    def test_any_message_is_stored_and_stops_no_neighbour(self, seed: Seeder, message: str) -> None:
        first, second = seed.claim(seed.queued(2))
        assert seed.do(queries.fail, Stage.ENCODE, [failed(first, message), failed(second)]) == {first.id, second.id}
        assert seed.row(first.id)["message"][:1] == message[:1] and seed.row(second.id)["message"] == "no route"

    def test_a_lost_handoff_goes_back_to_encode_and_counts_against_nobody(self, seed: Seeder) -> None:
        (job,) = bring_to_sample(seed, 1)
        assert seed.do(queries.lose_handoffs, Stage.SAMPLE, [ended(job)]) == {job.id}
        row = seed.row(job.id)
        assert (row["state"], row["stage"], row["canvas"], row["attempt"]) == ("queued", "encode", "", 1)
        assert row["failures"] == row["crashes"] == 0
        assert [each.id for each in seed.claim(Group(Stage.ENCODE, RECIPE, "", REVISION))] == [job.id]
        assert seed.history(job.id) == [(0, "lose_handoff")]


class TestRelease:
    def test_a_worker_that_stops_hands_back_what_it_holds(self, seed: Seeder) -> None:
        group = seed.queued(3)
        mine, other = seed.claim(group, 2, "w"), seed.claim(group, 1, "other")
        assert seed.do(queries.hand_back, "w") == [group, group]
        for job in mine:
            row = seed.row(job.id)
            assert (row["state"], row["stage"], row["worker_id"], row["attempt"]) == ("queued", "encode", None, 1)
            assert row["failures"] == row["crashes"] == 0
        assert seed.row(other[0].id)["state"] == "running"
        assert seed.do(queries.hand_back, "w") == []

    def test_a_dead_workers_jobs_are_tried_alone_and_the_guilty_one_is_set_aside(self, seed: Seeder) -> None:
        group = seed.queued(3)
        guilty = seed.claim(group, 3)[1].id
        deaths = 1
        seed.do(queries.take_back, "w", crashes_allowed=2)
        assert [row["crashes"] for row in seed.rows()] == [1, 1, 1]
        while unit := seed.claim(group, 3):
            assert len(unit) == 1  # a suspect takes nobody with it
            if unit[0].id == guilty:
                deaths += 1
                seed.do(queries.take_back, "w", crashes_allowed=2)
            else:
                seed.do(queries.succeed, Stage.ENCODE, [finished(unit[0])])
        assert deaths == 3
        states = {row["id"]: (row["state"], row["code"]) for row in seed.rows()}
        assert states.pop(guilty) == ("failed", "poison")
        assert set(states.values()) == {("succeeded", None)}
        row = seed.row(guilty)
        assert (row["crashes"], row["failures"], row["attempt"]) == (3, 0, 3) and row["ended_at"] is not None
        assert seed.history(guilty) == [(0, "crash"), (1, "crash"), (2, "crash")]

    def test_a_suspect_is_claimed_alone_and_waits_for_nobody_who_came_later(self, seed: Seeder) -> None:
        group = seed.queued(4)
        suspect = seed.claim(group, 1)[0]
        seed.do(queries.take_back, "w", crashes_allowed=2)
        assert [job.id for job in seed.claim(group, 4)] == [suspect.id]
        assert suspect.id not in [job.id for job in seed.claim(group, 4)]

    def test_a_unit_of_sixteen_with_one_guilty_job_loses_only_that_one(self, seed: Seeder) -> None:
        group = seed.queued(16)
        guilty = seed.claim(group, 16)[7].id
        seed.do(queries.take_back, "w", crashes_allowed=2)
        assert seed.do(queries.units_queued, older_than_s=0, unit_size=16) == {group: 16}  # a bell for each
        while unit := seed.claim(group, 16):
            if guilty in [job.id for job in unit]:
                seed.do(queries.take_back, "w", crashes_allowed=2)
            else:
                seed.do(queries.succeed, Stage.ENCODE, [finished(job) for job in unit])
        assert [(row["state"], row["crashes"]) for row in seed.rows()].count(("succeeded", 1)) == 15
        assert (seed.row(guilty)["state"], seed.row(guilty)["code"]) == ("failed", "poison")

    def test_a_suspect_that_survives_its_stage_is_trusted_in_the_next(self, seed: Seeder) -> None:
        group = seed.queued(3)
        seed.claim(group, 3)
        seed.do(queries.take_back, "w", crashes_allowed=2)
        for _ in range(3):
            seed.do(queries.advance, Stage.ENCODE, [advanced(job) for job in seed.claim(group, 3)])
        assert len(seed.claim(SAMPLE, 3)) == 3

    def test_too_little_memory_makes_the_next_unit_smaller(self, seed: Seeder) -> None:
        group = seed.queued(8)
        unit = seed.claim(group, 8)
        seed.do(queries.retry, Stage.ENCODE, [retried(job, counted=0, unit_limit=4) for job in unit])
        first = seed.claim(group, 8)
        assert len(first) == 4 and {job.failures for job in first} == {0}
        seed.do(queries.retry, Stage.ENCODE, [retried(job, unit_limit=2) for job in first])
        assert [len(seed.claim(group, 8)) for _ in range(4)] == [2, 2, 4, 0]

    def test_how_long_a_worker_is_in_its_stage_is_told_by_the_job_it_has_longest(self, seed: Seeder) -> None:
        def stage_s() -> float | None:
            (life,) = seed.do(queries.signs_of_life)
            return None if life.stage_at is None else life.at - life.stage_at

        group = seed.queued(2)
        TestWorkers().register(seed)
        assert stage_s() is None
        unit = seed.claim(group)
        with seed.engine.begin() as connection:
            connection.execute(update(jobs).where(jobs.c.id == unit[0].id).values(stage_at=now() - 100))
        assert stage_s() == pytest.approx(100, abs=20)
        assert seed.do(queries.carry, Stage.ENCODE, [advanced(job) for job in unit])
        assert stage_s() == pytest.approx(0, abs=20), "the next stage began"
        seed.do(queries.hand_back, "w")
        assert stage_s() is None

    def test_a_poisoned_job_gives_no_group_to_ring_for(self, seed: Seeder) -> None:
        group = seed.queued(1)
        seed.claim(group)
        assert seed.do(queries.take_back, "w", crashes_allowed=0) == []
        assert seed.do(queries.units_queued, older_than_s=0, unit_size=1) == {}

    def test_the_history_tells_of_no_attempt_that_had_moved_on(self, seed: Seeder) -> None:
        if seed.engine.dialect.name == "sqlite":
            return  # one writer at a time: nothing can come between
        group = seed.queued(2)
        first, second = seed.claim(group)
        with seed.engine.begin() as worker:
            queries.advance(worker, Stage.ENCODE, [advanced(first)])
            with ThreadPoolExecutor(1) as pool:
                taken = pool.submit(seed.do, queries.take_back, "w", crashes_allowed=2)
                wait_until_blocked(seed.engine)
                worker.commit()
                assert taken.result(timeout=PATIENCE_S) == [group]
        assert (seed.history(first.id), seed.history(second.id)) == ([], [(0, "crash")])
        assert seed.row(first.id)["stage"] == "sample"


def wait_until_blocked(engine: Engine) -> None:
    """Return once some statement waits for a lock."""
    waiting = text("SELECT count(*) FROM pg_locks WHERE NOT granted")
    with reading(engine).connect() as connection:
        wait_until(lambda: connection.execute(waiting).scalar_one(), "a statement waits for a lock")


class TestViews:
    def test_counts_sum_whatever_happens_meanwhile(self, seed: Seeder) -> None:
        group, stop, seen = seed.queued(40), threading.Event(), []

        def watch() -> None:
            while not stop.is_set():
                with reading(seed.engine).connect() as connection:
                    seen.append(queries.count_by_state(connection, "b"))

        with ThreadPoolExecutor(1) as pool:
            watcher = pool.submit(watch)
            while unit := seed.claim(group, 4):
                seed.do(queries.succeed, Stage.ENCODE, [finished(job, reused=1) for job in unit])
            stop.set()
            watcher.result()
        seen.append(seed.do(queries.count_by_state, "b"))
        assert all(c.total == 40 for c in seen)
        assert all(c.pending + c.queued + c.running + c.succeeded + c.failed + c.cancelled == 40 for c in seen)
        assert all(c.reused <= c.succeeded for c in seen) and seen[-1].reused == 40

    def test_the_window_holds_queued_and_running_jobs(self, seed: Seeder) -> None:
        group = seed.queued(3, "b")
        seed.queued(1, "c", recipe="other")
        seed.batch("d", jobs=2)
        seed.do(queries.fail, Stage.ENCODE, [failed(job) for job in seed.claim(group, 1)])
        seed.claim(group, 1)
        assert seed.do(queries.in_flight) == {"b": 2, "c": 1}

    def test_groups_come_longest_waiting_first(self, seed: Seeder) -> None:
        one, two = seed.queued(2, "b"), seed.queued(3, "c", recipe="other")
        assert list(seed.do(queries.units_queued, older_than_s=0, unit_size=1).items()) == [(one, 2), (two, 3)]
        seed.do(queries.retry, Stage.ENCODE, [retried(job) for job in seed.claim(one, 2)])
        assert list(seed.do(queries.units_queued, older_than_s=0, unit_size=1)) == [two, one]
        assert seed.do(queries.units_queued, older_than_s=60, unit_size=1) == {}

    def test_only_wanted_work_is_held(self, seed: Seeder) -> None:
        first, second = seed.claim(seed.queued(2))
        unit = {first.id: first.attempt, second.id: second.attempt}
        seed.do(queries.fail, Stage.ENCODE, [failed(first)])
        assert seed.do(queries.any_held, unit)
        seed.do(queries.take_back, "w", crashes_allowed=2)
        seed.claim(Group(Stage.ENCODE, RECIPE, "", REVISION), worker="other")
        assert not seed.do(queries.any_held, unit)

    def test_the_latest_picture_of_a_fingerprint_is_reused(self, seed: Seeder) -> None:
        first, second, third = seed.claim(seed.queued(3))
        seed.do(queries.succeed, Stage.ENCODE, [finished(job, fingerprint="same") for job in (first, second)])
        seed.do(queries.advance, Stage.ENCODE, [Advanced(third.id, 0, 0.0, "256x256", "image", "running")])
        assert seed.do(queries.find_reusable, ["same", "running", "unknown"]) == {
            "same": (f"/results/{second.id}.png", f"sha-{second.id}")
        }
        assert seed.do(queries.find_reusable, []) == {}

    def test_a_batch_is_unfinished_until_its_last_job_ends(self, seed: Seeder) -> None:
        seed.batch(jobs=1)
        assert seed.do(queries.unfinished, "b")
        seed.do(queries.dispatch, "b", 1)
        assert seed.do(queries.unfinished, "b")
        (job,) = seed.claim(Group(Stage.ENCODE, RECIPE, "", REVISION))
        assert seed.do(queries.unfinished, "b")
        seed.do(queries.fail, Stage.ENCODE, [failed(job)])
        assert not seed.do(queries.unfinished, "b")

    def test_a_batch_keeps_its_counts_or_is_named(self, seed: Seeder) -> None:
        bring_to_sample(seed, 2)
        seed.batch("c")
        seed.batch("d")
        totals, others = seed.do(queries.ended_totals)
        assert set(totals.values()) == {0} and sorted(others) == ["b", "c", "d"]
        kept = {"c": BatchCounts(7, succeeded=4, failed=2, cancelled=1), "d": BatchCounts(1, failed=1)}
        for name, counts in kept.items():
            assert seed.do(queries.close_batch, name, reopened=0, counts=counts)
        assert seed.do(queries.ended_totals) == ({"succeeded": 4, "failed": 3, "cancelled": 1}, ["b"])
        assert seed.do(queries.count_batches) == {"running": 1, "completed": 2}

    def test_pages_by_key_give_every_job_once_in_the_catalogues_order(self, seed: Seeder) -> None:
        count = 2 * PAGE_ROWS + 17
        seed.batch()
        rows = [job_row("b", line, priority=line % 3) for line in range(count, 0, -1)]
        assert seed.do(insert_jobs, rows) == []
        seed.batch("other", jobs=3)
        assert [row["line"] for row in seed.rows()] == list(range(1, count + 1))
        seed.do(queries.dispatch, "b", PAGE_ROWS + 5)
        queued = list(queries.stream_jobs(seed.engine, "b", states=[JobState.QUEUED]))
        assert len(queued) == PAGE_ROWS + 5
        assert [row["line"] for row in queued] == sorted(row["line"] for row in queued)


class TestBatches:
    def test_a_batch_comes_back_as_it_was_given(self, seed: Seeder) -> None:
        batch = seed.batch(jobs=2, priority=3, options='{"steps": 4}')
        assert (batch.status, batch.total, batch.ingested_line, batch.priority) == (BatchStatus.RUNNING, 2, 2, 3)
        assert batch.columns == ("image",) and batch.options == {"steps": 4}
        assert batch.started_at is not None and batch.started_at >= batch.created_at and batch.ended_at is None
        assert abs(batch.created_at - time.time()) < 60
        assert seed.do(queries.read_batch, "none") is None

    def test_open_batches_come_most_urgent_first_then_oldest(self, seed: Seeder) -> None:
        for name, priority in (("a", 0), ("b", 2), ("c", 0), ("d", 1)):
            seed.batch(name, priority=priority)
        seed.do(queries.move_batch, "d", BatchStatus.COMPLETED)
        assert [batch.id for batch in seed.do(queries.open_batches)] == ["b", "a", "c"]
        assert [batch.id for batch in seed.do(queries.list_batches, limit=2)] == ["d", "c"]

    def test_only_legal_moves_are_made(self, seed: Seeder) -> None:
        seed.batch()
        assert not seed.do(queries.move_batch, "b", BatchStatus.CANCELLED)
        assert seed.do(queries.move_batch, "b", BatchStatus.PAUSED, reason="by hand")
        assert seed.do(queries.read_batch, "b").reason == "by hand"
        assert not seed.do(queries.move_batch, "b", BatchStatus.COMPLETED)
        assert seed.do(queries.move_batch, "b", BatchStatus.RUNNING)
        assert seed.do(queries.move_batch, "b", BatchStatus.COMPLETED)
        assert seed.do(queries.read_batch, "b").ended_at is not None
        assert seed.do(queries.move_batch, "b", BatchStatus.RUNNING)
        assert seed.do(queries.read_batch, "b").ended_at is None
        assert not seed.do(queries.move_batch, "none", BatchStatus.RUNNING)

    def test_the_newest_open_batch_of_a_request_is_resumed(self, seed: Seeder) -> None:
        for name, request in (("a", "one"), ("b", "one"), ("c", "two")):
            seed.batch(name, request=request)
        assert seed.do(queries.find_open_request, "one").id == "b"
        seed.do(queries.move_batch, "b", BatchStatus.COMPLETED)
        assert seed.do(queries.find_open_request, "one").id == "a"
        assert seed.do(queries.find_open_request, "three") is None

    def test_a_chunk_is_noted_only_where_the_last_one_ended(self, seed: Seeder) -> None:
        seed.batch(jobs=3)
        assert not seed.do(queries.note_ingested, "b", after=3, line=5, rows=2)  # it runs: ingestion is over
        assert not seed.do(queries.start_batch, "b")

    def test_recipes_are_stored_once(self, seed: Seeder) -> None:
        seed.do(queries.add_recipes, {"one": '{"steps": 1}'})
        seed.do(queries.add_recipes, {"one": '{"steps": 2}', "two": '{"steps": 3}'})
        assert seed.do(queries.read_recipe, "one") == {"steps": 1} and seed.do(queries.read_recipe, "two") == {
            "steps": 3
        }
        assert seed.do(queries.read_recipe, "three") is None
        seed.do(queries.add_recipes, {})

    def test_two_batches_may_store_the_same_recipes_at_once(self, seed: Seeder) -> None:
        # In whatever order each meets them: rows locked in different orders would be a deadlock on PostgreSQL.
        names = [f"r{number}" for number in range(40)]

        def store(order: list[str]) -> None:
            for turn in range(10):
                seed.do(queries.add_recipes, {f"{turn}-{name}": "{}" for name in order})

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(store, (names, names[::-1])))


class TestWorkers:
    def register(self, seed: Seeder, worker_id: str = "w") -> None:
        seed.do(
            queries.register_worker,
            {
                "id": worker_id, "host": "host", "pid": 7, "stages": "encode", "device": "cpu", "revision": REVISION,
                "numerics": NUMERICS,
            },
        )  # fmt: skip

    def silence(self, seed: Seeder, seconds: float) -> None:
        with seed.engine.begin() as connection:
            connection.execute(update(workers).values(seen_at=now() - seconds))

    def test_a_heartbeat_keeps_a_worker_alive(self, seed: Seeder) -> None:
        self.register(seed)
        self.silence(seed, 20)
        assert silence_s(seed) == {"w": pytest.approx(20, abs=4)} and seed.do(queries.live_workers, lease_s=15) == []
        assert seed.do(queries.beat, "w", rss_bytes=123)
        assert silence_s(seed) == {"w": pytest.approx(0, abs=10)}
        (worker,) = seed.do(queries.live_workers, lease_s=15)
        assert (worker.id, worker.rss_bytes, worker.pid, worker.stages) == ("w", 123, 7, "encode")

    def test_a_worker_declared_dead_learns_it_at_its_next_beat(self, seed: Seeder) -> None:
        self.register(seed)
        assert seed.do(queries.end_worker, "w")
        assert not seed.do(queries.beat, "w", rss_bytes=1) and not seed.do(queries.end_worker, "w")
        assert seed.do(queries.signs_of_life) == seed.do(queries.ended_holders) == []

    def test_an_ended_worker_that_still_holds_jobs_is_named(self, seed: Seeder) -> None:
        self.register(seed)
        self.register(seed, "idle")
        seed.claim(seed.queued(1))
        assert seed.do(queries.ended_holders) == []
        for worker in ("w", "idle"):
            seed.do(queries.end_worker, worker)
        assert seed.do(queries.ended_holders) == ["w"]
        seed.do(queries.take_back, "w", crashes_allowed=2)
        assert seed.do(queries.ended_holders) == []


class TestBacklog:
    def waits(self, seed: Seeder, stages: tuple[Stage, ...] = (Stage.ENCODE,), **other: Any) -> bool:
        given = {"stages": stages, "revision": REVISION, "numerics": NUMERICS, "older_than_s": 10.0, **other}
        return seed.do(queries.has_backlog, **given)

    def test_work_that_waits_is_told_to_those_who_could_do_it(self, seed: Seeder) -> None:
        seed.queued(1)
        assert not self.waits(seed), "it waits no 10 s yet"
        with seed.engine.begin() as connection:
            connection.execute(update(jobs).values(queued_at=now() - 20))
        assert self.waits(seed) and self.waits(seed, (Stage.ENCODE, Stage.DECODE))
        assert not self.waits(seed, (Stage.SAMPLE,))
        assert not self.waits(seed, revision="other") and not self.waits(seed, numerics="other")

    def test_work_that_may_not_begin_yet_waits_for_nobody(self, seed: Seeder) -> None:
        seed.queued(1)
        with seed.engine.begin() as connection:
            connection.execute(update(jobs).values(queued_at=now() - 20, run_at=now() - 1))
        assert not self.waits(seed), "its back-off ended only now"
        with seed.engine.begin() as connection:
            connection.execute(update(jobs).values(run_at=now() - 20))
        assert self.waits(seed)
        seed.do(queries.move_batch, "b", BatchStatus.PAUSED)
        assert not self.waits(seed)


def test_the_clock_is_the_databases_and_goes_on_in_a_transaction(engine: Engine) -> None:
    with engine.begin() as connection:
        first = connection.execute(select(now())).scalar_one()
        time.sleep(0.02)
        second = connection.execute(select(now())).scalar_one()
    assert 0.01 < second - first < 60 and abs(first - time.time()) < 60


def test_other_databases_are_refused() -> None:
    with pytest.raises(ValueError, match="mysql"):
        open_database("mysql://host/database")
