"""The trace: the shapes of the specification, out of the real classes, at any size."""

import dataclasses
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import MappingProxyType

import pytest
import torch
from typer.testing import CliRunner, Result

from kontext_model.cli import app
from kontext_model.trace import DIAGRAMS, Trace, mermaid, published, report, trace_model
from kontext_model.trace.recording import Recording
from kontext_model.trace.report import tabulate

# The specification's numbers, as it writes them. Left: where the trace shows them.
AT_1024 = {
    "text.clip_ids": "1,77",
    "text.pooled": "1,768",
    "text.t5_ids": "1,512",
    "text.sequence": "1,512,4096",
    "condition.pixels": "1,3,1024,1024",
    "condition.latents": "1,16,128,128",
    "condition.normalised": "1,16,128,128",
    "condition.tokens": "1,4096,64",
    "condition.ids": "4096,3",
    "noise.latents": "1,16,128,128",
    "noise.tokens": "1,4096,64",
    "noise.ids": "4096,3",
    "step.text_ids": "512,3",
    "step.tokens": "1,8192,64",
    "step.image": "1,8192,3072",
    "step.text": "1,512,3072",
    "step.temb": "1,3072",
    "double.image.vectors": "1,3072",
    "double.text.vectors": "1,3072",
    "double.image.qkv": "1,8192,3072",
    "double.text.qkv": "1,512,3072",
    "double.image.heads": "1,8192,24,128",
    "double.text.heads": "1,512,24,128",
    "double.first": "1,512,24,128",
    "double.second": "1,8192,24,128",
    "double.joined": "1,8704,24,128",
    "double.rope": "1,8704,24,128",
    "double.attention": "1,24,8704,128",
    "double.merged": "1,8704,3072",
    "double.image.split": "1,8192,3072",
    "double.text.split": "1,512,3072",
    "double.image.projected": "1,8192,3072",
    "double.image.hidden": "1,8192,12288",
    "double.image.output": "1,8192,3072",
    "double.text.output": "1,512,3072",
    "single.joined": "1,8704,3072",
    "single.vectors": "1,3072",
    "single.mlp": "1,8704,12288",
    "single.attention": "1,24,8704,128",
    "single.merged": "1,8704,3072",
    "single.branches": "1,8704,15360",
    "single.projected": "1,8704,3072",
    "step.normed": "1,8192,3072",
    "step.projected": "1,8192,64",
    "step.kept": "1,4096,64",
    "step.next": "1,4096,64",
    "decode.latents": "1,16,128,128",
    "decode.pixels": "1,3,1024,1024",
}
AT_512 = {
    "condition.pixels": "1,3,512,512",
    "condition.latents": "1,16,64,64",
    "condition.tokens": "1,1024,64",
    "condition.ids": "1024,3",
    "noise.latents": "1,16,64,64",
    "noise.tokens": "1,1024,64",
    "step.tokens": "1,2048,64",
    "step.image": "1,2048,3072",
    "step.projected": "1,2048,64",
    "step.kept": "1,1024,64",
    "decode.latents": "1,16,64,64",
    "decode.pixels": "1,3,512,512",
}
TRAINING_AT_512 = {
    "step.pooled": "4,768",
    "step.sequence": "4,512,4096",
    "noise.cast": "4,16,64,64",
    "condition.tokens": "4,1024,64",
    "condition.ids": "1024,3",
    "step.tokens": "4,2048,64",
    "step.kept": "4,1024,64",
    "decode.latents": "4,16,64,64",
}
WITH_CFG = {"step.negative_tokens": "1,8192,64", "step.negative_kept": "1,4096,64", "step.guided": "1,4096,64"}


@pytest.fixture(scope="module")
def at_1024() -> Trace:
    return trace_model("1024x1024", cfg=True)


@pytest.fixture(scope="module")
def trace_shallow() -> Iterator[Callable[..., Trace]]:
    """Traces of one block of a kind and one layer of text: the same shapes in a tenth of the time."""
    with pytest.MonkeyPatch.context() as patch:

        def shallow(size: str, batch: int = 1, cfg: bool = False, **transformer: object) -> Trace:
            layers = {"num_layers": 1, "num_single_layers": 1}
            with patch.context() as scope:
                for name, change in (
                    ("TRANSFORMER", layers | transformer),
                    ("T5", {"num_layers": 1}),
                    ("CLIP", {"num_hidden_layers": 1}),
                ):
                    scope.setattr(published, name, MappingProxyType({**getattr(published, name), **change}))
                return trace_model(size, batch, cfg)

        yield shallow


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, at_1024: Trace) -> Callable[..., Result]:
    """`kontext-model trace` that finds its trace made, as if 1020x1030 had been asked for."""
    made = dataclasses.replace(at_1024, asked="1020x1030")
    monkeypatch.setattr(report, "trace_model", lambda *_: made)
    return lambda *options: CliRunner().invoke(app, ["trace", *options])


