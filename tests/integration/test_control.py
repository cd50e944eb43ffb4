"""What people ask of a batch: each request is idempotent, true at the next claim, and keeps what had succeeded."""

import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import redis
from sqlalchemy import update

from orchestrator import batches as batches_room
from orchestrator import closing, control, decisions, manifest, schedules, submission
from orchestrator.batches import create_batch, find_unfinished, ingest
from orchestrator.catalogs import CatalogueError, Row, open_catalogue
from orchestrator.control import ControlError
from orchestrator.dispatcher import Dispatcher
from orchestrator.manifest import write_manifest
from orchestrator.settings import Settings
from orchestrator.state import queries
from orchestrator.state.bulk import insert_jobs
from orchestrator.state.database import now
from orchestrator.state.messages import handoff_key
from orchestrator.state.queries import Advanced, Failed, Finished, Group
from orchestrator.state.tables import batches, jobs
from orchestrator.state.transitions import BATCH_MOVES, BatchStatus, Decision, JobState, Stage
from orchestrator.tallies import Tallies
from tests.integration.night import Night
from tests.integration.seeding import RECIPE, REVISION, Seeder, job_row
from tests.waiting import wait_until

ENCODE = Group(Stage.ENCODE, RECIPE, "", REVISION)
S = BatchStatus


def finish(seed: Seeder, limit: int = 100) -> list[int]:
    """Let queued jobs succeed; gives their ids."""
    unit = seed.claim(ENCODE, limit)
    ends = [Finished(job.id, job.attempt, 0.1, f"/results/{job.id}.png", "sha") for job in unit]
    return sorted(seed.do(queries.succeed, Stage.ENCODE, ends))


def break_down(seed: Seeder, limit: int = 100, code: str = "unavailable") -> list[int]:
    """Let queued jobs fail; gives their ids."""
    ends = [Failed(job.id, job.attempt, 0.1, code, "message") for job in seed.claim(ENCODE, limit)]
    return sorted(seed.do(queries.fail, Stage.ENCODE, ends))


def put(seed: Seeder, status: BatchStatus) -> None:
    with seed.engine.begin() as connection:
        connection.execute(update(batches).values(status=status))


@pytest.fixture
def tick(seed: Seeder) -> Dispatcher:
    return Dispatcher(seed.engine, Settings(window_jobs=64, unit_size=8), lambda bells: None)


@pytest.mark.parametrize(
    ("ask", "target"),
    [(control.pause, S.PAUSED), (control.resume, S.RUNNING), (control.cancel, S.CANCELLING)],
)
@pytest.mark.parametrize("status", list(S))
def test_a_request_moves_a_batch_only_where_that_is_legal_and_twice_is_as_good_as_once(
    seed: Seeder, ask: Any, target: BatchStatus, status: BatchStatus
) -> None:
    seed.batch(jobs=1)
    put(seed, status)
    sources = {source for source, to in BATCH_MOVES if to == target}
    if target == S.RUNNING:
        sources = {S.PAUSED}  # resuming is for what was paused; a batch that ended is reopened by a retry
    over = {target, S.CANCELLED} if target == S.CANCELLING else {target}
    if status in sources:
        change = ask(seed.engine, "b")
        assert (change.changed, change.batch.status) == (True, target)
    elif status not in over:
        with pytest.raises(ControlError, match="batch b"):
            ask(seed.engine, "b")
        assert seed.do(queries.read_batch, "b").status == status
        return
    again = ask(seed.engine, "b")
    assert not again.changed and again.batch.status in over


