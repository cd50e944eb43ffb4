"""The bench of the published size, at a miniature one on the CPU."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch

from bench.full_size import main
from bench.random_weights import PUBLISHED, Size, count_flops
from kontext_model.canvas import Canvas
from kontext_model.trace import trace_model
from kontext_model.trace.published import TRANSFORMER, VAE

MINIATURE = Size(
    {
        **TRANSFORMER,
        "num_layers": 1,
        "num_single_layers": 1,
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "joint_attention_dim": 32,
        "pooled_projection_dim": 32,
        "axes_dims_rope": (4, 6, 6),
    },
    {**VAE, "block_out_channels": (8, 8, 8, 8), "layers_per_block": 1, "norm_num_groups": 4},
    text_length=16,
)
CANVAS = Canvas(96, 64)
STEPS = 5


def test_every_case_is_measured_against_stock_over_the_same_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))  # traced whole, no compiler needed
    file = tmp_path / "figures.json"
    arguments = f"--size {CANVAS} --steps {STEPS} --device cpu --dtype float32 --floor-tflops 0.001 --json {file}"
    assert main(arguments.split(), MINIATURE) == 0
    figures = json.loads(file.read_text())
    cases = figures["cases"]
    assert list(cases) == ["stock", "ours", "taylorseer", "compile"]
    assert figures["flops"] == STEPS * count_flops(MINIATURE, CANVAS)
    for case in cases.values():
        assert len(case["seconds"]) == 2
        median_s = sum(case["seconds"]) / 2
        assert case["floor_share"] == pytest.approx(figures["flops"] / 1e9 / median_s)
    for name in ("stock", "ours", "compile"):
        assert cases[name]["latents_apart"] < 1e-5, name
        assert cases[name]["levels_apart"] <= 1, name
    assert cases["taylorseer"]["latents_apart"] > 1e-5  # it skipped
    assert cases["compile"]["compile_s"] is not None
    assert capsys.readouterr().out.count("% of the floor") == 8


def test_a_case_that_cannot_be_had_leaves_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "figures.json"
    arguments = f"--size 64x64 --steps 1 --runs 1 --device cpu --json {file} --case cudnn --case ours"
    assert main(arguments.split(), MINIATURE) == 1
    cases = json.loads(file.read_text())["cases"]
    assert "attention 'cudnn' does not run here" in cases["cudnn"]["error"]
    assert len(cases["ours"]["seconds"]) == 1 and not cases["ours"]["error"]
    assert "cudnn failed: " in capsys.readouterr().out


def test_the_floor_counts_the_flops_of_the_trace() -> None:
    (transformer,) = (part for part in trace_model("64x64").whole_parts if part.name == "transformer")
    assert count_flops(PUBLISHED, Canvas(64, 64)) == transformer.flops
