"""Training on triples that are drawn while the run goes on, and the decoder's last lessons from what a model draws."""

import multiprocessing
import os
import signal
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from kontext_model.canvas import Canvas
from kontext_model.checkpoint_maker import make_checkpoint
from kontext_model.cli import app
from kontext_model.editor import KontextEditor
from kontext_model.training import settle as settling
from kontext_model.training import supply
from kontext_model.training import trainer as trainers
from kontext_model.training.command import train
from kontext_model.training.config import ConfigError, DataConfig, Phase, TrainingConfig, ValidationConfig, read_config
from kontext_model.training.discriminator import Adversary
from kontext_model.training.latent_cache import LatentCache
from kontext_model.training.run_state import read_average
from kontext_model.training.settle import SettleConfig, draw_answers, settle_decoder
from kontext_model.training.supply import BLOCK, Drawings, DrawnSupply, encode_drawn
from kontext_model.training.trainer import Trainer
from kontext_model.training.triples import WardrobeSource


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("start") / "tiny", size="tiny")


def _config(out: Path, start: Path) -> TrainingConfig:
    return TrainingConfig(
        checkpoint=str(start),
        out=str(out),
        phases=(Phase(32 * 32, 3, 2, 1e-3, warmup=0, fresh=40), Phase(48 * 48, 3, 2, 1e-3, warmup=0, fresh=100)),
        data=DataConfig(count=3),
        validation=ValidationConfig(every=0, count=1),
        save_every_s=0.0,
    )


def _offers(drawn: DrawnSupply, steps: range) -> list[list[int]]:
    return [sorted(index for members in drawn.offer(step).values() for index in members) for step in steps]


def test_triples_enter_with_every_step_and_the_oldest_leave(
    tmp_path: Path, start: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supply, "WINDOW_BLOCKS", 2)
    config = _config(tmp_path, start)
    vae = KontextEditor.open(start, parts=frozenset({"decode"})).checkpoint.vae
    offers = _offers(DrawnSupply(config, vae), range(6))
    blocks = [(0, 1), (0, 1), (0, 2), (2, 4), (3, 5), (4, 6)]
    assert offers == [list(range(first * BLOCK, end * BLOCK)) for first, end in blocks]
    assert _offers(DrawnSupply(config, vae), range(4, 6)) == offers[4:], "a run that goes on is offered the same"


def test_a_run_that_goes_on_chooses_among_canvases_in_the_same_order(tmp_path: Path, start: Path) -> None:
    config = _config(tmp_path, start)
    shared = replace(config, phases=(config.phases[0], replace(config.phases[1], area_px=40 * 40)))
    vae = KontextEditor.open(start, parts=frozenset({"decode"})).checkpoint.vae
    unbroken = DrawnSupply(shared, vae)
    before, after = (list(unbroken.offer(step)) for step in (2, 3))
    assert Canvas(32, 48) in {*before} & {*after} and before[0] != after[0]
    assert list(DrawnSupply(shared, vae).offer(3)) == after


def test_drawers_end_with_what_there_is_to_draw(tmp_path: Path, start: Path) -> None:
    config = _config(tmp_path, start)
    last = Phase(32 * 32, 3, 2, 1e-3, warmup=0)
    vae = KontextEditor.open(start, parts=frozenset({"decode"})).checkpoint.vae
    drawn = DrawnSupply(replace(config, phases=(config.phases[0], last)), vae, drawers=1)
    others = set(multiprocessing.active_children())
    drawn.offer(0)
    assert set(multiprocessing.active_children()) - others
    drawn.offer(2)
    assert not set(multiprocessing.active_children()) - others