def _read(trace: Trace, expected: dict[str, str]) -> dict[str, str]:
    return {key: ",".join(map(str, trace.find(key).shape)) for key in expected}


def test_every_shape_of_the_specification_at_1024(at_1024: Trace) -> None:
    assert _read(at_1024, AT_1024) == AT_1024
    assert _read(at_1024, WITH_CFG) == WITH_CFG
    assert (at_1024.double_blocks, at_1024.single_blocks) == (19, 38)
    counts = {key: at_1024.find(key).count for key in ("double.image.vectors", "double.text.vectors", "single.vectors")}
    assert counts == {"double.image.vectors": 6, "double.text.vectors": 6, "single.vectors": 3}
    assert str(at_1024.find("double.joined")) == "3 × [1,8704,24,128]"


def test_every_shape_of_the_specification_at_512(trace_shallow: Callable[..., Trace]) -> None:
    trace = trace_shallow("512x512")
    assert _read(trace, AT_512) == AT_512
    assert not any(each.key in WITH_CFG for each in trace.shapes)


def test_a_training_batch_at_512_asked_for_roughly(trace_shallow: Callable[..., Trace]) -> None:
    trace = trace_shallow("505x519", batch=4)
    assert _read(trace, TRAINING_AT_512) == TRAINING_AT_512
    assert trace.is_rounded and (trace.asked, str(trace.canvas)) == ("505x519", "512x512")


def test_width_and_height_keep_their_places(trace_shallow: Callable[..., Trace]) -> None:
    trace = trace_shallow("96x48")
    assert trace.find("condition.pixels").shape == trace.find("decode.pixels").shape == (1, 3, 48, 96)
    assert trace.find("noise.latents").shape == (1, 16, 6, 12)
    assert not trace.is_rounded


def test_shapes_follow_the_classes_not_a_list(trace_shallow: Callable[..., Trace]) -> None:
    trace = trace_shallow("64x64", attention_head_dim=32, num_attention_heads=8, axes_dims_rope=(8, 12, 12))
    assert (trace.double_blocks, trace.single_blocks) == (1, 1)
    assert trace.find("double.joined").shape == (1, 512 + 32, 8, 32)
    assert trace.find("single.branches").shape == (1, 512 + 32, 256 + 1024)


def test_noise_is_drawn_in_float32_and_then_cast(at_1024: Trace) -> None:
    assert (at_1024.find("noise.latents").dtype, at_1024.find("noise.cast").dtype) == ("float32", "bfloat16")


def test_parameters_flops_and_memory_are_those_of_the_published_model(at_1024: Trace) -> None:
    parts = {each.name: each for each in at_1024.parts}
    transformer = parts["transformer"]
    assert transformer.parameters == 11_901_408_320
    assert parts["text_encoder"].parameters == 123_060_480
    assert parts["text_encoder_2"].parameters == 4_762_310_656
    assert parts["vae.encoder"].parameters + parts["vae.decoder"].parameters == 83_819_683
    assert transformer.flops / 1e12 == pytest.approx(165.5, abs=0.05)
    # Attention's own share, worked out from the specification: q·k and weights·v, in 19 + 38 blocks.
    attention = (19 + 38) * 2 * 2 * 8704**2 * 24 * 128
    assert 0 < transformer.flops - attention < 0.7 * transformer.flops
    shares = [each for each in at_1024.parts if each.within == "transformer"]
    assert sum(each.parameters for each in shares) == transformer.parameters
    assert sum(each.flops for each in shares) == transformer.flops
    assert transformer.calls == 28 * 2 and parts["text_encoder"].calls == 2
    assert transformer.bytes == {"fp32": 47_605_633_280, "bf16": 23_802_816_640, "fp8": 11_901_408_320}


def test_json_keeps_its_keys(at_1024: Trace) -> None:
    table = tabulate(at_1024)
    assert {key: table[key] for key in ("size", "rounded", "batch", "cfg", "steps", "blocks")} == {
        "size": "1024x1024",
        "rounded": False,
        "batch": 1,
        "cfg": True,
        "steps": 28,
        "blocks": {"double": 19, "single": 38},
    }
    assert table["shapes"][0] == {
        "key": "text.clip_ids",
        "section": "text",
        "name": "ids for CLIP",
        "shape": [1, 77],
        "count": 1,
        "dtype": "int64",
        "seen_at": "into CLIPTextModel text_encoder",
    }
    keys = ["name", "class", "within", "parameters", "flops", "bytes", "flops_per_call", "calls"]
    assert all(list(each) == keys for each in table["parts"])
    keys = [each["key"] for each in table["shapes"]]
    assert len(keys) == len(set(keys))
    assert table["total"]["parameters"] == 16_870_599_139
    calls = {each["name"]: each["flops_per_call"] * each["calls"] for each in table["parts"] if not each["within"]}
    assert table["total"]["flops"] == sum(calls.values()) > calls["transformer"] > 9e15


