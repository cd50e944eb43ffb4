"""Evaluation of a checkpoint: tables by prompt and garment, a report, a plot and a grid."""

import json
from pathlib import Path

import pytest
from PIL import Image

from kontext_model.checkpoint_maker import make_checkpoint
from kontext_model.wardrobe.evaluation import evaluate, summarise
from kontext_model.wardrobe.score import Score


def test_a_checkpoint_is_scored_by_prompt_garment_and_steps(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "tiny", size="tiny")
    lines: list[str] = []
    table = evaluate(checkpoint, tmp_path / "out", count=9, steps=(1, 2), report=lines.append)
    assert json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8")) == table
    assert [run["steps"] for run in table["runs"]] == [1, 2] and len(lines) == 2
    run = table["runs"][0]
    assert sum(each["count"] for each in run["by_prompt"].values()) == run["all"]["count"] == 9
    # Random weights draw noise: nobody may take that for a flat lay.
    assert run["all"]["psnr"] < 20 and run["all"]["followed"] < 0.5
    with (
        Image.open(tmp_path / "out" / "grid-2-steps.png") as grid,
        Image.open(tmp_path / "out" / "quality.png") as plot,
    ):
        assert grid.width > 4 * 3 * 64 and plot.size == (720, 400)


def test_means_skip_figures_that_a_kind_lacks() -> None:
    flat = Score(psnr=20, ssim=0.8, iou=0.9, delta_e=4, white_border=1, followed=True)
    other = Score(psnr=30, ssim=0.6, iou=None, delta_e=8, white_border=None, followed=False)
    assert summarise([flat, other]) == {
        "count": 2, "psnr": 25, "ssim": pytest.approx(0.7), "iou": 0.9,
        "delta_e": 6, "white_border": 1, "followed": 0.5,
    }  # fmt: skip
