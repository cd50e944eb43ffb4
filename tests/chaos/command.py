"""`kontext` with the echo model in its workers: `python -m tests.chaos.command up | worker | dispatch …`.

All else is the real command line, its supervisor included.
"""

import sys
from collections.abc import Sequence

from kontext_model.revision import CheckpointRef, Defaults
from orchestrator.cli import crew, main, services, up
from orchestrator.settings import Settings

CHECKPOINT = CheckpointRef("echo", None, "c4a05" * 8, Defaults(area_px=64 * 64, text_length=8, steps=4, guidance=1.0))


def worker_command(stages: Sequence[str]) -> tuple[str, ...]:
    """How a worker process with the echo model is executed."""
    return (sys.executable, "-m", "tests.chaos.worker", "--stages", ",".join(stages), "--name", "{name}")


def pin_checkpoint(settings: Settings) -> CheckpointRef:
    """The echo model, whatever the settings name."""
    return CHECKPOINT


if __name__ == "__main__":
    for module in (crew, services, up):
        vars(module)["worker_command"] = worker_command
    for module in (services, up):
        vars(module)["pin_checkpoint"] = pin_checkpoint
    main()