def test_rows_of_a_catalogue_that_became_unreadable_end_cancelled(
    seed: Seeder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    night = Night(seed.engine, tmp_path)
    catalogue = open_catalogue(night.write("a", "b", "c"), night.settings)
    request = submission.make_request(night.settings, {"prompt": "x"})

    class Torn:
        """A catalogue that can be read as far as its second row."""

        def __getattr__(self, name: str) -> Any:
            return getattr(catalogue, name)

        def rows(self, after_line: int = 0) -> Iterator[Row]:
            yield from islice(catalogue.rows(after_line), 2)
            raise CatalogueError("the store is gone")

    torn: Any = Torn()
    batch = create_batch(seed.engine, torn, request, "torn")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(batches_room.CHUNK_ROWS, seed.engine.dialect.name, 2)
        with pytest.raises(CatalogueError):
            ingest(seed.engine, batch, torn, request)
    assert {row["state"] for row in seed.rows("torn")} == {"pending"}
    monkeypatch.setattr("orchestrator.tallies.REST", 4.0)  # as it is outside of tests
    monkeypatch.setattr("orchestrator.tallies.PATIENCE_S", 0.0)  # every count takes long
    tallies = Tallies(seed.engine)
    failed = seed.do(queries.read_batch, "torn")
    assert failed.status == S.FAILED and tallies.counts(failed).pending > 0
    dispatcher = Dispatcher(seed.engine, night.settings, lambda bells: None)
    dispatcher.tick()
    assert {row["state"] for row in seed.rows("torn")} == {"cancelled"}
    assert seed.do(queries.read_batch, "torn").status == S.FAILED
    wait_until(lambda: not tallies.counts(failed).pending, "nor is what was counted before told for ever")
    tallies.close()


def test_what_cancelled_jobs_left_in_the_cache_is_forgotten(seed: Seeder, tmp_path: Path, valkey_url: str) -> None:
    settings = Settings(window_jobs=64, unit_size=8, cache_url=valkey_url)
    dispatcher = Dispatcher(seed.engine, settings, lambda bells: None)
    for batch_id in ("b", "other"):
        seed.queued(3, batch_id, results_uri=str(tmp_path / batch_id))
    unit = seed.claim(ENCODE)
    seed.do(queries.advance, Stage.ENCODE, [Advanced(job.id, job.attempt, 0.1, "64x64") for job in unit])
    keys = {job: handoff_key(job.batch_id, job.id, Stage.ENCODE) for job in unit}
    with redis.Redis.from_url(valkey_url) as cache:
        for key in keys.values():
            cache.set(key, b"latents")
        control.cancel(seed.engine, "b")
        dispatcher.tick()
        dispatcher.wait()
        assert seed.do(queries.read_batch, "b").status == S.CANCELLED
        assert {job.batch_id for job, key in keys.items() if cache.exists(key)} == {"other"}


def test_what_expired_and_poisoned_jobs_left_in_the_cache_goes_with_their_batch(
    seed: Seeder, tmp_path: Path, valkey_url: str
) -> None:
    settings = Settings(window_jobs=64, unit_size=8, cache_url=valkey_url)
    dispatcher = Dispatcher(seed.engine, settings, lambda bells: None)
    seed.queued(3, results_uri=str(tmp_path / "b"))
    unit = seed.claim(ENCODE)
    seed.do(queries.advance, Stage.ENCODE, [Advanced(job.id, job.attempt, 0.1, "64x64") for job in unit])
    keys = [handoff_key(job.batch_id, job.id, Stage.ENCODE) for job in unit]
    with redis.Redis.from_url(valkey_url) as cache:
        for key in (*keys, "kept"):
            cache.set(key, b"latents")
        sample = Group(Stage.SAMPLE, RECIPE, "64x64", REVISION)
        assert len(seed.claim(sample, 1)) == 1
        assert seed.do(queries.take_back, "w", crashes_allowed=0) == []
        with seed.engine.begin() as connection:
            connection.execute(update(batches).values(deadline_at=1.0))
        dispatcher.tick()
        dispatcher.tick()
        dispatcher.wait()
        assert seed.do(queries.read_batch, "b").status == S.COMPLETED
        assert sorted(str(row["code"]) for row in seed.rows()) == ["expired", "expired", "poison"]
        assert not cache.exists(*keys) and cache.delete("kept")


def test_a_cache_that_is_away_keeps_no_batch_from_ending(seed: Seeder, tmp_path: Path) -> None:
    settings = Settings(window_jobs=64, unit_size=8, cache_url="redis://127.0.0.1:1/0")
    dispatcher = Dispatcher(seed.engine, settings, lambda bells: None)
    seed.queued(1, results_uri=str(tmp_path))
    unit = seed.claim(ENCODE)
    seed.do(queries.advance, Stage.ENCODE, [Advanced(job.id, job.attempt, 0.1, "64x64") for job in unit])
    control.cancel(seed.engine, "b")
    dispatcher.tick()
    dispatcher.wait()
    assert seed.do(queries.read_batch, "b").status == S.CANCELLED


def test_a_batch_that_does_not_exist_is_told(seed: Seeder) -> None:
    for ask in (control.pause, control.resume, control.cancel, control.retry):
        with pytest.raises(ControlError, match="no batch 'none'"):
            ask(seed.engine, "none")
    with pytest.raises(ControlError, match="no batch 'none'"):
        control.set_priority(seed.engine, "none", 1)


class TestPause:
    def test_nothing_more_is_claimed_and_what_runs_ends_its_stage(self, seed: Seeder) -> None:
        seed.queued(2)
        (job,) = seed.claim(ENCODE, 1)
        assert control.pause(seed.engine, "b").batch.reason == "by request"
        assert seed.claim(ENCODE) == []
        end = Advanced(job.id, job.attempt, 0.1, "256x256")
        assert seed.do(queries.carry, Stage.ENCODE, [end]) == []
        assert seed.do(queries.advance, Stage.ENCODE, [end]) == {job.id}
        control.resume(seed.engine, "b")
        assert len(seed.claim(ENCODE)) == 1
        assert seed.do(queries.read_batch, "b").reason is None

    def test_a_dispatcher_that_read_the_batch_before_queues_nothing(self, seed: Seeder) -> None:
        seed.batch(jobs=2)
        control.pause(seed.engine, "b")
        assert seed.do(queries.dispatch, "b", 2) == {}


class TestCancel:
    def test_what_succeeded_stays_and_a_workers_write_comes_too_late(self, seed: Seeder) -> None:
        seed.batch(jobs=6)
        seed.do(queries.dispatch, "b", 4)
        done = finish(seed, 1)
        (running,) = seed.claim(ENCODE, 1)
        assert control.cancel(seed.engine, "b").jobs == 5
        states = [(row["state"], row["attempt"]) for row in seed.rows()]
        assert states == [("succeeded", 0), ("cancelled", 1)] + [("cancelled", 0)] * 4
        end = Finished(running.id, running.attempt, 0.1, "/results/late.png", "sha")
        assert seed.do(queries.succeed, Stage.ENCODE, [end]) == set()
        assert not seed.do(queries.any_held, {running.id: running.attempt})  # its sampling stops at the next step
        assert seed.history(running.id) == [(0, "cancel")]
        assert [row["id"] for row in seed.rows() if row["result"]] == done

    def test_the_dispatcher_writes_the_manifest_and_ends_the_batch(
        self, seed: Seeder, tick: Dispatcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(control, "CHUNK_ROWS", 3)
        monkeypatch.setattr(control, "BUDGET_S", 0.0)
        seed.batch(jobs=10, results_uri=str(tmp_path / "b"))
        assert control.cancel(seed.engine, "b").jobs == 3  # the rest is the dispatcher's
        tick.tick()
        tick.wait()
        batch = seed.do(queries.read_batch, "b")
        assert (batch.status, batch.ended_at is not None, batch.reason) == (S.CANCELLED, True, "by request")
        assert (tmp_path / "b" / "manifest.jsonl").read_text().count('"status": "cancelled"') == 10
        assert batch.manifest_uri == f"{tmp_path}/b/manifest.jsonl"

    def test_the_same_call_makes_a_new_batch(self, seed: Seeder) -> None:
        seed.batch()
        control.cancel(seed.engine, "b")
        assert seed.do(queries.find_open_request, "request") is None

    def test_no_transaction_cancels_more_than_a_chunk(self, seed: Seeder) -> None:
        seed.batch()
        rows = [job_row("b", line) for line in range(1, control.CHUNK_ROWS + 12)]
        assert seed.do(insert_jobs, rows) == []
        assert seed.do(queries.cancel_jobs, "b", control.CHUNK_ROWS) == control.CHUNK_ROWS
        assert control.cancel(seed.engine, "b").jobs == 11


class TestRetry:
    def test_failed_jobs_are_pending_again_and_the_batch_runs(
        self, seed: Seeder, tick: Dispatcher, tmp_path: Path
    ) -> None:
        seed.batch(jobs=3, results_uri=str(tmp_path / "b"))
        tick.tick()
        finish(seed, 1)
        failed = break_down(seed)
        tick.tick()
        tick.wait()
        assert seed.do(queries.read_batch, "b").status == S.COMPLETED
        change = control.retry(seed.engine, "b")
        assert (change.jobs, change.batch.status, change.batch.ended_at) == (2, S.RUNNING, None)
        for row in (seed.row(job_id) for job_id in failed):
            assert (row["state"], row["attempt"], row["failures"], row["code"]) == ("pending", 1, 0, None)
        assert not control.retry(seed.engine, "b").changed
        tick.tick()
        assert finish(seed) == failed
        tick.tick()
        tick.wait()
        assert seed.do(queries.read_batch, "b").status == S.COMPLETED
        assert (tmp_path / "b" / "manifest.jsonl").read_text().count('"status": "succeeded"') == 3

    def test_only_what_matches_is_tried_again(self, seed: Seeder) -> None:
        seed.queued(6)
        break_down(seed, 2, "image_missing")
        break_down(seed, 2, "unavailable")
        control.cancel(seed.engine, "b")
        put(seed, S.CANCELLED)

        def retried(**asked: Any) -> list[int]:
            control.retry(seed.engine, "b", **asked)
            return [row["line"] for row in seed.rows() if row["state"] == "pending"]

        assert retried(codes=["none"]) == []
        assert seed.do(queries.read_batch, "b").status == S.CANCELLED  # not reopened for nothing
        assert retried(codes=["image_missing"], lines=[2]) == [2]
        assert retried(codes=["image_missing"]) == [1, 2]
        assert retried() == [1, 2, 3, 4]
        assert retried(states=[JobState.CANCELLED]) == [1, 2, 3, 4, 5, 6]

    def test_bad_rows_are_told_and_left(self, seed: Seeder) -> None:
        seed.batch()
        assert seed.do(insert_jobs, [job_row("b", 1, recipe=None, state="failed", code="bad_seed", ended_at=1.0)]) == []
        change = control.retry(seed.engine, "b")
        assert (change.jobs, change.bad_rows, change.changed) == (0, 1, False)

    def test_a_batch_that_is_being_cancelled_cannot_be_retried(self, seed: Seeder) -> None:
        seed.queued(1)
        break_down(seed)
        control.cancel(seed.engine, "b")
        with pytest.raises(ControlError, match="being cancelled"):
            control.retry(seed.engine, "b")

    def test_poison_stays_suspect(self, seed: Seeder) -> None:
        seed.queued(2)
        seed.claim(ENCODE)
        seed.do(queries.take_back, "w", crashes_allowed=0)
        control.retry(seed.engine, "b")
        seed.do(queries.dispatch, "b", 2)
        assert len(seed.claim(ENCODE)) == 1
        assert [row["crashes"] for row in seed.rows()] == [1, 1]

    def test_a_passed_deadline_holds_no_more(self, seed: Seeder) -> None:
        seed.queued(1, deadline_at=1.0)
        seed.do(queries.expire_jobs, "b", 10)
        assert control.retry(seed.engine, "b").batch.deadline_at is None

    def test_a_retry_while_the_manifest_is_written_keeps_the_batch_open(
        self, seed: Seeder, tick: Dispatcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seed.queued(1, results_uri=str(tmp_path / "b"))
        break_down(seed)

        def write_and_retry(*given: Any) -> str:
            written = write_manifest(*given)
            control.retry(seed.engine, "b")
            seed.do(queries.dispatch, "b", 1)
            finish(seed)  # ended again already, and yet the manifest above tells another story
            return written

        monkeypatch.setattr(closing, "write_manifest", write_and_retry)
        tick.tick()
        tick.wait()
        assert seed.do(queries.read_batch, "b").status == S.RUNNING
        monkeypatch.undo()
        tick.tick()
        tick.wait()
        assert seed.do(queries.read_batch, "b").status == S.COMPLETED
        assert '"status": "succeeded"' in (tmp_path / "b" / "manifest.jsonl").read_text()

    def test_a_manifest_written_late_over_a_newer_one_is_written_again(
        self, seed: Seeder, tick: Dispatcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seed.queued(1, results_uri=str(tmp_path / "b"))
        break_down(seed)
        other = Dispatcher(seed.engine, Settings(), lambda bells: None)

        def overtaken(engine: Any, batch: Any, settings: Settings) -> str:
            monkeypatch.undo()
            old = write_manifest(engine, batch, settings)
            text = (tmp_path / "b" / "manifest.jsonl").read_text()
            other.tick()  # another process closes the batch, it is retried and closed again …
            other.wait()
            control.retry(seed.engine, "b")
            other.tick()
            finish(seed)
            other.tick()
            other.wait()
            assert seed.do(queries.read_batch, "b").status == S.COMPLETED
            (tmp_path / "b" / "manifest.jsonl").write_text(text)  # … before the old manifest gets there
            return old

        monkeypatch.setattr(closing, "write_manifest", overtaken)
        tick.tick()
        tick.wait()
        assert '"status": "succeeded"' in (tmp_path / "b" / "manifest.jsonl").read_text()


class TestDeletion:
    """What lies in the store of a batch that is deleted is what lay there: a manifest of all its jobs."""

    @pytest.fixture(autouse=True)
    def small_chunks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(control, "CHUNK_ROWS", 2)
        monkeypatch.setattr(closing, "TELLING_INTERVAL_S", 0.0)

    def close(self, seed: Seeder, tick: Dispatcher, folder: Path) -> None:
        seed.queued(5, results_uri=str(folder))
        finish(seed)
        tick.tick()
        tick.wait()
        assert seed.do(queries.read_batch, "b").status == S.COMPLETED
        assert self.lines(folder) == 5

    def lines(self, folder: Path) -> int:
        rows = len((folder / "manifest.csv").read_text().splitlines()) - 1
        assert len((folder / "manifest.jsonl").read_text().splitlines()) == rows
        return rows

    def test_a_decision_that_is_not_told_yet_cuts_no_manifest_short(
        self, seed: Seeder, tick: Dispatcher, tmp_path: Path
    ) -> None:
        self.close(seed, tick, tmp_path / "b")
        assert decisions.decide(seed.engine, 4, Decision.APPROVED)
        assert seed.do(queries.begin_deletion, "b")
        assert seed.do(queries.delete_jobs, "b", 2) == 2  # and the process is killed: asked again later
        assert decisions.decide(seed.engine, 5, Decision.APPROVED)
        tick.tick()
        tick.wait()
        assert self.lines(tmp_path / "b") == 5
        assert control.delete(seed.engine, "b") == 3
        assert seed.do(queries.read_batch, "b") is None and self.lines(tmp_path / "b") == 5

    @pytest.mark.parametrize("gone", [2, 5])
    def test_a_slower_closer_replaces_no_manifest_by_what_is_left(
        self, seed: Seeder, tick: Dispatcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gone: int
    ) -> None:
        """Another process has closed the batch, a script deletes it, and this one still reads pages."""
        seed.queued(5, results_uri=str(tmp_path / "b"))
        finish(seed)
        batch = seed.do(queries.read_batch, "b")
        write_files, slow = manifest.write_files, closing.Closer(seed.engine, Settings())

        def write_late(*given: Any) -> None:
            monkeypatch.undo()
            tick.tick()
            tick.wait()
            assert self.lines(tmp_path / "b") == 5
            if gone == 5:
                assert control.delete(seed.engine, "b") == 5
            else:
                assert seed.do(queries.begin_deletion, "b") and seed.do(queries.delete_jobs, "b", gone) == gone
            write_files(*given)

        monkeypatch.setattr(manifest, "write_files", write_late)
        slow.begin(batch)
        slow.wait()
        assert self.lines(tmp_path / "b") == 5

    def test_nothing_reopens_a_batch_whose_rows_go(self, seed: Seeder, tick: Dispatcher, tmp_path: Path) -> None:
        self.close(seed, tick, tmp_path / "b")
        assert seed.do(queries.begin_deletion, "b") and not seed.do(queries.begin_deletion, "b")
        assert not seed.do(queries.reopen_batch, "b"), "neither a retry"
        for ask in (control.pause, control.resume, control.cancel):
            with pytest.raises(ControlError, match="is being deleted"):
                ask(seed.engine, "b")
        with pytest.raises(ControlError, match="deleted"):
            decisions.regenerate(seed.engine, 1)
        assert control.delete(seed.engine, "b") == 5

    def test_an_open_batch_is_left_as_it_is(self, seed: Seeder) -> None:
        seed.queued(3)
        with pytest.raises(ControlError, match="is running; cancel it before"):
            control.delete(seed.engine, "b")
        assert len(seed.rows()) == 3 and seed.do(queries.read_batch, "b").status == S.RUNNING


class TestPriority:
    def test_it_reaches_what_is_queued_already(self, seed: Seeder) -> None:
        seed.queued(2, "calm")
        seed.queued(2, "other")
        assert [job.batch_id for job in seed.claim(ENCODE, 1)] == ["calm"]
        assert control.set_priority(seed.engine, "other", 3).changed
        assert not control.set_priority(seed.engine, "other", 3).changed
        assert [seed.claim(ENCODE, 1)[0].batch_id for _ in range(3)] == ["other", "other", "calm"]

    def test_it_reaches_what_is_running_and_comes_back(self, seed: Seeder) -> None:
        seed.queued(1, "calm")
        (job,) = seed.claim(ENCODE)
        seed.queued(1, "urgent", priority=1)
        control.set_priority(seed.engine, "calm", 2)
        seed.do(queries.hand_back, "w")
        assert [each.id for each in seed.claim(ENCODE, 1)] == [job.id]

    def test_a_batch_that_has_ended_has_none_to_change(self, seed: Seeder) -> None:
        seed.batch()
        seed.do(queries.close_batch, "b", reopened=0)
        with pytest.raises(ControlError, match="has completed"):
            control.set_priority(seed.engine, "b", 3)


class TestDeadline:
    @pytest.mark.parametrize("paused", [False, True])
    def test_what_is_not_claimed_by_then_expires_and_the_batch_ends(
        self, seed: Seeder, tick: Dispatcher, tmp_path: Path, paused: bool
    ) -> None:
        seed.batch(jobs=5, results_uri=str(tmp_path / "b"), deadline_at=time.time() + 3600)
        seed.do(queries.dispatch, "b", 3)
        (job,) = seed.claim(ENCODE, 1)
        if paused:
            control.pause(seed.engine, "b")
        with seed.engine.begin() as connection:
            connection.execute(update(batches).values(deadline_at=now()))
        tick.tick()
        assert [row["code"] for row in seed.rows()] == [None] + ["expired"] * 4
        # What was claimed ends its stage; what would come after it expires.
        assert seed.do(queries.advance, Stage.ENCODE, [Advanced(job.id, 0, 0.1, "256x256")]) == {job.id}
        for _ in range(3):
            tick.tick()
            tick.wait()
        assert {(row["state"], row["code"]) for row in seed.rows()} == {("failed", "expired")}
        assert seed.do(queries.read_batch, "b").status == S.COMPLETED

    @pytest.mark.parametrize("asked", ["cancelled", "resumed"])
    def test_what_was_asked_meanwhile_ends_no_dispatcher(self, seed: Seeder, asked: str) -> None:
        seed.batch(jobs=3, deadline_at=1.0)
        control.pause(seed.engine, "b")
        seen = seed.do(queries.read_batch, "b")
        (control.cancel if asked == "cancelled" else control.resume)(seed.engine, "b")
        control.enforce(seed.engine, seen, seed.do(queries.read_clock), 1.0)
        batch, states = seed.do(queries.read_batch, "b"), {row["state"] for row in seed.rows()}
        expected = (S.CANCELLING, {"cancelled"}) if asked == "cancelled" else (S.RUNNING, {"failed"})
        assert (batch.status, states) == expected

    def test_before_it_nothing_expires(self, seed: Seeder, tick: Dispatcher) -> None:
        seed.batch(jobs=5, deadline_at=time.time() + 3600)
        tick.tick()
        assert seed.do(queries.expire_jobs, "b", 10) == 0
        assert {row["state"] for row in seed.rows()} == {"queued"}


class TestBreaker:
    def broken(self, seed: Seeder, *, failed: int, succeeded: int, rate: float = 0.2) -> None:
        seed.queued(100, options=f'{{"max_error_rate": {rate}}}')
        break_down(seed, failed)
        if succeeded:
            finish(seed, succeeded)

    @pytest.mark.parametrize(
        ("failed", "succeeded", "rate", "breaks"),
        [(19, 0, 0.2, False), (20, 0, 0.2, True), (10, 40, 0.2, False), (11, 39, 0.2, True), (1, 30, 0, True)],
    )
    def test_it_pauses_a_batch_of_which_too_much_fails(
        self, seed: Seeder, tick: Dispatcher, failed: int, succeeded: int, rate: float, breaks: bool
    ) -> None:
        self.broken(seed, failed=failed, succeeded=succeeded, rate=rate)
        tick.tick()
        batch = seed.do(queries.read_batch, "b")
        assert batch.status == (S.PAUSED if breaks else S.RUNNING)
        if breaks:
            told = f"{failed} of {failed + succeeded} jobs failed, more than max_error_rate {rate:g} allows"
            assert batch.reason == told

    def test_after_it_was_resumed_only_what_ends_from_then_on_counts(self, seed: Seeder) -> None:
        self.broken(seed, failed=30, succeeded=0)
        batch = seed.do(queries.read_batch, "b")
        assert control.break_off(seed.engine, batch)
        control.resume(seed.engine, "b")
        assert control.break_off(seed.engine, seed.do(queries.read_batch, "b")) is None
        break_down(seed, 20)
        assert control.break_off(seed.engine, seed.do(queries.read_batch, "b"))

    def test_bad_rows_and_expired_jobs_do_not_count(self, seed: Seeder) -> None:
        batch = seed.batch(jobs=30, options='{"max_error_rate": 0.1}', deadline_at=1.0)
        rows = [job_row("b", line, recipe=None, state="failed", code="bad_seed") for line in range(31, 61)]
        assert seed.do(insert_jobs, rows) == []
        seed.do(queries.expire_jobs, "b", 100)
        assert seed.do(queries.count_by_state, "b").failed == 60
        assert control.break_off(seed.engine, batch) is None

    def test_the_cost_is_bounded_by_what_failed(self, seed: Seeder) -> None:
        seed.queued(100)
        break_down(seed, 2)
        finish(seed)
        assert seed.do(queries.count_failures, "b", since=None, enough=9.0) == (2, 20)
        assert seed.do(queries.count_failures, "b", since=None, enough=19.0) == (2, 39)
        assert seed.do(queries.count_failures, "b", since=None, enough=None) == (2, 98)


def test_cancelling_does_not_wait_for_a_locked_row(seed: Seeder) -> None:
    if seed.engine.dialect.name == "sqlite":
        return  # one writer at a time
    seed.queued(3)
    (job,) = seed.claim(ENCODE, 1)
    with seed.engine.begin() as worker:
        worker.execute(update(jobs).where(jobs.c.id == job.id).values(message="x"))
        assert control.cancel(seed.engine, "b").jobs == 2
    assert control.cancel(seed.engine, "b").jobs == 1


class TestAbandoned:
    """Whoever stores a batch's rows died in the middle, or so it seems."""

    @pytest.fixture
    def night(self, seed: Seeder, tmp_path: Path) -> Night:
        return Night(seed.engine, tmp_path)

    def leave(self, seed: Seeder, night: Night, batch_id: str, hours: float) -> tuple[Any, Any]:
        """Store one of two rows, and then no more for so long; gives catalogue and request."""
        catalogue = open_catalogue(night.write("a", "b"), night.settings)
        request = submission.make_request(night.settings, {"prompt": "x"})
        batch = create_batch(seed.engine, catalogue, request, batch_id)
        age(seed, batch_id, hours=1000)  # storing a row is what counts

        def die(rows: int) -> None:
            raise KeyboardInterrupt

        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setitem(batches_room.CHUNK_ROWS, seed.engine.dialect.name, 1)
            ingest(seed.engine, batch, catalogue, request, die)
        age(seed, batch_id, hours)
        return catalogue, request

    def test_after_a_day_it_fails_says_so_and_its_rows_end(self, seed: Seeder, night: Night) -> None:
        for batch_id, hours in (("old", 25), ("young", 23)):
            self.leave(seed, night, batch_id, hours)
        with seed.engine.begin() as connection:
            queries.keep_idempotency(connection, caller="key:k", key="night", sha256="s", batch_id="old")
        Dispatcher(seed.engine, night.settings, lambda bells: None).tick()
        old, young = seed.do(queries.read_batch, "old"), seed.do(queries.read_batch, "young")
        assert (old.status, old.ended_at is None) == (S.FAILED, False)
        assert "submit it again" in old.reason
        assert [row["state"] for row in seed.rows("old")] == ["cancelled"]
        assert (young.status, [row["state"] for row in seed.rows("young")]) == (S.INGESTING, ["pending"])
        with seed.engine.begin() as connection:
            given = {"caller": "key:k", "key": "night", "sha256": "s"}
            assert queries.keep_idempotency(connection, **given, batch_id="new").batch_id == "new", "with the same key"

    def test_who_comes_back_goes_on_with_it(self, seed: Seeder, night: Night) -> None:
        catalogue, request = self.leave(seed, night, "b", 25)
        found = find_unfinished(seed.engine, catalogue, request)
        assert found is not None and control.fail_abandoned(seed.engine) == []
        assert ingest(seed.engine, found, catalogue, request).total == 2
        age(seed, "b", hours=25)
        assert control.fail_abandoned(seed.engine) == [], "it is stored"

    def test_who_comes_back_with_its_key_goes_on_with_it(self, seed: Seeder, night: Night) -> None:
        self.leave(seed, night, "b", 25)
        given = {"caller": "key:k", "key": "night", "sha256": "s"}
        with seed.engine.begin() as connection:
            queries.keep_idempotency(connection, **given, batch_id="b")
        assert submission._keep(seed.engine, ("key:k", "night", "s"), "new") == "b"
        assert control.fail_abandoned(seed.engine) == []

    def test_a_run_goes_on_with_it_unless_its_schedule_was_removed(self, seed: Seeder, night: Night) -> None:
        night.write("a")
        night.plan()
        self.leave(seed, night, "b", 25)
        with seed.engine.begin() as connection:
            queries.add_run(connection, "nightly", 1.0, "b")
        assert control.fail_abandoned(seed.engine) == []
        schedules.remove(seed.engine, "nightly")
        assert control.fail_abandoned(seed.engine) == ["b"]


def age(seed: Seeder, batch_id: str, hours: float) -> None:
    """As if the last row of a batch had been stored so long ago."""
    old = update(batches).where(batches.c.id == batch_id)
    seed.do(lambda connection: connection.execute(old.values(ingested_at=now() - hours * 3600)))
