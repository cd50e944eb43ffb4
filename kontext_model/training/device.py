"""Where a run computes: whether that is there, whether it holds the run, and how long processes wait for each other.

Owns the errors about it, which name the configuration's keys. Chooses nothing by itself.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch

from kontext_model.training.config import ConfigError, TrainingConfig

PATIENCE = timedelta(hours=6)
"""How long processes that share a run wait for one of them: one alone draws the grids. torch's own 10 minutes with NCCL
end a run over a long grid; that a process died is noticed at once by what started them."""


class TooLargeError(ValueError):
    """The run does not fit the memory; what it has saved is from before."""


def check_device(config: TrainingConfig) -> None:
    """Raise ConfigError for a GPU that is not there, without touching one."""
    device, count = torch.device(config.device), torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise ConfigError(
            f"device is {config.device!r}, but torch {torch.__version__} finds {count} GPUs here: set another, as "
            '"cpu", or see that torch is built for CUDA and the driver works'
        )


@contextmanager
def memory_watched() -> Iterator[None]:
    """Raises TooLargeError, with what helps, where the memory is full."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise TooLargeError(
            f"the memory is full ({'. '.join(str(error).split('. ')[:2]) or type(error).__name__}): set "
            "`gradient_checkpointing`, lower the phases' `batch` (and raise `accumulation`) or `area_px`, or train a "
            '[lora] with `precision` "bfloat16"; the run goes on from its last saved state'
        ) from error
