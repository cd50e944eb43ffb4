"""`kontext submit`: a catalogue becomes a batch that others work on.

Needs SQL, the catalogue and the checkpoint. Refuses to start servers or workers.
"""

import json
from contextlib import ExitStack
from functools import partial

import typer

from orchestrator.batches import create_batch, find_unfinished, ingest
from orchestrator.checkpoints import pin_checkpoint
from orchestrator.cli.display import open_display
from orchestrator.cli.locations import log_to_file, open_stack, open_state
from orchestrator.cli.request import Call, check_results, lies_in_embedded, make_request, open_asked
from orchestrator.progress import look
from orchestrator.settings import read_settings
from orchestrator.state.transitions import BatchStatus


def submit_catalogue(call: Call, *, as_json: bool) -> int:
    """Store the batch and print its id.

    A call that was interrupted while it read the catalogue goes on with its batch when it is repeated.
    """
    settings = read_settings()
    log_to_file(settings)
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
    if as_json:
        typer.echo(json.dumps({"batch": batch.id, "total": counts.total, "failed": counts.failed}))
    else:
        bad = f", {counts.failed:,} bad (kontext jobs {batch.id} --state failed)" if counts.failed else ""
        typer.echo(f"{counts.total:,} rows stored{bad}: batch {batch.id}")
    return 0