@pytest.mark.parametrize("name", DIAGRAMS)
def test_a_diagram_labels_every_arrow_with_a_recorded_shape(at_1024: Trace, name: str) -> None:
    first, *lines = mermaid(at_1024, name).splitlines()
    assert first == "flowchart TD"
    boxes: list[str] = []
    touched: set[str] = set()
    recorded = {each.sizes for each in at_1024.shapes}
    for line in (each.strip() for each in lines):
        if box := re.fullmatch(r'([a-z]\w*)\["[^"\n]+"\]', line):
            boxes.append(box[1])
        elif arrow := re.fullmatch(r'(\w+) -->\|"(?:[^"\[]+ )?(\[[\d,]+\])"\| (\w+)', line):
            assert arrow[2] in recorded
            touched |= {arrow[1], arrow[3]}
        else:
            assert re.fullmatch(r'subgraph frame\["One of 28 steps"\]|end', line), line
    assert len(boxes) == len(set(boxes)) and set(boxes) == touched


def test_true_cfg_shows_in_the_whole_diagram(at_1024: Trace, trace_shallow: Callable[..., Trace]) -> None:
    plain, guided = mermaid(trace_shallow("64x64"), "whole"), mermaid(at_1024, "whole")
    assert 'keep -->|"[1,16,64]"| euler' in plain and "guide" not in plain.replace("guidance", "")
    assert 'guide -->|"[1,4096,64]"| euler' in guided and 'keep -->|"[1,4096,64]"| euler' not in guided
    assert "×19" in guided and "×38" in guided


def test_the_command_prints_a_table(command: Callable[..., Result]) -> None:
    done = command()
    assert done.exit_code == 0
    assert done.stderr == "1020x1030 is rounded to 1024x1024: sides are multiples of 16 px\n"
    for words in ("Text", "Condition image", "Noise", "Step", "Double-stream block ×19", "Single-stream", "Decode"):
        assert words in done.stdout
    assert "[1,3,1024,1024]" in done.stdout and "11,901,408,320" in done.stdout
    assert "…" not in done.stdout, "nothing may be cut where the output is no terminal"


def test_the_command_prints_one_json_object_and_nothing_else(command: Callable[..., Result]) -> None:
    table = json.loads(command("--format", "json").stdout)
    assert (table["asked"], table["size"], table["rounded"]) == ("1020x1030", "1024x1024", True)


def test_the_command_prints_three_diagrams_as_markdown(command: Callable[..., Result]) -> None:
    text = command("--format", "mermaid").stdout
    assert text.count("```mermaid\nflowchart TD\n") == 3 and text.count("```") == 6


def test_what_cannot_be_is_an_error(at_1024: Trace) -> None:
    for size, sentence in (
        ("1024", "--size reads like 1024x1024"),
        ("-16x16", "--size reads like 1024x1024"),
        ("0x16", "width must be from 1 to 4096 px, not 0"),
        ("16x5000", "height must be from 1 to 4096 px, not 5000"),
    ):
        with pytest.raises(ValueError, match=sentence):
            trace_model(size)
    with pytest.raises(ValueError, match="batch must be at least 1, not 0"):
        trace_model(batch=0)
    with pytest.raises(ValueError, match="diagram must be one of whole, double, single, not 'triple'"):
        mermaid(at_1024, "triple")
    with pytest.raises(KeyError):
        at_1024.find("step.nothing")


def test_a_recording_says_what_it_did_not_see() -> None:
    model = torch.nn.Linear(2, 3, device="meta")
    with torch.inference_mode(), Recording({"model": model}, frozenset({"model"})) as recording:
        out = model(torch.empty(1, 2, device="meta"))
    assert recording.find("model").flops == 2 * 2 * 3
    assert recording.find("model").outputs["0"] is out
    assert recording.find("model", "linear").outputs["0"] is out
    assert recording.find_user(model.weight, "linear").maker == "linear"
    with pytest.raises(LookupError, match=r"saw 1 calls of 'model', not 2: its class has changed"):
        recording.find("model", nth=1)
    with pytest.raises(LookupError, match=r"no 'cat' of a tensor of \[1, 3\]"):
        recording.find_user(out, "cat")
    model(torch.empty(1, 2, device="meta"))
    with pytest.raises(LookupError):
        recording.find("model", nth=1)


def test_the_readme_shows_the_traced_diagram() -> None:
    diagram = mermaid(trace_model("1024x1024"), "whole").strip()
    readme = (Path(__file__).parents[3] / "README.md").read_text(encoding="utf-8")
    assert f"<!-- trace -->\n```mermaid\n{diagram}\n```" in readme
