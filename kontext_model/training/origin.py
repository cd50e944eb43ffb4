"""What a run begins with: its checkpoint, pinned.

Owns that all of a run's parts, now and whenever it goes on, are of one revision: a hub id is asked for its commit once,
and the run's folder keeps the answer.
"""

import json
from pathlib import Path

from kontext_model.revision import CheckpointRef, resolve, write_json
from kontext_model.training.config import TrainingConfig

PINS_NAME = "commits.json"
"""Commits by what a configuration asked the hub for."""


def pin(config: TrainingConfig) -> CheckpointRef:
    """The run's checkpoint; kept in the run's folder where it is a hub's. Raises CheckpointError."""
    out = Path(config.out)
    pinned = resolve(config.checkpoint, find_revision(config), out / "revisions.json")
    if pinned.folder is None:
        write_json(out / PINS_NAME, _read_pins(config) | {_ask(config): pinned.revision})
    return pinned


def find_revision(config: TrainingConfig) -> str | None:
    """The commit that the run began with; else what the configuration says."""
    return _read_pins(config).get(_ask(config), config.revision)


def _ask(config: TrainingConfig) -> str:
    return f"{config.checkpoint}@{config.revision}" if config.revision else config.checkpoint


def _read_pins(config: TrainingConfig) -> dict[str, str]:
    try:
        return dict(json.loads((Path(config.out) / PINS_NAME).read_bytes()))
    except FileNotFoundError:
        return {}
