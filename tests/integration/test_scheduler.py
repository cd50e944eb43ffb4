"""Schedules fire once each time, whoever is killed; what comes of it is told."""

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, func, select, update
from sqlalchemy.exc import TimeoutError as PoolTimeout

from orchestrator import control, dispatcher, scheduled_batch, schedules, webhooks
from orchestrator import scheduler as scheduler_module
from orchestrator.catalogs import CatalogueError
from orchestrator.scheduler import Scheduler
from orchestrator.settings import Settings
from orchestrator.state import queries
from orchestrator.state.database import open_database, reading
from orchestrator.state.queries import Report
from orchestrator.state.tables import batches, metadata, schedule_runs
from orchestrator.state.tables import schedules as schedule_table
from orchestrator.state.transitions import BatchStatus, Event, Missed, Overlap, RunState
from orchestrator.storage import Unavailable
from tests.integration.night import Night
from tests.waiting import wait_until

S = RunState
DAY_S = 86_400.0


@pytest.fixture
def night(engine: Engine, tmp_path: Path) -> Night:
    night = Night(engine, tmp_path)
    night.write("a", "b", "c")
    return night


def count_batches(night: Night) -> int:
    with reading(night.engine).connect() as connection:
        return connection.execute(select(func.count()).select_from(batches)).scalar_one()


