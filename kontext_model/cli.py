"""`kontext-model …`: the model's own command line.

Owns the words: commands, options, their help, and how errors become exit statuses. Refuses work and heavy imports: each
command hands over to its own module when it is called, so that `--help` answers at once.
"""

import io
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup


class Commands(TyperGroup):
    """Commands whose errors end as one line on stderr and status 2; a fault of ours keeps its traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort, typer.TyperException, BrokenPipeError):
            raise
        except KeyboardInterrupt:
            typer.echo("interrupted", err=True)
            raise typer.Exit(130) from None
        except ModuleNotFoundError as error:
            extra = "plots" if error.name == "matplotlib" else "worker"
            sentence = f"{error}; install the extra `{extra}`: pip install 'kontext-batch[{extra}]'"
        except (ValueError, OSError) as error:  # CheckpointError, TripleError, LostProcessError …
            sentence = " ".join(str(error).split()) or type(error).__name__
        typer.echo(f"kontext-model: {sentence}", err=True)
        raise typer.Exit(2)


app = typer.Typer(
    cls=Commands,
    name="kontext-model",
    help="FLUX.1 Kontext by itself: look at its shapes, compare samplers, train it, measure it.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_Config = Annotated[Path, typer.Argument(metavar="CONFIG.toml", help="What to train, on what, for how long.")]
_Checkpoint = Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="A diffusers-layout folder.")]
_Size = Annotated[str, typer.Option(metavar="WxH", help="Of the picture in pixels; rounded to multiples of 16.")]
_Format = Annotated[Literal["table", "json", "mermaid"], typer.Option(help="How to print it.")]
_Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads; unset, torch chooses.")]


@app.command()
def trace(
    size: _Size = "1024x1024",
    batch: Annotated[int, typer.Option(min=1, help="Pictures at once.")] = 1,
    cfg: Annotated[bool, typer.Option("--cfg", help="True CFG: a second run on a negative prompt.")] = False,
    format: _Format = "table",
) -> None:
    """Show every named shape of the 12 B model, from text ids to the decoded image, without its weights.

    The real classes run on the meta device with the published configuration of FLUX.1 Kontext [dev]: shapes,
    parameters, FLOPs and memory are recorded, never computed by hand. As mermaid: three diagrams (the whole model, a
    double-stream block, a single-stream block).
    """
    from kontext_model.trace import show

    show(size, batch, cfg, format)


@app.command()
def samplers(
    out: Annotated[Path, typer.Option(metavar="FILE.png", help="Where the drawing goes.")] = Path("samplers.png"),
) -> None:
    """Draw error against model calls for flow Euler, Heun, DPM++ 2M, DDIM and DDPM on a problem of known answer."""
    from kontext_model.sampler_study import describe, draw_study

    for line in (*describe(draw_study(out)), str(out)):
        typer.echo(line)


@app.command()
def train(
    config: _Config,
    check: Annotated[bool, typer.Option("--check", help="Read every image and prompt, count, train nothing.")] = False,
    encoders: Annotated[int, typer.Option(min=0, help="Processes that encode, or draw, the images ahead.")] = 0,
    threads: _Threads = None,
) -> None:
    """Train a transformer or a LoRA as a TOML file says; called again after an interruption, go on."""
    import torch

    from kontext_model.training.command import train

    if threads:
        torch.set_num_threads(threads)
    train(config, check, encoders)


@app.command()
def evaluate(
    checkpoint: _Checkpoint,
    count: Annotated[int, typer.Option(min=1, help="Held-out samples.")] = 200,
    size: Annotated[int | None, typer.Option(min=32, help="Side in pixels; unset, the checkpoint's.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps of the figures that are held against the bars.")] = 8,
    sweep: Annotated[str, typer.Option(metavar="N,N,…", help="Further step counts, for the plot.")] = "",
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where report.json, plot and grids go.")] = Path(
        "evaluation"
    ),
    lora: Annotated[str | None, typer.Option(metavar="FILE", help="With this LoRA: file, folder or hub id.")] = None,
    style: Annotated[str | None, typer.Option(help="Garments that training does not draw: dungarees.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    threads: _Threads = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """Measure a checkpoint on held-out wardrobe samples: PSNR, SSIM, mask IoU, border, colour, prompts followed."""
    import torch

    from kontext_model.wardrobe.evaluation import Question, read_counts
    from kontext_model.wardrobe.report import show

    if threads:
        torch.set_num_threads(threads)
    question = Question(checkpoint, count, size, steps, read_counts(sweep), device, lora, style)
    show(question, out, json, _report)


def _report(line: str) -> None:
    print(line, flush=True)


def main() -> None:
    """The program `kontext-model`."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a sign that the terminal cannot show is no reason to fail
    app(prog_name="kontext-model")


if __name__ == "__main__":
    main()
