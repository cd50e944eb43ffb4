"""`python -m kontext_model.training`: start, train and export checkpoints.

start FOLDER                      the wardrobe's starting checkpoint
decoder RUN                       train its VAE's decoder; goes on where it was killed
train CONFIG.toml                 train a transformer or a LoRA; likewise
export START FOLDER [--transformer RUN] [--decoder RUN]
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import torch

from kontext_model.revision import CheckpointError
from kontext_model.training.autoencoder import AutoencoderConfig, train_decoder
from kontext_model.training.config import ConfigError, read_config
from kontext_model.training.grid import draw_grid
from kontext_model.training.prefill import prefill
from kontext_model.training.shipping import (
    TransformerConfig,
    export_checkpoint,
    export_lora,
    install_decoder,
    start_wardrobe,
)  # fmt: skip
from kontext_model.training.trainer import Trainer
from kontext_model.training.triples import TripleError


def main(arguments: list[str] | None = None) -> int:
    """Run one command; 2 after a clear error."""
    options = _parse(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        options.run(options)
    except (CheckpointError, ConfigError, TripleError, FileExistsError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m kontext_model.training")
    parser.add_argument("--threads", type=int, help="CPU threads; default: torch's choice")
    commands = parser.add_subparsers(required=True)
    start = commands.add_parser("start", help="write the wardrobe's starting checkpoint")
    start.add_argument("folder", type=Path)
    start.set_defaults(run=lambda o: start_wardrobe(o.folder, AutoencoderConfig(), TransformerConfig()))
    decoder = commands.add_parser("decoder", help="train the wardrobe VAE's decoder")
    decoder.add_argument("folder", type=Path)
    decoder.add_argument("--steps", type=int, default=AutoencoderConfig.steps)
    decoder.set_defaults(
        run=lambda o: train_decoder(o.folder, replace(AutoencoderConfig(), steps=o.steps), report=_report)
    )
    train = commands.add_parser("train", help="train as a TOML file says")
    train.add_argument("config", type=Path)
    train.set_defaults(run=lambda o: Trainer(read_config(o.config), report=_report).train(on_validation=draw_grid))
    export = commands.add_parser("export", help="write a checkpoint folder in half precision")
    export.add_argument("start", type=Path)
    export.add_argument("folder", type=Path)
    export.add_argument("--transformer", type=Path)
    export.add_argument("--decoder", type=Path)
    export.set_defaults(run=lambda o: export_checkpoint(o.start, o.folder, o.transformer, o.decoder))
    prefills = commands.add_parser("prefill", help="encode a configuration's triples ahead")
    prefills.add_argument("config", type=Path)
    prefills.add_argument("--workers", type=int, default=4)
    prefills.set_defaults(run=lambda o: prefill(read_config(o.config), o.workers, _report))
    lora = commands.add_parser("export-lora", help="write a LoRA run as a diffusers file")
    lora.add_argument("config", type=Path)
    lora.add_argument("folder", type=Path)
    lora.set_defaults(run=lambda o: export_lora(read_config(o.config), o.folder))
    wardrobe = commands.add_parser("wardrobe", help="reproduce the shipped checkpoint")
    wardrobe.add_argument("folder", type=Path)
    wardrobe.add_argument("--device", default="cpu")
    wardrobe.add_argument("--workers", type=int, default=0, help="processes that encode ahead")
    wardrobe.set_defaults(run=lambda o: _make_wardrobe(o.folder, o.device, o.workers))
    return parser.parse_args(arguments)


def _make_wardrobe(folder: Path, device: str, workers: int) -> None:
    """Every stage goes on where it was killed; nothing is done twice."""
    start, decoder, made = folder / "start", folder / "decoder", folder / "wardrobe-small"
    recipe = read_config(Path(__file__).with_name("wardrobe_small.toml"))
    config = replace(recipe, checkpoint=str(start), out=str(folder / "transformer"), device=device)
    if not start.exists():
        start_wardrobe(start, AutoencoderConfig(), TransformerConfig())
    train_decoder(decoder, AutoencoderConfig(), report=_report)
    install_decoder(start, decoder)
    if workers:
        prefill(config, workers, _report)
    Trainer(config, report=_report).train(on_validation=draw_grid)
    export_checkpoint(start, made, folder / "transformer", decoder)
    _report(f"made {made}")


def _report(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
