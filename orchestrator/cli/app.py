"""The words of the command line: commands, their flags, their help.

Owns the grammar and how errors become exit statuses. Refuses work: each command hands over to its own module.
"""

import io
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from orchestrator.cli.door import At, somewhere
from orchestrator.cli.key import key
from orchestrator.cli.schedule import schedule
from orchestrator.cli.webhook import webhook
from orchestrator.state.transitions import JobState, Stage


class Commands(TyperGroup):
    """Commands whose errors end as one sentence and a status."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except typer.TyperException as error:
            if getattr(error, "option_name", None) in ("--server", "--key"):
                place = getattr(getattr(error, "ctx", None), "command_path", "this command")
                raise typer.BadParameter(f"{place} works on this machine alone, and takes no --server") from None
            raise
        except (typer.Exit, typer.Abort, BrokenPipeError):
            raise
        except KeyboardInterrupt:
            typer.echo("interrupted", err=True)
            raise typer.Exit(130) from None
        except Exception as error:
            from orchestrator.cli.failures import explain

            status, sentence = explain(error)
            typer.echo(f"kontext: {sentence}", err=True)
            raise typer.Exit(status) from None


app = typer.Typer(
    cls=Commands,
    name="kontext",
    help="Catalogue photos and edit prompts in, finished product images out.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
database = typer.Typer(help="The database's schema.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(database, name="db")
app.add_typer(key, name="key")
app.add_typer(schedule, name="schedule")
app.add_typer(webhook, name="webhook")

_Catalogue = Annotated[
    str, typer.Argument(metavar="CATALOGUE", help="CSV, JSONL, Parquet, folder of images, or s3:// of these.")
]
_Preset = Annotated[str | None, typer.Option(help="A built-in edit, for rows that name none.")]
_Prompt = Annotated[str | None, typer.Option(help="What to do, for rows that do not say.")]
_Out = Annotated[str | None, typer.Option(metavar="URI|DIR", help="Where results go, instead of KONTEXT_RESULTS_URI.")]
_Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="An option for every row: steps=8. Repeatable."),
]
_Priority = Annotated[int, typer.Option(min=-100, max=100, help="Urgency among the batches.")]
_MaxErrorRate = Annotated[
    str | None, typer.Option(metavar="SHARE", help="Pause when more of the jobs fail than this: 0.2.")
]
_Deadline = Annotated[
    str | None, typer.Option(metavar="WHEN", help="Fail what is not claimed by then: 90m, 2h, 1d, or an ISO time.")
]
_DryRun = Annotated[bool, typer.Option("--dry-run", help="Check every row; make no batch, start nothing.")]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
_Batch = Annotated[str, typer.Argument(metavar="ID", help="The batch, as `kontext batches` lists it.")]


def _show_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(version("kontext-batch"))
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Say which.")
    ] = False,
) -> None:
    pass


@app.command()
@somewhere
def run(
    at: At,
    catalogue: _Catalogue,
    preset: _Preset = None,
    prompt: _Prompt = None,
    out: _Out = None,
    settings: _Set = None,
    priority: _Priority = 0,
    max_error_rate: _MaxErrorRate = None,
    deadline: _Deadline = None,
    sheet: Annotated[Path | None, typer.Option(metavar="FILE.png", help="Write a contact sheet at the end.")] = None,
    dry_run: _DryRun = False,
    json: _Json = False,
) -> None:
    """Edit a catalogue's images and wait for the end; called again after an interruption, go on with the same batch.

    Exit status: 0 every job succeeded, 3 the batch ended or stands otherwise, 2 bad call or catalogue, 1 something that
    is needed does not work, 130 Ctrl-C.
    """
    from orchestrator.cli.request import read_call
    from orchestrator.cli.run import check_rows, run_catalogue

    named = {"preset": preset, "prompt": prompt, "max_error_rate": max_error_rate, "deadline": deadline}
    call = read_call(catalogue, named, settings or [], out, priority)
    if dry_run:  # pictures are fetched to `out` by this command, no server is asked about it
        raise typer.Exit(check_rows(at, call if at.here else replace(call, out=None), as_json=json))
    if at.here:
        raise typer.Exit(run_catalogue(call, as_json=json, sheet=sheet))
    from orchestrator.cli.run_at import run_at

    if sheet is not None:
        raise typer.BadParameter("a contact sheet is made on this machine alone", param_hint="--sheet")
    raise typer.Exit(run_at(at, call, as_json=json))


@app.command()
@somewhere
def submit(
    at: At,
    catalogue: _Catalogue,
    preset: _Preset = None,
    prompt: _Prompt = None,
    out: _Out = None,
    settings: _Set = None,
    priority: _Priority = 0,
    max_error_rate: _MaxErrorRate = None,
    deadline: _Deadline = None,
    dry_run: _DryRun = False,
    json: _Json = False,
) -> None:
    """Store a batch for `kontext up` or a fleet to work on; the batch's id is the last word printed."""
    from orchestrator.cli.request import read_call
    from orchestrator.cli.run import check_rows
    from orchestrator.cli.submit import submit_catalogue

    named = {"preset": preset, "prompt": prompt, "max_error_rate": max_error_rate, "deadline": deadline}
    call = read_call(catalogue, named, settings or [], out, priority)
    raise typer.Exit(check_rows(at, call, as_json=json) if dry_run else submit_catalogue(at, call, as_json=json))


