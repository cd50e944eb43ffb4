"""Training on one's own triples, from the command on: checks first, precision, several processes, what a run leaves."""

import io
import os
import re
import socket
import subprocess
import sys
import tomllib
import warnings
from collections.abc import Iterator
from dataclasses import is_dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from kontext_model import Edit, KontextEditor, checkpoint, wardrobe
from kontext_model.cli import app
from kontext_model.revision import Defaults
from kontext_model.text import CutPromptWarning
from kontext_model.training import __main__ as making
from kontext_model.training import decoder, outline, shipping
from kontext_model.training import trainer as trainers
from kontext_model.training.autoencoder import AutoencoderConfig
from kontext_model.training.command import train
from kontext_model.training.config import (
    PRECISIONS,
    ConfigError,
    DataConfig,
    LoraConfig,
    Phase,
    TrainingConfig,
    ValidationConfig,
    read_config,
)  # fmt: skip
from kontext_model.training.decoder import DecoderConfig
from kontext_model.training.progress import Pace, open_progress
from kontext_model.training.run_state import STATE_NAME, DivergedError, read_average
from kontext_model.training.settle import SettleConfig
from kontext_model.training.shipping import TransformerConfig
from kontext_model.training.survey import describe, survey
from kontext_model.training.trainer import Trainer
from kontext_model.training.triples import TripleError
from kontext_model.wardrobe import draw

PROMPTS = (
    "flat lay",
    "flat lay on grey",
    "flat lay of the whole set of clothes, as a shop would lay it on a white table",
)


@pytest.fixture
def triples(tmp_path: Path) -> Path:
    """Six rows as people have them: two shapes, one photo turned by its camera."""
    lines = ["condition,prompt,target,note"]
    for number in range(6):
        sample = draw(number, (64, 96) if number % 3 else (64, 64))
        sample.photo.save(tmp_path / f"photo-{number}.jpg")
        target, exif = sample.target, Image.Exif()
        if number == 1:
            exif[274] = 6  # stored lying, to be turned upright
            target = target.transpose(Image.Transpose.ROTATE_90)
        target.save(tmp_path / f"flat-{number}.jpg", exif=exif)
        lines.append(f'photo-{number}.jpg,"{PROMPTS[number % 3]}",flat-{number}.jpg,as bought')
    path = tmp_path / "triples.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _write_config(folder: Path, start: Path, triples: Path, more: str = "", out: str = "run") -> Path:
    path = folder / f"{out}.toml"
    path.write_text(
        f'checkpoint = "{start}"\nout = "{folder / out}"\nguidance = [1.0, 4.0]\nsave_every_s = 0.0\n{more}\n'
        f'[data]\nsource = "{triples}"\n[validation]\nevery = 2\ncount = 2\nsteps = 1\n'
        "[lora]\nrank = 2\nalpha = 2\n"
        "[[phases]]\narea_px = 4096\nsteps = 4\nbatch = 2\nrate = 1e-2\nwarmup = 0\n",
        encoding="utf-8",
    )
    return path


def _quiet(config: TrainingConfig) -> Trainer:
    return Trainer(config, report=lambda line: None)


def _config(folder: Path, start: Path, **changes: object) -> TrainingConfig:
    config = TrainingConfig(
        checkpoint=str(start),
        out=str(folder),
        phases=(Phase(64 * 64, 4, 2, 1e-3, warmup=0),),
        data=DataConfig(count=3),
        validation=ValidationConfig(every=0, count=1),
        save_every_s=0.0,
    )
    return replace(config, **changes)  # type: ignore[arg-type]


