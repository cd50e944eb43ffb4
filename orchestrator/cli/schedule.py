"""The words of `kontext schedule`: its commands, their flags, their help.

Owns the grammar, as `app` does for the rest. Refuses work: each command hands over to `scheduling`.
"""

from typing import Annotated

import typer

from orchestrator.cli.door import At, somewhere
from orchestrator.state.transitions import Missed, Overlap

schedule = typer.Typer(help="Batches by the clock.", no_args_is_help=True, rich_markup_mode=None)

_Name = Annotated[str, typer.Argument(metavar="NAME", help="The schedule, as `kontext schedule list` names it.")]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]


@schedule.command()
@somewhere
def add(
    at: At,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Letters, digits, dots and dashes.")],
    cron: Annotated[str, typer.Option(metavar="'M H D M W'", help="When: minute hour day month weekday.")],
    catalogue: Annotated[str, typer.Option(metavar="URI", help="What: as for `kontext submit`.")],
    tz: Annotated[str, typer.Option(metavar="ZONE", help="The time zone of --cron: Asia/Shanghai.")] = "UTC",
    preset: Annotated[str | None, typer.Option(help="The edit, for rows that name none.")] = None,
    prompt: Annotated[str | None, typer.Option(help="The edit in words, for rows that say none.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="An option for all rows. Repeatable.")
    ] = None,
    out: Annotated[str | None, typer.Option(metavar="URI|DIR", help="Where its batches' results go.")] = None,
    priority: Annotated[int, typer.Option(min=-100, max=100, help="Urgency of its batches.")] = 0,
    max_error_rate: Annotated[str | None, typer.Option(metavar="SHARE", help="Pause a batch that fails more.")] = None,
    deadline: Annotated[str | None, typer.Option(metavar="DURATION", help="Of each batch, as 8h.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Make every picture anew, not only what changed.")] = False,
    overlap: Annotated[Overlap, typer.Option(help="While the batch before has not ended.")] = Overlap.SKIP,
    missed: Annotated[Missed, typer.Option(help="After a time when no dispatcher ran.")] = Missed.ONCE,
    json: _Json = False,
) -> None:
    """Make a batch of a catalogue again and again; what has not changed is reused."""
    from orchestrator.cli.request import read_call
    from orchestrator.cli.scheduling import add_schedule

    named = {"preset": preset, "prompt": prompt, "max_error_rate": max_error_rate, "deadline": deadline}
    call = read_call(catalogue, named, settings or [], out, priority)
    add_schedule(
        at, call, name, cron, tz, only_changed=not everything, overlap=overlap, missed=missed, as_json=json
    )  # fmt: skip


@schedule.command("list")
@somewhere
def list_(at: At, json: _Json = False) -> None:
    """List the schedules: when each fires next, and how it went last."""
    from orchestrator.cli.scheduling import list_schedules

    list_schedules(at, as_json=json)


@schedule.command()
@somewhere
def show(
    at: At,
    name: _Name,
    json: _Json = False,
    limit: Annotated[int, typer.Option(min=1, max=1_000, help="How many runs, the latest first.")] = 20,
) -> None:
    """Show one schedule, its next fire times and its past runs with their reports."""
    from orchestrator.cli.scheduling import show_schedule

    show_schedule(at, name, limit, as_json=json)


@schedule.command()
@somewhere
def pause(at: At, name: _Name, json: _Json = False) -> None:
    """Fire no more until it is resumed."""
    from orchestrator.cli.scheduling import pause_schedule

    pause_schedule(at, name, as_json=json)


@schedule.command()
@somewhere
def resume(at: At, name: _Name, json: _Json = False) -> None:
    """Fire again from now on."""
    from orchestrator.cli.scheduling import resume_schedule

    resume_schedule(at, name, as_json=json)


@schedule.command()
@somewhere
def remove(at: At, name: _Name, json: _Json = False) -> None:
    """Forget a schedule and its runs; their batches stay."""
    from orchestrator.cli.scheduling import remove_schedule

    remove_schedule(at, name, as_json=json)


@schedule.command()
@somewhere
def fire(at: At, name: _Name, json: _Json = False) -> None:
    """Run a schedule now, whatever the clock says; the overlap policy holds."""
    from orchestrator.cli.scheduling import fire_schedule

    fire_schedule(at, name, as_json=json)
