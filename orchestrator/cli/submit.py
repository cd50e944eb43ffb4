"""`kontext submit`: a catalogue becomes a batch that others work on, of this machine's database or of a server's.

Here it needs SQL, the catalogue and the checkpoint; at a server, the catalogue and its images alone. Refuses to start
servers or workers.
"""

import json
from contextlib import ExitStack
from functools import partial

import typer

from orchestrator.batches import create_batch, find_unfinished, ingest
from orchestrator.checkpoints import pin_checkpoint
from orchestrator.cli.display import open_display
from orchestrator.cli.door import At
from orchestrator.cli.locations import log_to_file, open_stack, open_state
from orchestrator.cli.request import Call, check_results, lies_in_embedded, make_request, open_asked
from orchestrator.cli.sending import open_memory, send
from orchestrator.progress import look
from orchestrator.settings import read_settings
from orchestrator.state.transitions import BatchStatus


def submit_catalogue(at: At, call: Call, *, as_json: bool) -> int:
    """Store the batch and print its id.

    A call that was interrupted goes on with its batch when it is repeated.
    """
    log_to_file(read_settings())
    batch_id, total, failed = _store(call) if at.here else _send(at, call)
    if as_json:
        typer.echo(json.dumps({"batch": batch_id, "total": total, "failed": failed}))
    else:
        bad = f", {failed:,} bad (kontext jobs {batch_id} --state failed)" if failed else ""
        typer.echo(f"{total:,} rows stored{bad}: batch {batch_id}")
    return 0


def _send(at: At, call: Call) -> tuple[str, int, int]:
    """Store the batch at a server; gives its id, its rows, and the bad ones."""
    batch = send(at, call, open_memory())
    return batch.id, batch.request_counts.total, batch.request_counts.failed


def _store(call: Call) -> tuple[str, int, int]:
    """Store the batch here; gives its id, its rows, and the bad ones."""
    settings = read_settings()
    say = partial(typer.echo, err=True)
    with ExitStack() as opened:
        if lies_in_embedded(call.catalogue):
            settings = opened.enter_context(open_stack(settings, say))
        catalogue = open_asked(call, settings)
        for warning in catalogue.warnings:
            say(f"warning: {warning}")
        engine = opened.enter_context(open_state(settings))
        request = make_request(call, settings, pin_checkpoint(settings))
        # The embedded server need not run now, and what it serves is ours to write.
        if not lies_in_embedded(request.results_uri):
            check_results(request, settings)
        batch = find_unfinished(engine, catalogue, request)
        if batch is None or batch.status != BatchStatus.INGESTING:
            batch = create_batch(engine, catalogue, request)
        display = open_display()
        opened.callback(display.close)
        ingest(engine, batch, catalogue, request, partial(display.count, "rows stored"))
        counts = look(engine, batch.id).counts
    return batch.id, counts.total, counts.failed
