"""What stops a run in time, and what a run goes on with when it is started again."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from kontext_model import sampling
from kontext_model.training import trainer as trainers
from kontext_model.training.config import (
    DataConfig,
    Phase,
    TrainingConfig,
    ValidationConfig,
)  # fmt: skip
from kontext_model.training.grid import draw_grid
from kontext_model.training.run_state import STATE_NAME
from kontext_model.training.trainer import DivergedError, Trainer


def _config(folder: Path, start: Path | str, **changes: object) -> TrainingConfig:
    config = TrainingConfig(
        checkpoint=str(start),
        out=str(folder),
        phases=(Phase(64 * 64, 4, 2, 1e-3, warmup=0),),
        data=DataConfig(count=3),
        validation=ValidationConfig(every=0, count=1, steps=1),
        save_every_s=0.0,
    )
    return replace(config, **changes)  # type: ignore[arg-type]


def _quiet(config: TrainingConfig) -> Trainer:
    return Trainer(config, report=lambda line: None)


def test_a_gradient_that_is_no_number_stops_before_the_state_is_spoilt(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = _quiet(_config(tmp_path, tiny_folder))
    trainer.train(until=2)
    state = (tmp_path / STATE_NAME).read_bytes()
    measure = trainers.flow_loss

    def spoil(prediction: torch.Tensor, *given: Any) -> torch.Tensor:
        prediction.register_hook(lambda gradient: gradient * float("nan"))
        return measure(prediction, *given)

    monkeypatch.setattr(trainers, "flow_loss", spoil)
    with pytest.raises(DivergedError, match=r"the gradient of step 3 is nan; the state in .* is from before"):
        trainer.train()
    assert (tmp_path / STATE_NAME).read_bytes() == state
    assert all(value.isfinite().all() for value in trainer.weights.values()), "nor do weights move"


def test_a_grid_reads_as_much_of_a_prompt_as_its_phase(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    phase = Phase(64 * 64, 1, 2, 1e-3, warmup=0)
    trainer = _quiet(_config(tmp_path, tiny_folder, phases=(replace(phase, text_length=5), phase)))
    seen: list[int] = []
    denoise = sampling.denoise

    def watch(*given: Any) -> torch.Tensor:
        seen.append(given[4].sequence.shape[1])
        return denoise(*given)

    monkeypatch.setattr(sampling, "denoise", watch)
    trainer.train(on_validation=None, until=1)
    draw_grid(trainer)
    trainer.train()
    draw_grid(trainer)
    assert seen == [5, 16]
