"""What stops a run in time, and what a run goes on with when it is started again."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState
from typer.testing import CliRunner

from kontext_model import sampling
from kontext_model.cli import app
from kontext_model.revision import CheckpointError
from kontext_model.training import command
from kontext_model.training import trainer as trainers
from kontext_model.training.command import export
from kontext_model.training.config import (
    ConfigError,
    DataConfig,
    LoraConfig,
    Phase,
    TrainingConfig,
    ValidationConfig,
)  # fmt: skip
from kontext_model.training.grid import draw_grid
from kontext_model.training.run_state import STATE_NAME, DivergedError
from kontext_model.training.survey import survey
from kontext_model.training.trainer import Trainer


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


def _write_config(folder: Path, start: Path, more: str) -> Path:
    path = folder / "train.toml"
    path.write_text(
        f'checkpoint = "{start}"\nout = "{folder / "run"}"\n{more}\n[data]\ncount = 2\n[validation]\nevery = 0\n'
        "[[phases]]\narea_px = 4096\nsteps = 2\nbatch = 1\nrate = 1e-3\n",
        encoding="utf-8",
    )
    return path


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


@pytest.fixture
def hub(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A hub whose repositories are the tiny checkpoint; `head` is their newest commit, `opened` what was asked for."""
    import huggingface_hub

    hub = SimpleNamespace(head="a" * 40, opened=[])

    def download(ref: str, revision: str, **_: object) -> str:
        hub.opened.append(revision)
        return str(tiny_folder)

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: SimpleNamespace(sha=hub.head))
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_, **__: str(tiny_folder / "kontext.json"))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return hub


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=2)])
def test_a_run_goes_on_with_the_commit_it_began_with(
    tmp_path: Path, hub: SimpleNamespace, lora: LoraConfig | None
) -> None:
    config = _config(tmp_path, "owner/name", lora=lora)
    _quiet(config).train(until=1)
    began, hub.head = hub.head, "b" * 40
    survey(config)
    resumed = _quiet(config)
    assert resumed.step == 1
    resumed.train()
    export(config)
    assert set(hub.opened) == {began}


def test_a_run_is_pinned_by_its_configuration(tmp_path: Path, hub: SimpleNamespace, tiny_folder: Path) -> None:
    config = _config(tmp_path / "run", "owner/name", lora=LoraConfig(rank=2))
    _quiet(config).train(until=1)
    began, hub.head = hub.head, "b" * 40
    with pytest.raises(ValueError, match=f"trained with checkpoint revision {began}, not {hub.head}; .*another `out`"):
        _quiet(replace(config, revision="main"))
    assert _quiet(config).step == 1, "asked as before, it is what it was"
    hub.opened.clear()
    survey(replace(config, revision="c" * 40))
    assert hub.opened == ["c" * 40]
    with pytest.raises(CheckpointError, match=f"not the asked {'d' * 40}"):
        _quiet(_config(tmp_path / "folder", tiny_folder, revision="d" * 40))


def test_a_lora_is_neither_trained_on_nor_written_with_another_alpha(tmp_path: Path, tiny_folder: Path) -> None:
    config = _config(tmp_path, tiny_folder, lora=LoraConfig(rank=2, alpha=2.0))
    _quiet(config).train(until=1)
    for changed, told in (
        (LoraConfig(rank=2, alpha=4.0), r"lora.alpha 2.0, not 4.0"),
        (LoraConfig(rank=3, alpha=2.0), r"lora.rank 2, not 3"),
        (LoraConfig(rank=2, alpha=2.0, targets=("attn.to_q",)), r"lora.targets \['attn.to_k', .*not \['attn.to_q'\]"),
    ):
        other = replace(config, lora=changed)
        for use in (_quiet, export):
            with pytest.raises(ValueError, match=rf"state.pt was trained with {told}; .*another `out`"):
                use(other)
    assert export(config).is_dir() and _quiet(config).step == 1


def test_what_an_optimizer_is_told_holds_from_where_the_run_goes_on(tmp_path: Path, tiny_folder: Path) -> None:
    config = _config(tmp_path, tiny_folder)
    _quiet(config).train(until=1)
    resumed = _quiet(replace(config, betas=(0.8, 0.95), weight_decay=0.5))
    assert [group["weight_decay"] for group in resumed.optimizer.param_groups] == [0.5, 0.0]
    assert {group["betas"] for group in resumed.optimizer.param_groups} == {(0.8, 0.95)}


def test_what_a_killed_save_left_is_cleared(tmp_path: Path, tiny_folder: Path) -> None:
    config = _config(tmp_path, tiny_folder)
    _quiet(config).train(until=1)
    left = tmp_path / f".{STATE_NAME}.12345"
    left.write_bytes(b"half")
    assert _quiet(config).step == 1 and not left.exists()


@pytest.mark.parametrize(
    ("device", "told"),
    [("gpu", "device must be cpu, cuda or cuda:NUMBER, not 'gpu'"), ("cuda", "device is 'cuda', but torch")],
)
def test_a_device_that_is_not_there_is_told_before_anything_is_read(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, device: str, told: str
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(command, "survey", lambda *_, **__: pytest.fail("read the data"))
    path = _write_config(tmp_path, tiny_folder, f'device = "{device}"')
    done = CliRunner().invoke(app, ["train", "--check", str(path)])
    assert done.exit_code == 2 and f"{path}: {told}" in done.stderr, done.output
    if device == "cuda":
        with pytest.raises(ConfigError, match=told):
            _quiet(_config(tmp_path / "run", tiny_folder, device=device))


def test_a_full_memory_is_told_in_a_line_with_what_helps(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(*_: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity")

    monkeypatch.setattr(trainers, "flow_loss", fill)
    done = CliRunner().invoke(app, ["train", str(_write_config(tmp_path, tiny_folder, ""))])
    assert done.exit_code == 2 and "Tried to allocate 2.00 GiB" in done.stderr, done.output
    assert all(key in done.stderr for key in ("gradient_checkpointing", "batch", "area_px", "[lora]", "precision"))


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


@pytest.mark.parametrize("begin", [lambda path, config: command.train(path), lambda path, config: _quiet(config)])
def test_processes_wait_long_for_the_one_that_draws_a_grid(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, begin: Callable[[Path, TrainingConfig], object]
) -> None:
    class Joined(Exception):
        pass

    def join(**given: Any) -> None:
        raise Joined(given["timeout"].total_seconds() if "timeout" in given else 600)

    for state in (PartialState, AcceleratorState):
        monkeypatch.setattr(state, "_shared_state", {})
    monkeypatch.setattr(torch.distributed, "init_process_group", join)
    place = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": 1, "OMP_NUM_THREADS": 1}
    for name, value in place.items():
        monkeypatch.setitem(os.environ, name, str(value))
    monkeypatch.setitem(os.environ, "MASTER_ADDR", "127.0.0.1")
    path = _write_config(tmp_path, tiny_folder, "")
    with pytest.raises(Joined) as joined:
        begin(path, _config(tmp_path / "run", tiny_folder))
    assert joined.value.args[0] >= 3600
