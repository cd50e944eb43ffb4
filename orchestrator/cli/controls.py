"""`kontext pause | resume | cancel | retry | priority`: what is asked of a batch, and how the answer reads.

Owns the shapes of their JSON. Needs the door alone; refuses to start anything.
"""

import json
from collections.abc import Sequence

import typer

from orchestrator.cli.door import At, open_door
from orchestrator.client.shapes import Change
from orchestrator.state.transitions import BatchStatus, JobState


def pause_batch(at: At, batch_id: str, *, as_json: bool) -> None:
    """Pause, and say so."""
    with open_door(at) as door:
        change = door.pause(batch_id)
    done = "paused; what is running ends its stage" if change.changed else f"is paused already ({change.batch.reason})"
    _tell(change, f"batch {batch_id} {done}. Go on: kontext resume {batch_id}", as_json)


def resume_batch(at: At, batch_id: str, *, as_json: bool) -> None:
    """Resume, and say so."""
    with open_door(at) as door:
        change = door.resume(batch_id)
    _tell(change, f"batch {batch_id} {'runs again' if change.changed else 'is running already'}", as_json)


def cancel_batch(at: At, batch_id: str, *, as_json: bool) -> None:
    """Cancel, and say how far that is."""
    with open_door(at) as door:
        change = door.cancel(batch_id)
    if change.batch.status == BatchStatus.CANCELLED:
        sentence = f"batch {batch_id} is cancelled already"
    else:
        sentence = (
            f"batch {batch_id} is being cancelled, {change.jobs:,} jobs so far; what succeeded stays. The dispatcher "
            "writes its manifest and ends it"
        )
    _tell(change, sentence, as_json)


def set_priority(at: At, batch_id: str, priority: int, *, as_json: bool) -> None:
    """Change a batch's priority, and say so."""
    with open_door(at) as door:
        change = door.set_priority(batch_id, priority)
    _tell(change, f"batch {batch_id} {'has' if change.changed else 'had'} priority {priority}", as_json)


def retry_jobs(
    at: At, batch_id: str, states: Sequence[JobState], codes: Sequence[str], lines: Sequence[int], *, as_json: bool
) -> None:
    """Set ended jobs pending again, and say how many."""
    asked = tuple(states) or (JobState.FAILED,)
    with open_door(at) as door:
        change = door.retry(batch_id, asked, codes, lines)
    if change.jobs:
        sentence = f"batch {batch_id}: {change.jobs:,} jobs are pending again"
        if change.batch.status == BatchStatus.PAUSED:
            sentence += f"; the batch is paused. Go on: kontext resume {batch_id}"
    else:
        sentence = (
            f"batch {batch_id} has no {' or '.join(asked)} job to try again{' that matches' * bool(codes or lines)}"
        )
    if change.bad_rows:
        sentence += f"; {change.bad_rows:,} bad rows stay failed: mend the catalogue and submit it again"
    _tell(change, sentence, as_json)


def _tell(change: Change, sentence: str, as_json: bool) -> None:
    batch = change.batch
    told = {
        "batch": batch.id,
        "status": batch.status.value,
        "changed": change.changed,
        "jobs": change.jobs,
        "priority": batch.priority,
        "reason": batch.reason,
    }
    typer.echo(json.dumps(told) if as_json else sentence)