@app.command()
def up(
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Of the API; unset: 8080, or a free one when that is taken.")
    ] = None,
) -> None:
    """Run everything on this machine until Ctrl-C: embedded servers, dispatcher, one worker, API."""
    from orchestrator.cli.up import stay_up

    raise typer.Exit(stay_up(port))


@app.command()
@somewhere
def batches(
    at: At,
    json: _Json = False,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many, the newest first.")] = 50,
) -> None:
    """List the newest batches."""
    from orchestrator.cli.reports import list_batches

    list_batches(at, limit, as_json=json)


@app.command()
@somewhere
def show(at: At, batch: _Batch, json: _Json = False) -> None:
    """How one batch stands: counts, errors, seconds, where its results are."""
    from orchestrator.cli.reports import show_batch

    show_batch(at, batch, as_json=json)


@app.command()
@somewhere
def jobs(
    at: At,
    batch: _Batch,
    state: Annotated[list[JobState] | None, typer.Option(help="Only jobs in this state. Repeatable.")] = None,
    json: _Json = False,
) -> None:
    """List a batch's jobs in the catalogue's order; with --json one object a line."""
    from orchestrator.cli.reports import list_jobs

    list_jobs(at, batch, state or [], as_json=json)


@app.command()
@somewhere
def workers(at: At, json: _Json = False) -> None:
    """List the workers that live: stages, device, checkpoint, memory; with --json one object a line."""
    from orchestrator.cli.reports import list_workers

    list_workers(at, as_json=json)


@app.command()
@somewhere
def presets(at: At, json: _Json = False) -> None:
    """List the edits that are known by name; with --json one object a line."""
    from orchestrator.cli.reports import list_presets

    list_presets(at, as_json=json)


@app.command()
@somewhere
def pause(at: At, batch: _Batch, json: _Json = False) -> None:
    """Claim nothing more of a batch; what is running ends its stage."""
    from orchestrator.cli.controls import pause_batch

    pause_batch(at, batch, as_json=json)


@app.command()
@somewhere
def resume(at: At, batch: _Batch, json: _Json = False) -> None:
    """Go on with a paused batch."""
    from orchestrator.cli.controls import resume_batch

    resume_batch(at, batch, as_json=json)


@app.command()
@somewhere
def cancel(at: At, batch: _Batch, json: _Json = False) -> None:
    """End a batch early; what succeeded stays, with a manifest."""
    from orchestrator.cli.controls import cancel_batch

    cancel_batch(at, batch, as_json=json)


@app.command()
@somewhere
def retry(
    at: At,
    batch: _Batch,
    state: Annotated[list[JobState] | None, typer.Option(help="failed (default) or cancelled. Repeatable.")] = None,
    code: Annotated[list[str] | None, typer.Option(help="Only jobs with this error code. Repeatable.")] = None,
    line: Annotated[list[int] | None, typer.Option(help="Only this line of the catalogue. Repeatable.")] = None,
    json: _Json = False,
) -> None:
    """Try failed or cancelled jobs again, in the same batch; one that had ended runs again."""
    from orchestrator.cli.controls import retry_jobs

    retry_jobs(at, batch, state or [], code or [], line or [], as_json=json)


@app.command(context_settings={"ignore_unknown_options": True})  # or -5 would be an option
@somewhere
def priority(
    at: At,
    batch: _Batch,
    value: Annotated[int, typer.Argument(metavar="N", min=-100, max=100, help="Urgency among the batches.")],
    json: _Json = False,
) -> None:
    """Change the urgency of a batch, also of its jobs that are queued already."""
    from orchestrator.cli.controls import set_priority

    set_priority(at, batch, value, as_json=json)


@app.command()
@somewhere
def export(
    at: At,
    batch: _Batch,
    folder: Annotated[str, typer.Argument(metavar="DIR", help="A folder, or s3://bucket/prefix.")],
) -> None:
    """Copy a batch's results and manifest into a folder; what is there already and equal is skipped."""
    from orchestrator.cli.export import export_batch

    raise typer.Exit(export_batch(at, batch, folder))


@app.command()
def serve(
    host: Annotated[str, typer.Option(help="The address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: a free one.")] = 8080,
) -> None:
    """Serve dashboard, API, health, readiness and metrics."""
    from orchestrator.cli.services import serve_api

    serve_api(host, port)


@app.command()
def dispatch() -> None:
    """Run dispatcher, rescuer, scheduler and deliverer until SIGTERM or Ctrl-C; any number may run."""
    from orchestrator.cli.services import run_dispatcher

    run_dispatcher()


@app.command()
def worker(
    stages: Annotated[str, typer.Option(help="What it does, commas between.")] = ",".join(Stage),
    name: Annotated[str | None, typer.Option(help="Its role's name, in logs and in the worker's id.")] = None,
) -> None:
    """Run one worker process and start it again when it dies, until SIGTERM or Ctrl-C."""
    from orchestrator.cli.services import run_worker

    run_worker(stages, name)


@database.command()
def upgrade() -> None:
    """Bring the database's schema to the newest migration."""
    from orchestrator.cli.services import upgrade_database

    upgrade_database()


@database.command()
def current() -> None:
    """Say which migration the database stands at."""
    from orchestrator.cli.services import show_migration

    show_migration()


@app.command()
@somewhere
def doctor(at: At, json: _Json = False) -> None:
    """Check what a run needs, and say what to do about what is missing; exit status 1 when something fails."""
    from orchestrator.cli.doctor import examine

    raise typer.Exit(examine(at, as_json=json))


def main() -> None:
    """The program `kontext`."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a name that the terminal cannot show is no reason to fail
    app(prog_name="kontext")
