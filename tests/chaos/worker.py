"""The real worker around the echo model: `python -m tests.chaos.worker --stages S,… --name ID`.

With `CHAOS_RECORD` it appends to that file what it begins and what its writes to SQL move: what the checker holds
against SQL and S3 after a run.
"""

import argparse
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from orchestrator.settings import configure_logs, read_settings
from orchestrator.state import queries
from orchestrator.state.transitions import Stage
from tests.chaos.model import open_echo
from tests.chaos.record import DONE, START, WRITES, Record
from workers import app, stages, tasks
from workers.watchdog import leave


def keep_record(record: Record) -> None:
    """Have every stage and every write noted."""
    vars(tasks)["STAGES"] = {stage: _noted_stage(record, stage, run) for stage, run in stages.STAGES.items()}
    for name in WRITES:
        setattr(queries, name, _noted_write(record, name, getattr(queries, name)))


def _noted_stage(record: Record, stage: Stage, run: Callable[..., Any]) -> Callable[..., Any]:
    def noted(bench: Any, recipe: Any, unit: Sequence[Any]) -> Any:
        jobs = [(job.id, job.attempt) for job in unit]
        record.note(START, stage, jobs)
        outcome = run(bench, recipe, unit)
        record.note(DONE, stage, jobs)
        return outcome

    return noted


def _noted_write(record: Record, name: str, write: Callable[..., Any]) -> Callable[..., Any]:
    def noted(connection: Any, stage: Stage, ends: Sequence[Any], **more: Any) -> Any:
        asked_s = time.monotonic()
        moved = write(connection, stage, ends, **more)
        ids = {getattr(each, "id", each) for each in moved}
        if ids:
            record.note(name, stage, [(end.id, end.attempt) for end in ends if end.id in ids], asked_s)
        return moved

    return noted


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--stages", default=",".join(Stage))
    parser.add_argument("--name", required=True)
    given = parser.parse_args()
    settings = read_settings()
    configure_logs(settings)
    if "CHAOS_RECORD" in os.environ:
        keep_record(Record(Path(os.environ["CHAOS_RECORD"]), given.name))
    leave(app.serve(settings, [Stage(name) for name in given.stages.split(",")], given.name, open_echo))


if __name__ == "__main__":
    main()
