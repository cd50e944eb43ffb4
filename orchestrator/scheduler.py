"""The scheduler: schedules whose time has come get a run, runs get their batch, batches that ended get a report.

Owns exactly one batch per fire time: a unique row in SQL decides who fires, a lease who makes the batch, whose id is
fixed beforehand. Any number may run, and each may be killed between two statements. Refuses to make a batch on the
dispatcher's loop: that is done in threads, since a catalogue may have a million rows.
"""

import os
import secrets
import socket
import threading
import time
from collections.abc import Callable

import structlog
from sqlalchemy import Connection, Engine

from orchestrator.batches import new_batch_id
from orchestrator.fire_times import FireTimeError, due_fires, next_fire
from orchestrator.scheduled_batch import Unusable, make_batch
from orchestrator.settings import Settings
from orchestrator.state import queries
from orchestrator.state.clock import show_time
from orchestrator.state.database import DATABASE_AWAY, reading, tellable
from orchestrator.state.queries import Run, Schedule
from orchestrator.state.transitions import BatchStatus, Missed, Overlap, RunState

INTERVAL_S = 1.0
# A fire time that is later than so much was missed: no scheduler ran.
LATE_S = 300.0
THREADS = 3
MOST_WAITING = 24
# A catalogue's store that fails is asked again after 15, 30, … 480 seconds; a run is begun at most so often.
MOST_TRIES, FIRST_DELAY_S = 7, 15.0
log = structlog.get_logger("scheduler")


class _Stopped(Exception):
    """The process is told to stop, in the middle of a catalogue."""


class Scheduler:
    """`tick` does its work at most once a second, however often it is called."""

    def __init__(self, engine: Engine, settings: Settings) -> None:
        self._engine, self._settings = engine, settings
        self._id = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        self._stopping = threading.Event()
        self._threads: dict[int, threading.Thread] = {}
        self._next_s = self._renew_s = 0.0

    def tick(self) -> None:
        """Fire what is due, and see to the runs that are open."""
        if time.monotonic() < self._next_s:
            return
        self._next_s = time.monotonic() + INTERVAL_S
        self._threads = {run_id: thread for run_id, thread in self._threads.items() if thread.is_alive()}
        self._renew()
        with reading(self._engine).connect() as connection:
            due = queries.due_schedules(connection)
        for name in due:
            self._fire(name)
        with reading(self._engine).connect() as connection:
            runs = queries.open_runs(connection)
        for run in runs:
            self._see_to(run)

    def stop(self, timeout_s: float | None = None) -> None:
        """Give back the runs at hand, for others to go on with; waits so long at most for that."""
        self._stopping.set()
        self.wait(timeout_s)

    def wait(self, timeout_s: float | None = None) -> None:
        """Wait for the batches and reports that are being made."""
        until_s = None if timeout_s is None else time.monotonic() + timeout_s
        for thread in self._threads.values():
            thread.join(None if until_s is None else max(0.0, until_s - time.monotonic()))

    def _renew(self) -> None:
        if self._threads and time.monotonic() >= self._renew_s:
            self._renew_s = time.monotonic() + self._settings.lease_s / 4
            with self._engine.begin() as connection:
                queries.renew_runs(connection, list(self._threads), self._id, self._settings.lease_s)

    def _fire(self, name: str) -> None:
        with self._engine.begin() as connection:
            schedule = queries.lock_schedule(connection, name)
            now_s = queries.read_clock(connection)
            if schedule is None or schedule.next_fire_at is None or schedule.next_fire_at > now_s:
                return  # another scheduler was faster, or somebody changed it
            try:
                run = fire_due(connection, schedule, now_s)
            except FireTimeError as error:  # read once, and no more: another version's time zones
                queries.change_schedule(connection, name, {"paused": 1, "next_fire_at": None})
                log.error("schedule paused", schedule=name, reason=str(error))
                return
        if run is not None:
            log.info("schedule fires", schedule=name, run=run.id, due=show_time(run.fire_at), state=run.state)

    def _see_to(self, run: Run) -> None:
        free = run.id not in self._threads and len(self._threads) < THREADS
        if not free or self._stopping.is_set():
            return
        if run.state == RunState.STARTED:
            self._begin(run, self._report)
        elif self._admit(run):
            self._begin(run, self._start)

    def _begin(self, run: Run, work: Callable[[Run], None]) -> None:
        thread = threading.Thread(target=self._guard, args=(run, work), name=f"run-{run.id}", daemon=True)
        self._threads[run.id] = thread
        thread.start()

    def _guard(self, run: Run, work: Callable[[Run], None]) -> None:
        try:
            work(run)
        except DATABASE_AWAY as error:  # the lease runs out, and somebody tries again
            log.warning("run left alone", run=run.id, error=str(error).partition("\n")[0])

    def _admit(self, run: Run) -> bool:
        """Claim a run, unless it has to wait or is skipped for one that it would overlap."""
        with self._engine.begin() as connection:
            if run.state == RunState.STARTING:
                return queries.claim_run(connection, run.id, self._id, self._settings.lease_s)
            schedule = queries.lock_schedule(connection, run.schedule)
            found = queries.read_run(connection, run.id)
            if schedule is None or found is None or found.state not in (RunState.DUE, RunState.WAITING):
                return False
            return decide_overlap(connection, schedule, found) and queries.claim_run(
                connection, run.id, self._id, self._settings.lease_s
            )

    def _start(self, run: Run) -> None:
        """Make the run's batch; whatever goes wrong ends this run alone, the schedule lives on."""
        with reading(self._engine).connect() as connection:
            schedule = queries.read_schedule(connection, run.schedule)
        if schedule is None:
            return
        try:
            if run.tries >= MOST_TRIES:
                raise Unusable(f"given up after {run.tries} tries; the last: {run.reason or 'its scheduler died'}")
            batch = make_batch(self._engine, self._settings, schedule, run, self._note_rows)
        except _Stopped:
            self._release(run, "its scheduler stopped", 0.0, counted=False)
        except Unusable as problem:
            if problem.transient and run.tries + 1 < MOST_TRIES:
                self._release(run, str(problem), FIRST_DELAY_S * 2**run.tries)
            else:
                self._fail(run, str(problem))
        except DATABASE_AWAY:
            raise
        except Exception as error:
            log.exception("run failed", run=run.id, schedule=run.schedule)
            self._fail(run, f"unexpected {type(error).__name__}: {error}")
        else:
            with self._engine.begin() as connection:
                started = queries.start_run(connection, run.id)
            if started:
                log.info("batch made", schedule=run.schedule, run=run.id, batch=batch.id, jobs=batch.total)

    def _note_rows(self, rows: int) -> None:
        if self._stopping.is_set():
            raise _Stopped

    def _release(self, run: Run, reason: str, delay_s: float, *, counted: bool = True) -> None:
        with self._engine.begin() as connection:
            queries.release_run(connection, run.id, self._id, reason, delay_s, counted=counted)
        log.warning("run is tried again", schedule=run.schedule, run=run.id, reason=reason, seconds=delay_s)

    def _fail(self, run: Run, reason: str) -> None:
        with self._engine.begin() as connection:
            failed = queries.fail_run(connection, run.id, self._id, reason)
            if failed:  # what was made of its batch is no batch
                queries.move_batch(connection, run.reserved_id, BatchStatus.FAILED, reason=tellable(reason))
        if failed:
            log.warning("run failed", schedule=run.schedule, run=run.id, reason=reason)

    def _report(self, run: Run) -> None:
        """Count what became of the jobs, and end the run."""
        with reading(self._engine).connect() as connection:
            report = None if run.batch_id is None else queries.count_outcomes(connection, run)
        with self._engine.begin() as connection:
            ended = queries.end_run(connection, run, report)
        if ended and report is not None:
            log.info("run ended", schedule=run.schedule, run=run.id, batch=run.batch_id, **vars(report))


