"""What `kontext-model train CONFIG.toml` does: check, train with a progress bar, write what others can load.

Owns the order. Also what `torchrun` and `accelerate launch` start, once for each GPU.
"""

import warnings
from pathlib import Path

from accelerate import PartialState
from rich.console import Console

from kontext_model.text import CutPromptWarning
from kontext_model.training.config import ConfigError, TrainingConfig, read_config
from kontext_model.training.device import PATIENCE, check_device
from kontext_model.training.grid import draw_grid
from kontext_model.training.origin import pin
from kontext_model.training.prefill import prefill
from kontext_model.training.progress import open_progress
from kontext_model.training.run_state import read_average
from kontext_model.training.shipping import export_checkpoint, export_lora
from kontext_model.training.survey import describe, survey
from kontext_model.training.trainer import Trainer


def train(path: Path, check: bool = False, encoders: int = 0, console: Console | None = None) -> None:
    """Train as a TOML file says, from where the run's folder ends.

    `check` reads everything and trains nothing. `encoders` processes encode the images ahead, and draw those that a
    phase wants fresh. What the file says holds from where the run goes on; ValueError for a folder whose run has other
    weights, another optimizer, or another LoRA or one on another revision. Raises ConfigError, TripleError,
    CheckpointError, DivergedError, LostProcessError, TooLargeError.
    """
    config = read_config(path)
    state = PartialState(cpu=config.device == "cpu", timeout=PATIENCE)
    console = console or Console(quiet=not state.is_main_process)
    with open_progress(console) as (say, on_pace):
        try:
            check_device(config)
            for line in describe(survey(config, read_images=check)):
                say(line)
            if check:
                return
            with state.main_process_first():
                pin(config)
            if encoders:
                prefill(config, encoders, say, state.process_index, state.num_processes)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", CutPromptWarning)  # the survey has told of them
                trainer = Trainer(config, report=say, drawers=encoders)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error
        trainer.train(on_validation=draw_grid, on_pace=on_pace)
        if trainer.accelerator.is_main_process:
            say(f"made {export(config)}")


def export(config: TrainingConfig, folder: Path | None = None) -> Path:
    """Write what a run has reached: its LoRA, or the whole checkpoint in half precision; gives where it lies.

    Unset, `folder` is `lora`, or `checkpoint-STEP`, in the run's folder. Raises FileNotFoundError for a run without a
    state, ValueError for another LoRA than the configuration's, FileExistsError for another checkpoint's folder that
    is not empty.
    """
    out = Path(config.out)
    if config.lora is not None:
        return export_lora(config, folder or out / "lora")
    own = out / f"checkpoint-{read_average(out)[1]}"
    if folder is None and own.is_dir():
        return own
    return export_checkpoint(pin(config), folder or own, transformer_run=out)