def test_many_pictures_are_encoded_a_few_at_a_time(start: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vae = KontextEditor.open(start, parts=frozenset({"decode"})).checkpoint.vae
    levels = torch.randint(256, (5, 2, 32, 48, 3), generator=torch.Generator().manual_seed(0)).byte()
    at_once = encode_drawn(vae, levels)
    sizes: list[int] = []
    encode = vae.encode
    monkeypatch.setattr(vae, "encode", lambda pixels: (sizes.append(len(pixels)), encode(pixels))[1])
    monkeypatch.setattr(supply, "ENCODED_PX", 4 * 32 * 48)
    torch.testing.assert_close(encode_drawn(vae, levels), at_once, rtol=0, atol=2e-3)
    assert sizes == [4, 4, 2]


def test_a_drawn_triple_is_the_source_s(tmp_path: Path, start: Path) -> None:
    config = _config(tmp_path, start)
    vae = KontextEditor.open(start, parts=frozenset({"decode"})).checkpoint.vae
    drawn = DrawnSupply(config, vae)
    canvas, (index, *_) = next(iter(drawn.offer(3).items()))
    assert canvas == WardrobeSource(0).canvas(index, 48 * 48)
    cached = LatentCache(tmp_path, vae, "").read(WardrobeSource(0, config.data.first_seed), index, canvas)
    assert torch.allclose(drawn.read([index], canvas)[0].float(), torch.stack(cached).float(), atol=2e-2)


def test_a_killed_run_on_drawn_triples_resumes_and_other_processes_draw_the_same(tmp_path: Path, start: Path) -> None:
    def trainer(out: str, drawers: int = 0) -> Trainer:
        return Trainer(_config(tmp_path / out, start), lambda line: None, drawers)

    unbroken = trainer("a")
    unbroken.train()
    for stop in (2, 4, None):  # in the first phase, in the second
        resumed = trainer("b", drawers=1 if stop is None else 0)
        resumed.train(until=stop)
    assert resumed.step == unbroken.step == 6
    for name, value in unbroken.weights.items():
        assert torch.equal(value, resumed.weights[name]), name


def test_processes_that_share_a_run_draw_each_block_once_between_them() -> None:
    shares = [Drawings(7, number, 3)[80, 32 * 32] for number in range(3)]
    whole = {each.canvas: each for each in Drawings(7)[80, 32 * 32]}
    for canvas, drawn in whole.items():
        parts = [each for share in shares for each in share if each.canvas == canvas]
        assert [index for part in parts for index in part.indices] == drawn.indices
        assert torch.equal(torch.cat([part.levels for part in parts]), drawn.levels)
    assert max(sum(len(each.indices) for each in share) for share in shares) < BLOCK / 2


@pytest.mark.parametrize("fresh", [40, 0], ids=["draws", "encodes"])
def test_a_killed_process_that_works_ahead_is_told_of_and_the_run_goes_on(
    tmp_path: Path, start: Path, monkeypatch: pytest.MonkeyPatch, fresh: int
) -> None:
    path = tmp_path / "run.toml"
    path.write_text(
        f'checkpoint = "{start}"\nout = "{tmp_path / "run"}"\nsave_every_s = 0.0\n[data]\ncount = 3\n'
        "[validation]\nevery = 0\ncount = 1\n"
        f"[[phases]]\narea_px = 1024\nsteps = 8\nbatch = 2\nrate = 1e-3\nfresh = {fresh}\n"
    )
    others, save, submit = set(multiprocessing.active_children()), trainers.save_state, ProcessPoolExecutor.submit

    def kill() -> None:
        for process in set(multiprocessing.active_children()) - others:
            os.kill(process.pid or 0, signal.SIGKILL)
        time.sleep(0 if not fresh else 30)

    with monkeypatch.context() as killing:
        killing.setattr(trainers, "save_state", lambda *given: (save(*given), kill()))
        killing.setattr(ProcessPoolExecutor, "submit", lambda *given: (submit(*given), kill())[0])
        told = CliRunner().invoke(app, ["train", "--encoders", "1", str(path)])
    assert told.exit_code == 2
    assert told.stderr.startswith("kontext-model: a process that draws or encodes ahead was killed (")
    assert "fewer of them (--encoders, --drawers)" in told.stderr and told.stderr.count("\n") == 1
    if fresh:
        assert read_average(tmp_path / "run")[1] == 1
    train(path, console=Console(quiet=True))
    assert read_average(tmp_path / "run")[1] == 8


def test_only_the_wardrobe_is_drawn_anew(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text(
        'checkpoint = "c"\nout = "o"\n[data]\nsource = "triples.csv"\n'
        "[[phases]]\narea_px = 4096\nsteps = 1\nbatch = 1\nrate = 1e-3\nfresh = 4\n"
    )
    with pytest.raises(ConfigError, match=r"phases\[0\].fresh must be 0, as nothing but the wardrobe .* not 4"):
        read_config(path)


def test_one_command_s_drawers_draw_what_a_phase_wants_fresh(
    tmp_path: Path, start: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "fresh.toml"
    path.write_text(
        f'checkpoint = "{start}"\nout = "{tmp_path / "run"}"\n[validation]\nevery = 0\ncount = 1\n'
        "[[phases]]\narea_px = 1024\nsteps = 1\nbatch = 2\nrate = 1e-3\nfresh = 4\n"
    )
    draw_ahead, drawers = supply.draw_ahead, []
    monkeypatch.setattr(supply, "draw_ahead", lambda *given: (drawers.append(given[-1]), draw_ahead(*given))[1])
    train(path, encoders=1, console=Console(quiet=True))
    assert drawers == [1]
    assert not (tmp_path / "run" / "latents").exists(), "what is not kept is not encoded ahead"


def test_the_decoder_learns_from_what_the_transformer_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_checkpoint(tmp_path / "tiny", size="tiny")
    config = SettleConfig(count=1, steps=4, batch=2, true_every=2, adversary=Adversary(0.5, alone=1, ramp=1))
    editor = KontextEditor.open(folder)
    small = replace(editor.defaults, area_px=32 * 32, steps=1)
    editor = KontextEditor(replace(editor.checkpoint, defaults=small))
    answers = draw_answers(editor, config)
    drawn, levels = answers[Canvas(32, 32)]
    assert drawn.shape == (56, 16, 4, 4) and levels.shape == (56, 32, 32, 3)
    assert torch.equal(drawn, draw_answers(editor, config)[Canvas(32, 32)][0])
    before = {name: value.detach().clone() for name, value in editor.checkpoint.vae.named_parameters()}

    def settle(out: str, until: int | None = None) -> dict[str, torch.Tensor]:
        fresh = KontextEditor(replace(KontextEditor.open(folder).checkpoint, defaults=small))
        vae = settle_decoder(tmp_path / out, fresh, config, report=lambda line: None, until=until)
        return {name: value.detach() for name, value in vae.named_parameters()}

    settle("parts", until=2)
    whole, parts = settle("whole"), settle("parts")
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())
    changed = {name.split(".")[0] for name, value in whole.items() if not torch.equal(value, before[name])}
    assert changed == {"decoder"}
    config = replace(config, adversary=None)
    assert any(not torch.equal(value, whole[name]) for name, value in settle("unopposed").items())
    config = replace(config, adversary=Adversary(0.5, alone=1, ramp=1))
    monkeypatch.setattr(settling, "draw_answers", lambda *_: pytest.fail("drawn for a decoder that has settled"))
    settled = settle("whole")
    assert all(torch.equal(value, settled[name]) for name, value in whole.items())