def fire_due(connection: Connection, schedule: Schedule, now_s: float) -> Run | None:
    """Note the latest fire time that has come, once whoever calls, and set the next one.

    Of several that have come, all but the latest were missed; the latest too where it is late and missed ones are to be
    skipped. The caller has locked the schedule.
    """
    assert schedule.next_fire_at is not None
    due = due_fires(schedule.cron, schedule.time_zone, schedule.next_fire_at, now_s)
    next_at = next_fire(schedule.cron, schedule.time_zone, max(now_s, due.latest_at))
    queries.change_schedule(connection, schedule.name, {"next_fire_at": next_at})
    run_id = queries.add_run(connection, schedule.name, due.latest_at, new_batch_id(), missed=due.earlier)
    if run_id is None:
        return None
    late_s = now_s - due.latest_at
    if late_s > LATE_S and schedule.missed == Missed.SKIP:
        queries.skip_run(connection, run_id, f"missed: no scheduler ran at that time, nor for {late_s:,.0f} s after it")
    return queries.read_run(connection, run_id)


def decide_overlap(connection: Connection, schedule: Schedule, run: Run) -> bool:
    """Whether a run may begin; if not, it is skipped or held, as its schedule says. The caller locked the schedule."""
    if schedule.overlap == Overlap.ALLOW:
        return True
    other = queries.find_blocking_run(connection, run)
    before = queries.count_before(connection, run) if schedule.overlap == Overlap.QUEUE else 0
    if other is None and not before:
        return True
    if other is None:
        return False  # one that waits longer goes first
    which = f"the run of {show_time(other.fire_at)} has not ended (batch {other.batch_id or 'being made'})"
    if schedule.overlap == Overlap.SKIP:
        queries.skip_run(connection, run.id, f"overlap: {which}")
    elif run.state == RunState.DUE:
        if before >= MOST_WAITING:
            queries.skip_run(connection, run.id, f"overlap: {before} runs wait already, and {which}")
        else:
            queries.hold_run(connection, run.id, f"waits: {which}")
    return False
