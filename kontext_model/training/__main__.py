"""`python -m kontext_model.training`: what is wanted beside `kontext-model train`.

export CONFIG.toml [FOLDER]       write what a run has reached, finished or not
wardrobe FOLDER [--stage NAME]    make the shipped checkpoint from nothing, or one stage of it; minutes on a GPU
"""

import argparse
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType

import torch

from kontext_model.checkpoint import open_checkpoint
from kontext_model.editor import KontextEditor
from kontext_model.training.autoencoder import AutoencoderConfig
from kontext_model.training.command import export
from kontext_model.training.config import read_config
from kontext_model.training.decoder import DecoderConfig, train_decoder
from kontext_model.training.grid import draw_grid
from kontext_model.training.run_state import copy_weights, read_average
from kontext_model.training.settle import SettleConfig, settle_decoder
from kontext_model.training.shipping import TransformerConfig, export_checkpoint, install_decoder, start_wardrobe
from kontext_model.training.trainer import Trainer

CPU_PARTS = 8
"""Passes of a step on a CPU, where attention is written out: its scores of a whole batch would fill the memory."""
RECIPE = Path(__file__).with_name("wardrobe_small.toml")


def main(arguments: list[str] | None = None) -> int:
    """Run one command; 2 after a clear error."""
    options = _parse(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        options.run(options)
    except (ValueError, OSError) as error:  # ConfigError, TripleError, LostProcessError …
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m kontext_model.training")
    parser.add_argument("--threads", type=int, help="CPU threads; default: torch's choice")
    commands = parser.add_subparsers(required=True)
    exports = commands.add_parser("export", help="write what a run has reached: a LoRA's file, or a checkpoint folder")
    exports.add_argument("config", type=Path)
    exports.add_argument("folder", type=Path, nargs="?")
    exports.set_defaults(run=lambda o: _report(f"made {export(read_config(o.config), o.folder)}"))
    wardrobe = commands.add_parser("wardrobe", help="make the shipped checkpoint from nothing")
    wardrobe.add_argument("folder", type=Path)
    wardrobe.add_argument("--device", default="cpu")
    wardrobe.add_argument("--drawers", type=int, default=0, help="processes that draw the pictures ahead")
    wardrobe.add_argument("--length", type=float, default=1.0, help="share of every stage's steps: 0.02 suits a CPU")
    wardrobe.add_argument("--stage", choices=STAGES, help="this one alone")
    wardrobe.set_defaults(run=_make_wardrobe)
    return parser.parse_args(arguments)


def _make_wardrobe(options: argparse.Namespace) -> None:
    """Every stage goes on where it was killed; nothing is done twice."""
    for name, stage in STAGES.items():
        if options.stage in (None, name):
            stage(options)


def _start(options: argparse.Namespace) -> None:
    if not (options.folder / "start").exists():
        start_wardrobe(options.folder / "start", AutoencoderConfig(), TransformerConfig())


def _train_decoder(options: argparse.Namespace) -> None:
    config, share = DecoderConfig(), options.length
    config = replace(config, crop_steps=_scale(config.crop_steps, share), whole_steps=_scale(config.whole_steps, share))
    train_decoder(options.folder / "decoder", config, options.device, _report)
    install_decoder(options.folder / "start", options.folder / "decoder")


def _train_transformer(options: argparse.Namespace) -> None:
    recipe, folder = read_config(RECIPE), options.folder
    parts, share = CPU_PARTS if options.device == "cpu" else 1, options.length
    phases = tuple(
        replace(
            phase,
            steps=_scale(phase.steps, share),
            warmup=round(phase.warmup * share),
            batch=_scale(phase.batch, 1 / parts),
        )
        for phase in recipe.phases
    )
    config = replace(
        recipe,
        checkpoint=str(folder / "start"),
        out=str(folder / "transformer"),
        device=options.device,
        phases=phases,
        accumulation=parts,
    )
    Trainer(config, _report, options.drawers).train(on_validation=draw_grid)


def _settle(options: argparse.Namespace) -> None:
    config, folder = SettleConfig(), options.folder
    config = replace(config, count=_scale(config.count, options.length), steps=_scale(config.steps, options.length))
    checkpoint = open_checkpoint(folder / "start", device=options.device)
    copy_weights(checkpoint.transformer, read_average(folder / "transformer")[0])
    settle_decoder(folder / "settled", KontextEditor(checkpoint), config, options.drawers, _report)


def _export(options: argparse.Namespace) -> None:
    folder, made = options.folder, options.folder / "wardrobe-small"
    with TemporaryDirectory(dir=folder, prefix=".") as beside:
        fresh = Path(beside) / "made"
        export_checkpoint(folder / "start", fresh, folder / "transformer", folder / "settled")
        if made.exists():
            made.rename(Path(beside) / "before")
        fresh.rename(made)
    _report(f"made {made}")


def _scale(count: int, share: float) -> int:
    return max(1, round(count * share))


STAGES: Mapping[str, Callable[[argparse.Namespace], None]] = MappingProxyType(
    {
        "start": _start,
        "decoder": _train_decoder,
        "transformer": _train_transformer,
        "settle": _settle,
        "export": _export,
    }
)


def _report(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
