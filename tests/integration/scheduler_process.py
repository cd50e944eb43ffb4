"""A scheduler in a process of its own, which stops for ever at a given point of a run, for a test to kill it there.

Called as: scheduler_process.py DATABASE_URL SETTINGS_JSON. The schedule's name is the point: `claimed`, `created`,
`half`, `stored`. Prints each point it has come to.
"""

import os
import sys
import threading
from collections.abc import Callable
from typing import Any

from orchestrator import batches, scheduled_batch, scheduler
from orchestrator.settings import Settings, configure_logs
from orchestrator.state.database import open_database

batches.CHUNK_ROWS.update(sqlite=2, postgresql=2)
scheduler.THREADS = 8
here = threading.local()


def stop_at(point: str) -> None:
    """Stop where the run at hand wants to be stopped."""
    if here.schedule == point:
        os.write(1, f"{point}\n".encode())  # at once, whatever other threads print
        threading.Event().wait()


def before(function: Callable[..., Any], point: str) -> Callable[..., Any]:
    def stopping(*given: Any, **named: Any) -> Any:
        stop_at(point)
        return function(*given, **named)

    return stopping


def after(function: Callable[..., Any], point: str) -> Callable[..., Any]:
    def stopping(*given: Any, **named: Any) -> Any:
        given_back = function(*given, **named)
        stop_at(point)
        return given_back

    return stopping


def remember_schedule(make_batch: Callable[..., Any]) -> Callable[..., Any]:
    def make(engine: Any, settings: Any, schedule: Any, run: Any, on_progress: Any) -> Any:
        here.schedule = schedule.name
        stop_at("claimed")
        batch = make_batch(engine, settings, schedule, run, lambda rows: stop_at("half") if rows >= 2 else None)
        stop_at("stored")
        return batch

    return make


def main() -> None:
    """Tick until killed."""
    scheduled_batch.create_batch = after(scheduled_batch.create_batch, "created")
    scheduler.make_batch = remember_schedule(scheduler.make_batch)
    engine = open_database(sys.argv[1])
    settings = Settings.model_validate_json(sys.argv[2])
    configure_logs(settings)
    mine = scheduler.Scheduler(engine, settings)
    while True:
        mine.tick()
        threading.Event().wait(0.05)


if __name__ == "__main__":
    main()
