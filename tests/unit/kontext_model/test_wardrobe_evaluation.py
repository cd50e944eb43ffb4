"""Evaluation of a checkpoint: figures by prompt, garment and steps, bars, files; and what a LoRA adds."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from kontext_model.cli import app
from kontext_model.training.config import LoraConfig, Phase, TrainingConfig, ValidationConfig, read_config
from kontext_model.training.triples import WardrobeSource
from kontext_model.wardrobe import evaluation, lora_study
from kontext_model.wardrobe.evaluation import HELD_OUT_SEED, Evaluation, Question, Run, evaluate, read_counts, summarise
from kontext_model.wardrobe.plates import draw_grid
from kontext_model.wardrobe.report import FIGURES, judge, lay_out_tables, write
from kontext_model.wardrobe.score import Score
from kontext_model.wardrobe.world import STYLES, Sample, draw


@pytest.fixture(scope="module")
def measured(tiny_folder: Path) -> Evaluation:
    return evaluate(Question(tiny_folder, count=12, steps=2, sweep=(1, 2)))


def test_a_checkpoint_is_scored_by_prompt_garment_and_steps(measured: Evaluation) -> None:
    assert [run.steps for run in measured.runs] == [1, 2] and measured.main is measured.runs[1]
    for run in measured.runs:
        assert sum(each["count"] for each in run.by_prompt.values()) == run.all["count"] == 12
        flat = sum(each["count"] for kind, each in run.by_prompt.items() if kind != "background")
        assert sum(each["count"] for each in run.by_garment.values()) == flat
        # Random weights draw noise: nobody may take that for a flat lay.
        assert run.all["psnr"] < 20 and run.all["followed"] < 0.5
        assert 0 < run.seconds_an_image < 5
    kinds = [each.sample.prompt_kind for each in measured.shown]
    assert kinds.count("flat-lay") == 6 and set(measured.shown[0].results) == {1, 2}


def test_a_report_has_tables_bars_and_pictures(measured: Evaluation, tmp_path: Path) -> None:
    table = write(measured, tmp_path)
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8")) == table
    assert table["first_seed"] == HELD_OUT_SEED and table["runs"][1]["all"]["count"] == 12
    verdicts = {each["figure"]: each["reached"] for each in table["bars"]}
    assert verdicts["psnr"] is False and verdicts["seconds"] is True
    with Image.open(tmp_path / "grid.png") as grid, Image.open(tmp_path / "steps.png") as steps:
        assert grid.width > 9 * 64 and steps.width > 4 * 64
    with Image.open(tmp_path / "quality.png") as plot:
        assert plot.width > 600
    lines = "\n".join(lay_out_tables(measured))
    assert "PSNR, dB" in lines and "MISSED" in lines and "the bars are set for 256 px and 8 steps" in lines


def test_bars_stand_where_the_figures_are_equal() -> None:
    at = {"iou": 0.9, "white_border": 0.99, "psnr": 20.0, "delta_e": 8.0, "followed": 0.98, "seconds": 1.0}
    for figure in FIGURES:
        if figure.bar is not None:
            worse = 0.01 if figure.at_most else -0.01
            assert figure.reached(at[figure.name]) and not figure.reached(at[figure.name] + worse)
    run = Run(8, 0.4, {"count": 1, "psnr": 21.0, "delta_e": 9.0}, {}, {})
    answer = Evaluation(Question("x", 1), "r", 256, 2, (run,), ())
    assert [(each["figure"], each["reached"]) for each in judge(answer)] == [
        ("psnr", True), ("delta_e", False), ("seconds", True),
    ]  # fmt: skip


def test_answers_that_are_perfect_reach_every_bar(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cheat(editor: object, samples: list[Sample], side: int, counts: tuple[int, ...]) -> object:
        return {steps: ([sample.target for sample in samples], 0.1) for steps in counts}

    monkeypatch.setattr(evaluation, "_edit", cheat)
    perfect = evaluate(Question(tiny_folder, count=12, side_px=96))
    assert perfect.main.all["psnr"] == 99 and all(each["reached"] for each in judge(perfect))


def test_a_cards_encoding_counts_for_every_step_count_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s, queued_s = 0.0, 0.0

    def queue(work_s: float) -> None:
        nonlocal queued_s
        queued_s += work_s

    def wait(*_: object) -> list[Image.Image]:
        nonlocal now_s, queued_s
        now_s, queued_s = now_s + queued_s, 0.0
        return []

    monkeypatch.setattr(torch.cuda, "synchronize", wait)
    monkeypatch.setattr(evaluation.time, "perf_counter", lambda: now_s)
    card = SimpleNamespace(
        checkpoint=SimpleNamespace(device=torch.device("cuda")),
        defaults=SimpleNamespace(guidance=2.5),
        encode_images=lambda *_: queue(3.0),
        encode_text=lambda *_: queue(4.0),
        sample=lambda condition, embeds, canvas, seeds, steps, guidance: queue(float(steps)),
        decode=wait,
    )
    made = evaluation._edit(card, [], 64, (1, 2))  # type: ignore[arg-type]
    assert {steps: taken_s for steps, (_, taken_s) in made.items()} == {1: 8.0, 2: 9.0}


def test_means_skip_figures_that_a_kind_lacks() -> None:
    flat = Score(psnr=20, ssim=0.8, iou=0.9, iou_white=None, delta_e=4, white_border=1, followed=True)
    other = Score(psnr=30, ssim=0.6, iou=None, iou_white=None, delta_e=8, white_border=None, followed=False)
    assert summarise([flat, other]) == {
        "count": 2, "psnr": 25, "ssim": pytest.approx(0.7), "iou": 0.9,
        "delta_e": 6, "white_border": 1, "followed": 0.5,
    }  # fmt: skip


def test_wrong_questions_are_named() -> None:
    for wrong, sentence in (
        ({"count": 0}, "count must be at least 1"),
        ({"sweep": (0,)}, "step counts must be at least 1"),
        ({"side_px": 100}, "multiple of 16"),
        ({"style": "kilt"}, "unknown style 'kilt'"),
    ):
        with pytest.raises(ValueError, match=sentence):
            Question("x", **wrong)
    with pytest.raises(ValueError, match="numbers with commas"):
        read_counts("1;2")
    assert read_counts("4, 1") == (4, 1) and Question("x", steps=8, sweep=(4, 1)).step_counts == (1, 4, 8)


def test_the_command_prints_one_object_and_leaves_nothing_on_error(tiny_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["evaluate", str(tiny_folder), "--count", "2", "--steps", "1", "--style", "dungarees"]
    done = CliRunner().invoke(app, [*arguments, "--out", str(out), "--json"])
    assert done.exit_code == 0 and json.loads(done.stdout)["style"] == "dungarees"
    assert sorted(path.name for path in out.iterdir()) == ["grid.png", "report.json"]
    failed = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "none"), "--lora", str(tmp_path / "no.lora")])
    assert failed.exit_code == 2 and "no.lora" in failed.stderr and not (tmp_path / "none").exists()


def test_long_captions_are_cut_and_rows_filled() -> None:
    picture = Image.new("RGB", (64, 64), "white")
    sheet = draw_grid([((picture, picture), "word " * 60)] * 4, ("photo", "result"), across=3)
    assert sheet.size == (3 * (2 * 70 + 6), 22 + 2 * 92)


def test_a_lora_is_trained_on_a_new_style_and_compared(tiny_folder: Path, tmp_path: Path) -> None:
    config = TrainingConfig(
        checkpoint=str(tiny_folder),
        out=str(tmp_path / "run"),
        phases=(Phase(64 * 64, steps=3, batch=2, rate=0.05, warmup=1),),
        validation=ValidationConfig(every=0),
        lora=LoraConfig(rank=2, alpha=2.0),
        decay=0.0,
    )
    lines: list[str] = []
    with pytest.warns(UserWarning, match="longer than the 16 tokens"):
        table = lora_study.study(config, tmp_path, triples=4, count=2, steps=1, report=lines.append)
    before, after = (table[side]["runs"][0]["all"] for side in ("without", "with"))
    assert table["with"]["lora"] and before["count"] == 2 and before["psnr"] != after["psnr"]
    assert table["training"]["steps"] == 3 and (tmp_path / "comparison.png").exists()
    assert any(line.split()[:2] == ["garment", "mask"] and len(line.split()) == 5 for line in lines)


def test_the_shipped_lora_recipe_reads_and_its_samples_are_apart() -> None:
    config = read_config(lora_study.CONFIG)
    assert config.lora is not None and lora_study.STYLE in STYLES
    assert lora_study.FIRST_SEED + 1_000_000 < HELD_OUT_SEED
    drawn = {WardrobeSource(50_000, 1_000_000).identity(index) for index in (0, 49_999)}
    assert not drawn & {f"wardrobe/{HELD_OUT_SEED + number}" for number in range(10_000)}
    assert draw(HELD_OUT_SEED, 32).photo.tobytes() != draw(1_000_000, 32).photo.tobytes()