class TestFiring:
    def test_a_schedule_whose_time_has_come_becomes_a_batch(self, night: Night) -> None:
        night.plan(priority=7)
        night.tick()
        assert night.runs() == []  # tonight
        night.come_due()
        night.tick()
        run = night.run()
        assert (run.state, run.by_request, run.missed, run.batch_status) == (S.STARTED, False, 0, BatchStatus.RUNNING)
        assert run.batch_id is not None and night.lines(run.batch_id) == ["a", "b", "c"]
        with reading(night.engine).connect() as connection:
            batch, clock = queries.read_batch(connection, run.batch_id), queries.read_clock(connection)
        assert batch is not None
        assert (batch.priority, batch.options["prompt"]) == (7, "flat lay")
        assert batch.results_uri == f"{night.folder}/results/{batch.id}"
        next_at = schedules.find(night.engine, "nightly").next_fire_at
        assert next_at is not None and clock < next_at <= clock + DAY_S + 3600

    def test_many_schedulers_at_once_make_one_batch(self, night: Night) -> None:
        night.plan()
        for _ in range(3):
            night.come_due()
            together = threading.Barrier(6)

            def run(mine: Scheduler) -> None:
                together.wait()  # noqa: B023
                night.tick(mine)

            threads = [threading.Thread(target=run, args=(night.scheduler(),)) for _ in range(6)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            for run_ in night.runs():
                if run_.batch_status == BatchStatus.RUNNING:
                    night.work(str(run_.batch_id))
            night.tick()
        runs = night.runs()
        assert [run_.state for run_ in runs] == [S.ENDED] * 3
        assert count_batches(night) == 3

    def test_a_paused_schedule_does_not_fire_and_misses_nothing(self, night: Night) -> None:
        night.plan()
        schedules.pause(night.engine, "nightly")
        night.tick()
        assert night.runs() == [] and schedules.find(night.engine, "nightly").next_fire_at is None
        resumed = schedules.resume(night.engine, "nightly")
        assert resumed.next_fire_at is not None
        night.tick()
        assert night.runs() == []

    def test_by_request_it_runs_at_once_also_when_paused(self, night: Night) -> None:
        night.plan()
        before = schedules.pause(night.engine, "nightly")
        asked = schedules.fire(night.engine, "nightly")
        assert (asked.state, asked.batch_id) == (S.DUE, None)
        night.tick()
        assert (night.run().state, night.run().by_request) == (S.STARTED, True)
        assert schedules.find(night.engine, "nightly") == before

    def test_a_changed_cron_expression_counts_from_now_on(self, night: Night) -> None:
        night.plan()
        night.come_due()
        changed = schedules.change(night.engine, "nightly", {"cron": "0 3 * * *", "priority": 3}, night.settings)
        night.tick()
        assert (night.runs(), changed.priority, changed.overlap) == ([], 3, Overlap.SKIP)
        with pytest.raises(schedules.ScheduleError, match="name cannot be changed"):
            schedules.change(night.engine, "nightly", {"name": "x"}, night.settings)

    def test_a_removed_one_is_gone_with_its_runs_and_its_batch_stays(self, night: Night) -> None:
        night.plan()
        schedules.fire(night.engine, "nightly")
        night.tick()
        schedules.remove(night.engine, "nightly")
        assert (night.runs(), count_batches(night)) == ([], 1)
        with pytest.raises(schedules.NoSchedule):
            schedules.fire(night.engine, "nightly")

    def test_all_of_a_catalogue_is_asked_for_where_unchanged_pictures_are_not_wanted(self, night: Night) -> None:
        night.plan(only_changed=False)
        schedules.fire(night.engine, "nightly")
        night.tick()
        with reading(night.engine).connect() as connection:
            batch = queries.read_batch(connection, str(night.run().batch_id))
        assert batch is not None and batch.options["only_changed"] is False


class TestMissed:
    @pytest.mark.parametrize(("missed", "state"), [(Missed.ONCE, S.STARTED), (Missed.SKIP, S.SKIPPED)])
    def test_after_days_without_a_scheduler_one_run_stands_for_all(
        self, night: Night, missed: Missed, state: RunState, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        night.plan(missed=missed)
        night.come_due(ago_s=3 * DAY_S + 7200)
        # The last night's time lies hours back, whenever this test runs.
        monkeypatch.setattr(scheduler_module, "LATE_S", -1.0)
        night.tick()
        night.tick()
        run = night.run()
        assert (run.state, run.missed) == (state, 3) or run.missed == 4
        if state == S.SKIPPED:
            assert str(run.reason).startswith("missed") and count_batches(night) == 0

    def test_a_moment_late_is_not_missed(self, night: Night) -> None:
        night.plan(missed=Missed.SKIP, cron="* * * * *")
        night.come_due(ago_s=30)
        night.tick()
        assert night.run().state == S.STARTED


class TestOverlap:
    def two(self, night: Night, overlap: Overlap) -> None:
        night.plan(overlap=overlap)
        for _ in range(2):
            schedules.fire(night.engine, "nightly")
            night.tick()

    def test_skip_says_what_was_in_the_way(self, night: Night) -> None:
        self.two(night, Overlap.SKIP)
        second, first = night.runs()
        assert (first.state, second.state, second.batch_id) == (S.STARTED, S.SKIPPED, None)
        assert str(second.reason).startswith("overlap") and str(first.batch_id) in str(second.reason)
        night.work(str(first.batch_id))
        schedules.fire(night.engine, "nightly")
        night.tick()
        assert night.runs()[0].state == S.STARTED

    def test_queue_begins_when_the_run_before_has_ended_in_their_order(self, night: Night) -> None:
        self.two(night, Overlap.QUEUE)
        schedules.fire(night.engine, "nightly")
        night.tick()
        third, second, first = night.runs()
        assert [run.state for run in (first, second, third)] == [S.STARTED, S.WAITING, S.WAITING]
        night.work(str(first.batch_id))
        night.tick()
        third, second, first = night.runs()
        assert [run.state for run in (first, second, third)] == [S.ENDED, S.STARTED, S.WAITING]
        night.work(str(second.batch_id))
        night.tick()
        assert night.runs()[0].state == S.STARTED

    def test_queue_has_an_end(self, night: Night, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(scheduler_module, "MOST_WAITING", 1)
        self.two(night, Overlap.QUEUE)
        schedules.fire(night.engine, "nightly")
        night.tick()
        assert [run.state for run in night.runs()] == [S.SKIPPED, S.WAITING, S.STARTED]
        assert "1 runs wait already" in str(night.runs()[0].reason)

    def test_allow_runs_both(self, night: Night) -> None:
        self.two(night, Overlap.ALLOW)
        assert [run.state for run in night.runs()] == [S.STARTED, S.STARTED]


class TestFailures:
    def test_a_catalogue_that_cannot_be_read_fails_its_run_alone(self, night: Night) -> None:
        night.plan()
        (night.folder / "nightly.csv").unlink()
        night.come_due()
        night.tick()
        run = night.run()
        assert (run.state, run.batch_id) == (S.FAILED, None)
        assert "nightly.csv does not exist" in str(run.reason)
        night.write("a")
        night.come_due()
        night.tick()
        assert night.runs()[0].state == S.STARTED

    def test_a_deadline_that_an_older_version_stored(self, night: Night) -> None:
        night.plan(asked={"prompt": "flat lay", "deadline": "8h"})
        asked = json.dumps({"prompt": "flat lay", "deadline": "9" * 400 + "d"})
        with night.engine.begin() as connection:
            connection.execute(update(schedule_table).values(asked=asked))
        night.come_due()
        night.tick()
        assert str(night.run().reason).startswith("deadline: expected 90m, 2h, 1d") and count_batches(night) == 0

    def test_a_catalogue_that_says_nowhere_what_to_do(self, night: Night) -> None:
        night.plan(asked={})
        schedules.fire(night.engine, "nightly")
        night.tick()
        assert "says nowhere what to do" in str(night.run().reason)

    def test_one_that_breaks_off_fails_run_and_batch(self, night: Night, monkeypatch: pytest.MonkeyPatch) -> None:
        def break_off(*_: Any) -> None:
            raise CatalogueError("line 3 is torn")

        night.plan()
        schedules.fire(night.engine, "nightly")
        monkeypatch.setattr("orchestrator.batches._store_rows", break_off)
        night.tick()
        assert (night.run().state, night.run().batch_status) == (S.FAILED, BatchStatus.FAILED)
        assert night.run().reason == "line 3 is torn"

    def test_a_store_that_is_away_is_asked_again_and_then_given_up(
        self, night: Night, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: Any) -> None:
            raise CatalogueError("no answer") from Unavailable("no answer")

        night.plan()
        schedules.fire(night.engine, "nightly")
        monkeypatch.setattr(scheduled_batch, "open_catalogue", fail)
        night.tick()
        run = night.run()
        assert (run.state, run.tries, run.reason) == (S.STARTING, 1, "no answer")
        night.tick()
        assert night.run().tries == 1  # not before its time
        monkeypatch.setattr(scheduler_module, "MOST_TRIES", 3)
        for _ in range(2):
            night.let_lease_end()
            night.tick()
        assert (night.run().state, night.run().tries) == (S.FAILED, 3)

    def test_a_fault_of_ours_fails_the_run_and_nothing_else(
        self, night: Night, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: Any) -> None:
            raise RuntimeError("bug")

        night.plan()
        schedules.fire(night.engine, "nightly")
        monkeypatch.setattr(scheduler_module, "make_batch", fail)
        night.tick()
        assert night.run().reason == "unexpected RuntimeError: bug"

    def test_a_run_that_finds_no_free_connection_is_left_for_the_next_try(self, night: Night) -> None:
        def wait_in_vain(*_: Any) -> None:
            raise PoolTimeout("QueuePool limit of size 4 overflow 10 reached")

        night.write("a")
        night.plan()
        schedules.fire(night.engine, "nightly")
        with pytest.MonkeyPatch.context() as stalled:
            stalled.setattr(scheduler_module, "make_batch", wait_in_vain)
            night.tick()
        assert (night.run().state, night.run().reason) == (S.STARTING, None)
        night.let_lease_end()
        night.tick()
        assert night.run().state == S.STARTED

    def test_what_kills_every_scheduler_is_given_up(self, night: Night) -> None:
        night.plan()
        run = schedules.fire(night.engine, "nightly")
        with night.engine.begin() as connection:
            connection.execute(
                update(schedule_runs).where(schedule_runs.c.id == run.id).values(tries=7, state=S.STARTING)
            )
        night.let_lease_end()
        night.tick()
        assert str(night.run().reason).startswith("given up after 7 tries")


class TestReport:
    def test_it_counts_new_changed_reused_and_failed(self, night: Night) -> None:
        night.plan()
        night.write("a", "b", "c", "d")
        schedules.fire(night.engine, "nightly")
        night.tick()
        night.work(str(night.run().batch_id), failing=["d"])
        night.tick()
        first = night.run()
        assert (first.state, first.report) == (S.ENDED, Report(4, 3, 0, 0, 1, 0))
        assert first.ended_at == first.batch_ended_at
        night.write("a", "b", "d", "e", "f")
        schedules.fire(night.engine, "nightly")
        night.tick()
        night.work(str(night.runs()[0].batch_id), failing=["f"], reused=["a"])
        night.tick()
        # b was made anew, d had failed: both were in the run before.
        assert night.runs()[0].report == Report(total=5, new=1, changed=2, reused=1, failed=1, cancelled=0)

    def test_a_batch_that_is_retried_is_reported_anew(self, night: Night) -> None:
        night.plan()
        schedules.fire(night.engine, "nightly")
        night.tick()
        batch_id = str(night.run().batch_id)
        night.work(batch_id, failing=["b", "c"])
        night.tick()
        assert night.run().report == Report(3, 1, 0, 0, 2, 0)
        control.retry(night.engine, batch_id)
        assert (night.run().state, night.run().report) == (S.STARTED, None)
        night.work(batch_id)
        night.tick()
        assert night.run().report == Report(3, 3, 0, 0, 0, 0)

    def test_a_batch_that_was_deleted_ends_its_run(self, night: Night) -> None:
        night.plan()
        schedules.fire(night.engine, "nightly")
        night.tick()
        with night.engine.begin() as connection:
            connection.execute(batches.delete())
        night.tick()
        assert (night.run().state, night.run().reason) == (S.ENDED, "its batch was deleted")


class TestLists:
    def test_schedules_come_with_their_last_run_and_runs_in_pages(self, night: Night) -> None:
        night.plan("b")
        night.plan("a", overlap=Overlap.ALLOW)
        asked = [schedules.fire(night.engine, "a") for _ in range(3)]
        with reading(night.engine).connect() as connection:
            listed = queries.list_schedules(connection)
            page = queries.list_runs(connection, limit=2)
            rest = queries.list_runs(connection, limit=2, before=(page[-1].fire_at, page[-1].id))
        assert [(schedule.name, last and last.id) for schedule, last in listed] == [("a", asked[-1].id), ("b", None)]
        assert [run.id for run in (*page, *rest)] == [run.id for run in reversed(asked)]


POINTS = ("claimed", "created", "half", "stored")


def test_a_scheduler_that_is_killed_anywhere_is_gone_on_for(empty_url: str, tmp_path: Path) -> None:
    night = Night(open_database(empty_url), tmp_path)
    try:
        kill_and_go_on(night, empty_url)
    finally:
        night.engine.dispose()


def kill_and_go_on(night: Night, url: str) -> None:
    metadata.create_all(night.engine)
    night.write("a", "b", "c", "d", "e")
    for point in POINTS:
        night.plan(point)
        night.come_due(point)
    command = [sys.executable, str(Path(__file__).with_name("scheduler_process.py")), url]
    with subprocess.Popen([*command, night.settings.model_dump_json()], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        reached = {process.stdout.readline().strip() for _ in POINTS}
        process.kill()
    assert reached == set(POINTS)
    assert {run.state for run in night.runs(None)} == {S.STARTING}
    survivor = night.scheduler()
    night.tick(survivor)
    assert {run.state for run in night.runs(None)} == {S.STARTING}  # their leases hold still
    night.let_lease_end()

    def all_started() -> bool:
        night.tick(survivor)
        return {run.state for run in night.runs(None)} == {S.STARTED}

    wait_until(all_started)
    runs = night.runs(None)
    assert len(runs) == count_batches(night) == len(POINTS)
    for run in runs:
        assert night.lines(str(run.batch_id)) == ["a", "b", "c", "d", "e"]


def test_a_catalogue_that_changed_under_a_killed_scheduler_is_not_mixed(
    night: Night, monkeypatch: pytest.MonkeyPatch
) -> None:
    night.plan()
    schedules.fire(night.engine, "nightly")
    monkeypatch.setitem(scheduled_batch.ingest.__globals__["CHUNK_ROWS"], night.engine.dialect.name, 2)

    class Killed(BaseException):
        pass

    def kill(*_: Any) -> None:
        raise Killed

    monkeypatch.setattr(Scheduler, "_note_rows", kill)
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    night.tick()
    monkeypatch.undo()
    assert len(night.lines(night.run().reserved_id)) == 2
    night.write("x", "y", "z")
    night.let_lease_end()
    night.tick()
    assert (night.run().state, night.run().batch_status) == (S.FAILED, BatchStatus.FAILED)
    assert "changed while it was read" in str(night.run().reason)


def test_a_scheduler_told_to_stop_gives_its_runs_back_at_once(night: Night, monkeypatch: pytest.MonkeyPatch) -> None:
    night.plan()
    schedules.fire(night.engine, "nightly")
    mine = night.scheduler()
    ingest = scheduled_batch.ingest

    def stop_meanwhile(*given: Any) -> Any:
        mine._stopping.set()
        return ingest(*given)

    monkeypatch.setattr(scheduled_batch, "ingest", stop_meanwhile)
    night.tick(mine)
    assert (night.run().state, night.run().tries, night.run().reason) == (S.STARTING, 0, "its scheduler stopped")
    monkeypatch.undo()
    night.tick()
    assert night.run().state == S.STARTED and night.lines(str(night.run().batch_id)) == ["a", "b", "c"]


def test_the_dispatching_process_runs_schedules_and_tells_webhooks(
    valkey_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.storage.outward.find_addresses", lambda host, port: ["127.0.0.1"])
    url = f"sqlite:///{tmp_path / 'state.db'}"
    night = Night(open_database(url), tmp_path)
    metadata.create_all(night.engine)
    night.write("a")
    night.plan()
    night.come_due()
    hook = webhooks.add(night.engine, "https://shop.example.com/", [Event.SCHEDULE_FIRED], night.settings).webhook

    def tried() -> int:
        with reading(night.engine).connect() as connection:
            return sum(each.error is not None for each in queries.list_deliveries(connection, hook.id, limit=9))

    more = {"database_url": url, "broker_url": valkey_url}
    settings: Settings = night.settings.model_copy(update=more)
    stop = threading.Event()
    serving = threading.Thread(target=dispatcher.serve, args=(settings, stop))
    serving.start()
    try:
        wait_until(lambda: [run.state for run in night.runs()] == [S.STARTED] and tried() == 1)
    finally:
        stop.set()
        serving.join()
    night.engine.dispose()