def test_a_check_reads_everything_counts_and_leaves_nothing(tmp_path: Path, tiny_folder: Path, triples: Path) -> None:
    done = CliRunner().invoke(app, ["train", "--check", str(_write_config(tmp_path, tiny_folder, triples))])
    assert done.exit_code == 0, done.output
    assert "6 triples, 2 for validation" in done.output
    assert "at 4096 px  48x80: 4, 64x64: 2" in done.output, "the turned photo counts as it stands"
    assert "3 prompts, 1 longer than the 16 tokens that T5 reads" in done.output
    assert "loses 'as a shop would lay it on a white table'" in done.output
    assert not (tmp_path / "run").exists()


def test_a_check_finds_the_broken_image(tmp_path: Path, tiny_folder: Path, triples: Path) -> None:
    whole = (tmp_path / "flat-4.jpg").read_bytes()
    (tmp_path / "flat-4.jpg").write_bytes(whole[: len(whole) // 2])
    config = _write_config(tmp_path, tiny_folder, triples)
    done = CliRunner().invoke(app, ["train", "--check", str(config)])
    assert done.exit_code == 2 and f"{triples}, line 6: target" in done.stderr and "flat-4.jpg" in done.stderr


def test_a_target_that_is_no_layer_is_told_with_file_and_key(tmp_path: Path, tiny_folder: Path, triples: Path) -> None:
    path = _write_config(tmp_path, tiny_folder, triples)
    path.write_text(path.read_text().replace("alpha = 2", 'alpha = 2\ntargets = ["to_q", "attn.to_x"]'))
    with pytest.raises(
        ConfigError,
        match=rf"{path.name}: lora.targets\[1\] 'attn.to_x' is no linear layer .* attn.to_out.0, attn.to_q, ",
    ):
        train(path, console=Console(quiet=True))


def test_the_survey_counts_what_is_trained(tmp_path: Path, tiny_folder: Path) -> None:
    for lora in (None, LoraConfig(rank=3, targets=("attn.to_q", "proj_out"))):
        config = _config(tmp_path, tiny_folder, lora=lora)
        assert survey(config).trained == sum(value.numel() for value in _quiet(config).weights.values())


def test_a_lora_is_trained_on_rows_and_used(tmp_path: Path, tiny_folder: Path, triples: Path) -> None:
    path = _write_config(tmp_path, tiny_folder, triples)
    console = Console(file=io.StringIO(), width=200)
    with warnings.catch_warnings():
        warnings.simplefilter("error", CutPromptWarning)  # told once, by the survey
        train(path, console=console)
    run = tmp_path / "run"
    told = console.file.getvalue()  # type: ignore[attr-defined]
    assert "step 4/4  loss " in told and f"made {run / 'lora'}" in told
    assert sorted(each.name for each in (run / "grids").iterdir()) == ["step-000002.png", "step-000004.png"]
    with Image.open(run / "grids" / "step-000004.png") as sheet:
        assert sheet.width > 2 * 3 * 48, "photo, result and target of two rows"
    assert [each.name for each in (run / "lora").iterdir()] == ["pytorch_lora_weights.safetensors"]
    weights, state = run / "lora" / "pytorch_lora_weights.safetensors", (run / STATE_NAME).read_bytes()
    train(path, console=console)  # finished: again changes nothing
    assert (run / STATE_NAME).read_bytes() == state
    editor = KontextEditor.open(tiny_folder)
    photo = draw(1, 64).photo
    edits = [Edit("flat lay", steps=2), Edit("flat lay", steps=2, lora=weights, lora_scale=5.0)]
    plain, changed = editor([photo] * 2, edits)
    assert np.asarray(plain).tobytes() != np.asarray(changed).tobytes()


def test_full_training_leaves_a_checkpoint(tmp_path: Path, tiny_folder: Path, triples: Path) -> None:
    path = _write_config(tmp_path, tiny_folder, triples, more='precision = "bfloat16"')
    path.write_text(path.read_text().replace("[lora]\nrank = 2\nalpha = 2\n", ""))
    for _ in range(2):
        train(path, console=Console(quiet=True))
    made = KontextEditor.open(tmp_path / "run" / "checkpoint-4")
    weights, steps = read_average(tmp_path / "run")
    assert steps == 4 and all(value.dtype == torch.float32 for value in weights.values())
    name = "x_embedder.weight"
    assert torch.equal(dict(made.checkpoint.transformer.named_parameters())[name], weights[name].half().float())


def test_prompts_are_encoded_once_and_kept(tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = _config(tmp_path / "run", tiny_folder)
    first = _quiet(config)
    prompt = first.batches.source.prompts(0)[0]
    fresh = KontextEditor.open(tiny_folder).encode_text([prompt])
    assert torch.equal(first.batches.embeds.read(prompt).sequence, fresh.sequence)
    assert torch.equal(first.batches.embeds.read("").pooled, KontextEditor.open(tiny_folder).encode_text([""]).pooled)
    opened: list[str] = []
    open_part = checkpoint._open_part
    monkeypatch.setattr(checkpoint, "_open_part", lambda *given: opened.append(given[1]) or open_part(*given))
    _quiet(config).train()
    assert opened and not any(part.startswith(("text_encoder", "tokenizer")) for part in opened)
    damaged = first.batches.embeds.path(prompt)
    damaged.write_bytes(damaged.read_bytes()[:100])
    with pytest.raises(FileNotFoundError, match=r"delete the file"):
        first.batches.embeds.read(prompt)


def test_a_lora_in_bfloat16_stands_on_a_frozen_bfloat16_model(tmp_path: Path, tiny_folder: Path) -> None:
    losses = {}
    for precision in ("float32", "bfloat16"):
        config = _config(tmp_path / precision, tiny_folder, lora=LoraConfig(rank=2), precision=precision)
        trainer = _quiet(config)
        losses[precision] = trainer._take_step()
    trained = {value.dtype for value in trainer.weights.values()}
    frozen = {value.dtype for value in trainer.model.parameters() if not value.requires_grad}
    assert trained == {torch.float32} and frozen == {torch.bfloat16}
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.02)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_gradient_checkpointing_trains_the_same_weights(tmp_path: Path, tiny_folder: Path, precision: str) -> None:
    config = _config(tmp_path, tiny_folder, precision=precision)
    trainers = [_quiet(replace(config, out=str(tmp_path / str(on)), gradient_checkpointing=on)) for on in (False, True)]
    for each in trainers:
        each.train(until=2)
    plain, spared = (each.weights["x_embedder.weight"] for each in trainers)
    assert torch.allclose(plain, spared, atol=1e-6)


def test_a_loss_that_is_no_number_stops_before_the_state_is_spoilt(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = _quiet(_config(tmp_path, tiny_folder))
    trainer.train(until=2)
    state = (tmp_path / STATE_NAME).read_bytes()
    monkeypatch.setattr(trainers, "flow_loss", lambda prediction, *_: (prediction * float("nan")).mean())
    with pytest.raises(DivergedError, match=r"the loss of step 3 is nan; the state in .* is from before"):
        trainer.train()
    assert (tmp_path / STATE_NAME).read_bytes() == state


def test_an_image_that_breaks_meanwhile_is_named_and_the_run_goes_on_once_it_is_whole(
    tmp_path: Path, tiny_folder: Path, triples: Path
) -> None:
    config = read_config(_write_config(tmp_path, tiny_folder, triples))
    config = replace(config, validation=replace(config.validation, every=0), phases=(Phase(4096, 8, 2, 1e-3),))
    trainer = _quiet(config)
    whole = {path: path.read_bytes() for path in tmp_path.glob("flat-*.jpg")}
    trainer.train(until=2)
    for path, data in whole.items():
        path.write_bytes(data[: len(data) // 2])
    with pytest.raises(TripleError, match=r"triples.csv, line \d: target .*flat-\d.jpg cannot be read"):
        trainer.train()
    for path, data in whole.items():
        path.write_bytes(data)
    names = [path.name for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert not any(name.startswith(".") for name in names), "nothing half-written"
    resumed = _quiet(config)
    assert resumed.step == trainer.step >= 2
    resumed.train()


def test_a_lora_goes_on_with_its_own_checkpoint_only(tmp_path: Path, tiny_folder: Path, tiny_copy: Path) -> None:
    config = _config(tmp_path / "run", tiny_folder, lora=LoraConfig(rank=2))
    _quiet(config).train()
    path = tiny_copy / "kontext.json"
    path.write_text(path.read_text().replace("}", " }"))
    with pytest.raises(ValueError, match=r"was trained with checkpoint revision .* name another `out`"):
        _quiet(replace(config, checkpoint=str(tiny_copy)))
    with pytest.raises(ValueError, match="does not fit the model; was its config changed"):
        _quiet(replace(config, lora=None))


def test_a_bar_shows_loss_and_time_left_on_a_terminal_and_lines_elsewhere() -> None:
    seen = {}
    for terminal in (True, False):
        console = Console(file=io.StringIO(), force_terminal=terminal, width=120, legacy_windows=False)
        with open_progress(console) as (say, on_pace):
            say("6 triples")
            for step in range(1, 51):
                on_pace(Pace(step, 200, 0.5, 2.0))
        seen[terminal] = console.file.getvalue()  # type: ignore[attr-defined]
    assert "━" in seen[True] and "50/200" in seen[True] and "loss 0.5000  2.00 s/step  5.0 min left" in seen[True]
    assert seen[False].splitlines() == [
        "6 triples",
        "step 25/200  loss 0.5000  2.00 s/step  5.8 min left",
        "step 50/200  loss 0.5000  2.00 s/step  5.0 min left",
    ]


def test_processes_that_cannot_share_a_batch_evenly_are_refused(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainers.Accelerator, "num_processes", 4)
    with pytest.raises(ConfigError, match=r"phases\[0\].batch is 2, which 4 processes cannot share evenly"):
        _quiet(_config(tmp_path, tiny_folder))


def _launch(config: Path, number: int, port: int) -> subprocess.Popen[str]:
    place = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "kontext_model.cli", "train", "--threads", "1", "--encoders", "1", str(config)],
        env=environment | {name: str(value) for name, value in place.items()},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_two_processes_go_on_with_a_run_of_one_to_the_same_weights(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outline, "PASSES", 1)  # the processes that go on find the reader that is fitted here
    paths = {name: tmp_path / f"{name}.toml" for name in ("alone", "shared")}
    for name, path in paths.items():
        path.write_text(
            f'checkpoint = "{tiny_folder}"\nout = "{tmp_path / name}"\nsave_every_s = 0.0\naccumulation = 2\n'
            "[objective]\nrollout = 0.5\noutline = 2.0\n[data]\ncount = 6\n[validation]\nevery = 0\ncount = 1\n"
            "[lora]\nrank = 2\nalpha = 2\n"
            "[[phases]]\narea_px = 4096\nsteps = 2\nbatch = 2\nrate = 1e-2\nwarmup = 0\n"
            "[[phases]]\narea_px = 1024\nsteps = 2\nbatch = 2\nrate = 1e-2\nwarmup = 0\nfresh = 80\n"
        )
    alone = read_config(paths["alone"])
    _quiet(alone).train()
    path = paths["shared"]
    _quiet(read_config(path)).train(until=1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [_launch(path, number, port) for number in range(2)]
    first, second = (process.communicate(timeout=120)[0] for process in processes)
    assert [process.returncode for process in processes] == [0, 0], first + second
    assert "latents of 3 triples at 4096 px are cached" in first, "half of six"
    assert "step 4/4" in first and f"made {tmp_path / 'shared' / 'lora'}" in first
    assert not any(word in second for word in ("step", "latents", "made")), "one process speaks and writes"
    (one, steps), (other, shared_steps) = (read_average(tmp_path / name) for name in ("alone", "shared"))
    assert steps == shared_steps == 4
    untrained = dict(_quiet(replace(alone, out=str(tmp_path / "untrained"))).weights)
    for name, value in one.items():
        assert torch.allclose(value, other[name], atol=1e-5), name
    assert max((value - untrained[name]).abs().max().item() for name, value in one.items()) > 1e-3


def test_a_survey_is_told_in_few_lines(tmp_path: Path, tiny_folder: Path) -> None:
    lines = list(describe(survey(_config(tmp_path, tiny_folder))))
    assert lines[0].startswith("3 triples, 1 for validation; ") and len(lines) < 8


def test_a_survey_tells_what_is_drawn_from_what_is_kept(tmp_path: Path, tiny_folder: Path, triples: Path) -> None:
    fresh = Phase(32 * 32, 2, 2, 1e-3, fresh=40)
    kept = _config(tmp_path, tiny_folder)
    found = survey(replace(kept, phases=(fresh, *kept.phases, fresh)))
    assert found.triples == 163 and list(found.buckets) == [64 * 64] and found.drawn == {32 * 32: 160}
    assert "at 1024 px  160 drawn while training goes on" in describe(found)
    own = ValidationConfig(count=1, source=str(triples))
    found = survey(replace(kept, phases=(fresh,), validation=own), read_images=True)
    assert found.triples == 80 and not found.buckets


def test_compiled_blocks_train_to_the_same_weights(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))  # traced, not built
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    plain = _quiet(_config(tmp_path / "plain", tiny_folder))
    plain.train()
    compiled = _quiet(_config(tmp_path / "compiled", tiny_folder, compile=True))
    compiled.train()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 2
    torch._dynamo.reset()
    assert plain.weights.keys() == compiled.weights.keys()
    for name, value in plain.weights.items():
        torch.testing.assert_close(value, compiled.weights[name], rtol=0, atol=1e-4, msg=name)


def test_the_how_tos_configuration_reads(tmp_path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs" / "training.md").read_text(encoding="utf-8")
    path = tmp_path / "lora.toml"
    path.write_text(page.partition("```toml\n")[2].partition("```")[0], encoding="utf-8")
    config = read_config(path)
    assert config.lora is not None and config.data.source == "triples.csv" and config.phases[0].rate == 1e-4


def _list_keys(kind: Any, dot: str = "") -> Iterator[str]:
    for name, hint in get_type_hints(kind).items():
        parts = [part for part in (hint, *get_args(hint)) if is_dataclass(part)]
        yield from _list_keys(parts[0], f"{dot}{name}.") if parts else [dot + name]


def _list_set(table: dict[str, Any], dot: str = "") -> Iterator[str]:
    for name, value in table.items():
        within = value[0] if name == "phases" else value
        yield from _list_set(within, f"{dot}{name}.") if isinstance(within, dict) else [dot + name]


def test_the_how_to_explains_every_key() -> None:
    page = (Path(__file__).parents[3] / "docs" / "training.md").read_text(encoding="utf-8")
    block = re.sub(r"^# (?=\w+ = )", "", page.partition("```toml\n")[2].partition("```")[0], flags=re.MULTILINE)
    assert sorted(_list_set(tomllib.loads(block))) == sorted(_list_keys(TrainingConfig))
    assert [line for line in block.splitlines() if " = " in line and "  # " not in line] == []


def test_a_short_making_is_warmed_up_in_proportion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[TrainingConfig] = []

    def stand_in(config: TrainingConfig, *_: object) -> SimpleNamespace:
        made.append(config)
        return SimpleNamespace(train=lambda **_: None)

    monkeypatch.setattr(making, "Trainer", stand_in)
    assert making.main(["wardrobe", str(tmp_path), "--stage", "transformer", "--length", "0.05"]) == 0
    recipe = read_config(making.RECIPE)
    for short, whole in zip(made[0].phases, recipe.phases, strict=True):
        assert (short.steps, short.warmup) == (round(whole.steps / 20), round(whole.warmup / 20))


@pytest.fixture
def small_making(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The recipe of the shipped checkpoint, in moments."""
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        'checkpoint = "unset"\nout = "unset"\n[data]\ncount = 2\n[objective]\nrollout = 0.5\n[validation]\nevery = 0\n'
        "[[phases]]\narea_px = 4096\nsteps = 1\nbatch = 1\nrate = 1e-3\n"
    )
    vae = AutoencoderConfig(fit_samples=8)
    monkeypatch.setattr(making, "RECIPE", recipe)
    monkeypatch.setattr(making, "AutoencoderConfig", lambda: vae)
    monkeypatch.setattr(making, "TransformerConfig", lambda: TransformerConfig(double_blocks=1, single_blocks=1))
    monkeypatch.setattr(making, "DecoderConfig", lambda: DecoderConfig(vae, crop_steps=1, whole_steps=1, batch=1))
    monkeypatch.setattr(making, "SettleConfig", lambda: SettleConfig(count=1, steps=1, batch=1))
    monkeypatch.setattr(shipping, "WARDROBE_DEFAULTS", Defaults(area_px=4096, text_length=144, steps=1, guidance=2.5))
    monkeypatch.setattr(decoder, "POOL", 1)


@pytest.mark.usefixtures("small_making")
def test_nothing_untrained_is_exported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for stage, code in (("start", 0), ("export", 2)):
        assert making.main(["wardrobe", str(tmp_path / "run"), "--stage", stage]) == code
    seen = capsys.readouterr()
    assert "made" not in seen.out and "transformer/state.pt does not exist: train first" in seen.err
    assert not (tmp_path / "run" / "wardrobe-small").exists()


@pytest.mark.usefixtures("small_making")
def test_one_command_makes_the_shipped_checkpoint_from_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = tmp_path / "run" / "wardrobe-small"
    assert making.main(["wardrobe", str(tmp_path / "run")]) == 0
    assert f"made {made}" in capsys.readouterr().out
    shipped = Path(str(wardrobe.__file__)).parent / "checkpoint"
    names = {path.relative_to(shipped) for path in shipped.rglob("*") if path.is_file()}
    assert names == {path.relative_to(made) for path in made.rglob("*") if path.is_file()}
    scheduler = Path("scheduler", "scheduler_config.json")
    assert (made / scheduler).read_text() == (shipped / scheduler).read_text()
    [picture] = KontextEditor.open(made)([draw(1, (64, 64)).photo], [Edit("flat lay", width=64, height=64, steps=1)])
    assert picture.size == (64, 64)
    _see_it_made_again(tmp_path / "run", monkeypatch)


def _see_it_made_again(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(part: str) -> bytes:
        weights = run / part / "diffusion_pytorch_model.safetensors"
        assert weights.stat().st_mode & 0o777 == 0o644, "others may read it"
        return weights.read_bytes()

    before = {part: read(part) for part in ("start/vae", "wardrobe-small/transformer")}
    with monkeypatch.context() as killing:
        killing.setattr(AutoencoderKL, "save_pretrained", _write_half_and_die)
        with pytest.raises(KeyboardInterrupt):
            making.main(["wardrobe", str(run), "--stage", "decoder"])
    assert read("start/vae") == before["start/vae"]
    for more, same in ((("--stage", "export"), True), (("--length", "2"), False)):
        assert making.main(["wardrobe", str(run), *more]) == 0
        assert all((read(part) == bytes_before) is same for part, bytes_before in before.items())
    assert not [each.name for each in run.rglob(".*")], "nothing left beside"


def _write_half_and_die(vae: Any, folder: str) -> None:
    (Path(folder) / "diffusion_pytorch_model.safetensors").write_bytes(b"half")
    raise KeyboardInterrupt
