"""Speed and memory choices: what must leave pictures alone does, what cannot be had says so, caches keep rows apart."""

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from diffusers import FirstBlockCacheConfig
from PIL import Image
from safetensors.torch import save_file

from kontext_model import Edit, KontextEditor, acceleration, image, latents, sampling
from kontext_model.acceleration import ATTENTIONS, OFFLOADS, QUANTIZATIONS, STEP_CACHES, Acceleration, FallbackWarning
from kontext_model.canvas import Canvas
from kontext_model.checkpoint import open_checkpoint
from kontext_model.revision import CheckpointError
from kontext_model.text import TextEmbeds
from orchestrator.settings import Settings

CANVAS = Canvas(64, 64)
EDIT = Edit(prompt="a flat lay", seed=3, steps=2)
QUANTIZE_LIBRARY = Path(sys.prefix) / "quantize"


@pytest.fixture
def photo(draw_photo: Callable[..., Image.Image]) -> Image.Image:
    return draw_photo(64, 64)


@pytest.fixture
def sampled(editor: KontextEditor) -> Callable[..., torch.Tensor]:
    """Latents of two pictures under true CFG, each with its own condition, seed and guidance."""
    generator = torch.Generator().manual_seed(0)
    condition = torch.randn(2, CANVAS.tokens, 64, generator=generator)
    text, negative = (editor.encode_text([prompt]) for prompt in ("a flat lay", "a person"))

    def sample(opened: KontextEditor, steps: int = 12, rows: slice = slice(None), **options: Any) -> torch.Tensor:
        return opened.sample(
            condition[rows], text, CANVAS, [5, 6][rows], steps, [2.5, 4.0][rows], 3.0, negative, **options
        )

    return sample


def _open(folder: Path, **choices: Any) -> KontextEditor:
    return KontextEditor.open(folder, acceleration=Acceleration(**choices))


def _levels(one: Image.Image, other: Image.Image) -> int:
    return int(np.abs(np.asarray(one, np.int16) - np.asarray(other, np.int16)).max())


def _models(editor: KontextEditor) -> dict[str, Any]:
    parts = ("text_encoder", "text_encoder_2", "vae", "transformer")
    return {part: getattr(editor.checkpoint, part) for part in parts}


@pytest.mark.parametrize(
    ("name", "table"),
    [("quantize", QUANTIZATIONS), ("offload", OFFLOADS), ("attention", ATTENTIONS), ("step_cache", STEP_CACHES)],
)
def test_settings_and_library_know_the_same_choices(name: str, table: dict[str, Any]) -> None:
    assert get_args(Settings.model_fields[name].annotation) == tuple(table)
    with pytest.raises(ValueError, match=f"{name} must be one of .*, not 'x'"):
        Acceleration(**{name: "x"})


@pytest.mark.parametrize(
    ("choices", "reason"),
    [
        ({"offload": "model"}, "offload 'model' frees a graphics card's memory"),
        ({"offload": "group"}, "offload 'group' frees a graphics card's memory"),
        ({"attention": "flash"}, "attention 'flash' does not run here"),
        ({"attention": "cudnn"}, "attention 'cudnn' does not run here"),
    ],
)
def test_what_a_cpu_cannot_do_is_warned_of_and_left_out(
    tiny_folder: Path, editor: KontextEditor, photo: Image.Image, choices: dict[str, str], reason: str
) -> None:
    with pytest.warns(FallbackWarning, match=f"{reason}.*; going on without it"):
        opened = _open(tiny_folder, **choices)
    assert _levels(opened([photo], [EDIT])[0], editor([photo], [EDIT])[0]) == 0


@pytest.mark.parametrize("kind", ["model", "group"])
def test_offloaded_models_make_the_same_picture(
    tiny_folder: Path, editor: KontextEditor, photo: Image.Image, kind: str
) -> None:
    opened = _open(tiny_folder)
    OFFLOADS[kind](_models(opened), torch.device("cpu"))  # from the CPU to the CPU, but by the hooks
    assert _levels(opened([photo], [EDIT])[0], editor([photo], [EDIT])[0]) == 0


class _Model(torch.nn.Module):
    """Tells where it was moved."""

    def __init__(self) -> None:
        super().__init__()
        self.moves: list[str] = []

    def to(self, device: Any) -> "_Model":
        self.moves.append(str(device))
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def test_of_models_in_turn_only_the_last_that_ran_is_on_the_device() -> None:
    models = {"text_encoder": _Model(), "transformer": _Model()}
    OFFLOADS["model"](models, torch.device("meta"))
    for part in ("text_encoder", "text_encoder", "transformer", "transformer", "text_encoder"):
        assert models[part](torch.ones(1)).device.type == "meta", "arguments must follow"
    assert models["text_encoder"].moves == ["meta", "cpu", "meta"]
    assert models["transformer"].moves == ["meta", "cpu"]
    assert acceleration.execution_device(models["transformer"]) == torch.device("meta")


def test_a_model_that_finds_too_little_memory_leaves_the_device_to_another_try() -> None:
    class Heavy(_Model):
        memory = 0

        def to(self, device: Any) -> "_Model":
            super().to(device)
            if str(device) != "cpu" and not self.memory:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return self

    light, heavy = _Model(), Heavy()
    OFFLOADS["model"]({"vae": light, "transformer": heavy}, torch.device("meta"))
    light(torch.ones(1))
    with pytest.raises(torch.OutOfMemoryError):
        heavy(torch.ones(1))
    assert light.moves == ["meta", "cpu"] and heavy.moves == ["meta", "cpu"]
    light(torch.ones(1))
    assert light.moves == ["meta", "cpu", "meta"]
    heavy.memory = 1
    heavy(torch.ones(1))
    assert light.moves[-1] == "cpu" and heavy.moves[-1] == "meta"


def test_pixels_and_latents_follow_an_offloaded_vae(editor: KontextEditor, photo: Image.Image) -> None:
    vae = copy.deepcopy(editor.checkpoint.vae)
    OFFLOADS["model"]({"vae": vae}, torch.device("meta"))  # stands for a card; it computes shapes alone
    with torch.inference_mode():
        assert image.encode(vae, photo).device.type == "meta"
        assert image.decode_pixels(vae, torch.zeros(1, 16, 8, 8)).shape == (1, 3, 64, 64)


def test_an_attention_that_runs_is_used(
    tiny_folder: Path, editor: KontextEditor, photo: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acceleration, "ATTENTIONS", {"native": "native", "math": "_native_math"})
    transformer = _open(tiny_folder, attention="math").checkpoint.transformer
    assert _used_attention(transformer) == {"_native_math"}
    assert _used_attention(_open(tiny_folder).checkpoint.transformer) == {"native"}, "whatever was chosen before"
    opened = KontextEditor(replace(editor.checkpoint, transformer=transformer))
    assert _levels(opened([photo], [EDIT])[0], editor([photo], [EDIT])[0]) <= 1


def test_an_attention_of_other_pictures_is_had_or_is_an_error(tiny_folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"attention 'sage' does not run here .* differ: choose another"):
        _open(tiny_folder, attention="sage")


def test_an_attention_is_tried_with_heads_of_the_models_size(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(query: torch.Tensor, *_: Any, **__: Any) -> None:
        raise ValueError(f"no kernel for heads of {query.shape[-1]}")

    monkeypatch.setattr("diffusers.models.attention_dispatch.dispatch_attention_fn", refuse)
    size = json.loads((tiny_folder / "transformer/config.json").read_text())["attention_head_dim"]
    with pytest.warns(FallbackWarning, match=f"no kernel for heads of {size}"):
        _open(tiny_folder)


def _used_attention(transformer: Any) -> set[str]:
    blocks = (*transformer.transformer_blocks, *transformer.single_transformer_blocks)
    return {block.attn.processor._attention_backend.value for block in blocks}


def test_without_a_compiler_pictures_are_made_all_the_same(
    tiny_folder: Path, editor: KontextEditor, photo: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(torch, "compile", fail)
    with pytest.warns(FallbackWarning, match=r"compiling does not work here \(no C\+\+ compiler\)"):
        opened = _open(tiny_folder, compile=True)
    assert _levels(opened([photo], [EDIT])[0], editor([photo], [EDIT])[0]) == 0


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Compilation without a compiler: blocks are traced whole, and run as they are."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("traced")
def test_compiled_blocks_make_the_same_picture(tiny_folder: Path, editor: KontextEditor, photo: Image.Image) -> None:
    opened = _open(tiny_folder, compile=True)
    assert _levels(opened([photo], [EDIT])[0], editor([photo], [EDIT])[0]) <= 1
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] >= 2 and not counters["graph_break"]


@pytest.mark.usefixtures("traced")
def test_blocks_that_are_offloaded_are_compiled_all_the_same(
    tiny_folder: Path, editor: KontextEditor, photo: Image.Image
) -> None:
    opened = _open(tiny_folder)
    OFFLOADS["group"]({"transformer": opened.checkpoint.transformer}, torch.device("cpu"))
    assert not acceleration.compile_blocks(opened.checkpoint.transformer, torch.device("cpu"))
    assert _levels(opened([photo], [EDIT])[0], editor([photo], [EDIT])[0]) <= 1
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 2


@pytest.mark.usefixtures("traced")
def test_compiled_blocks_carry_more_loras_than_torch_compiles(
    tiny_folder: Path, editor: KontextEditor, photo: Image.Image, tmp_path: Path
) -> None:
    layers = ("transformer_blocks.0.attn.to_q", "single_transformer_blocks.0.attn.to_q")
    generator, weights = torch.Generator().manual_seed(0), {}
    for layer in layers:
        for matrix, shape in (("A", (2, 32)), ("B", (32, 2))):
            weights[f"transformer.{layer}.lora_{matrix}.weight"] = torch.randn(shape, generator=generator)
    save_file(weights, tmp_path / "style.safetensors")
    edits = [replace(EDIT, lora=tmp_path / "style.safetensors", lora_scale=scale) for scale in (0.5, 1.0, 1.5)]
    opened = _open(tiny_folder, compile=True)
    with torch._dynamo.config.patch(recompile_limit=2):
        for edit in (EDIT, *edits, EDIT):
            assert _levels(opened([photo], [edit])[0], editor([photo], [edit])[0]) <= 1


def test_compilation_that_would_do_nothing_is_told(tiny_folder: Path) -> None:
    with pytest.warns(FallbackWarning, match="compiling does nothing beside step_cache 'magcache'"):
        opened = _open(tiny_folder, compile=True, step_cache="magcache")
    assert not [block for block in opened.checkpoint.transformer.modules() if block._compiled_call_impl is not None]


def _count_computed(transformer: Any, sample: Callable[[], object]) -> int:
    """How often the last block's attention was computed."""
    counted: list[int] = []
    layer = transformer.single_transformer_blocks[-1].attn.to_q
    handle = layer.register_forward_hook(lambda *_: counted.append(1))
    try:
        sample()
    finally:
        handle.remove()
    return len(counted)


def _always_skip(monkeypatch: pytest.MonkeyPatch) -> None:
    # Weights at random differ more from step to step than a trained model's: only the first step would be computed.
    caches = {**STEP_CACHES, "first_block": lambda calls, dtype: FirstBlockCacheConfig(threshold=1e9)}
    monkeypatch.setattr(acceleration, "STEP_CACHES", caches)


@pytest.mark.parametrize("cache", sorted(STEP_CACHES.keys() - {"none"}))
def test_a_step_cache_skips_work_and_keeps_every_row_and_branch_apart(
    tiny_folder: Path, editor: KontextEditor, sampled: Callable[..., torch.Tensor], cache: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    _always_skip(monkeypatch)
    opened = _open(tiny_folder, step_cache=cache)
    plain = sampled(editor)
    together: list[torch.Tensor] = []
    computed = _count_computed(opened.checkpoint.transformer, lambda: together.append(sampled(opened)))
    assert 0 < computed < 12 * 4, "two rows of two branches, twelve steps"
    assert not torch.equal(together[0], plain)
    alone = torch.cat([sampled(opened, rows=slice(row, row + 1)) for row in range(2)])
    assert torch.equal(together[0], alone)
    assert not opened.checkpoint.transformer.is_cache_enabled


@pytest.mark.parametrize("cache", sorted(STEP_CACHES.keys() - {"none"}))
def test_a_cached_walk_equals_one_in_which_each_branch_has_a_model_of_its_own(
    tiny_folder: Path, editor: KontextEditor, cache: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _always_skip(monkeypatch)
    condition = torch.randn(1, CANVAS.tokens, 64, generator=torch.Generator().manual_seed(0))
    texts = [editor.encode_text([prompt]) for prompt in ("a flat lay", "a person")]
    ours = _open(tiny_folder, step_cache=cache).sample(condition, texts[0], CANVAS, [5], 12, 2.5, 3.0, texts[1])
    scheduler = editor.checkpoint.scheduler.config
    with torch.inference_mode():
        velocities = [_cached_velocity(editor, cache, condition, text) for text in texts]
        schedule = sampling.make_schedule(scheduler, 12, CANVAS.tokens)
        x = latents.pack(latents.draw_noise(5, CANVAS))
        for index in range(12):
            v, v_neg = (velocity(x, schedule.timesteps[index]) for velocity in velocities)
            x = x + (schedule.sigmas[index + 1] - schedule.sigmas[index]) * (v_neg + 3.0 * (v - v_neg))
    assert torch.allclose(ours, x, atol=1e-4)


def _cached_velocity(
    editor: KontextEditor, cache: str, condition: torch.Tensor, text: TextEmbeds
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """diffusers' own way: a model with the cache on, called once a step in one context."""
    transformer = copy.deepcopy(editor.checkpoint.transformer)
    transformer.enable_cache(acceleration.STEP_CACHES[cache](12, torch.float32))
    ids = torch.cat([latents.position_ids(CANVAS, kind) for kind in (latents.GENERATED, latents.CONDITION)])

    def velocity(x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        with transformer.cache_context("cond"):
            output = transformer(
                hidden_states=torch.cat((x, condition), dim=1),
                timestep=timestep.expand(1) / 1000,
                guidance=torch.tensor([2.5]),
                pooled_projections=text.pooled,
                encoder_hidden_states=text.sequence,
                txt_ids=torch.zeros(text.sequence.shape[1], 3),
                img_ids=ids,
                return_dict=False,
            )[0]
        return torch.as_tensor(output)[:, : CANVAS.tokens]

    return velocity


@pytest.mark.parametrize("sampler", sampling.SAMPLERS)
def test_calls_are_counted_as_the_samplers_make_them(
    editor: KontextEditor, sampled: Callable[..., torch.Tensor], sampler: str
) -> None:
    calls = _count_computed(editor.checkpoint.transformer, lambda: sampled(editor, steps=3, sampler=sampler))
    assert calls == 2 * sampling.count_calls(sampler, 3), "two branches of both rows together"


def test_quantisation_without_its_library_is_an_error_that_names_it(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchao", None)
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(CheckpointError, match=r"quantize 'int8' needs the package torchao .*kontext-batch\[quantize\]"):
        open_checkpoint(tiny_folder, acceleration=Acceleration(quantize="int8"))


_QUANTIZED = """
import json, sys, warnings
import numpy as np, torch
from PIL import Image
from kontext_model import Edit, KontextEditor
from kontext_model.acceleration import Acceleration
folder, told = sys.argv[1], {}
photo = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
edit = Edit(prompt="a flat lay", seed=3, steps=2)
plain = KontextEditor.open(folder)([photo], [edit])[0]
for kind in ("int8", "fp8"):
    editor = KontextEditor.open(folder, acceleration=Acceleration(quantize=kind))
    checkpoint = editor.checkpoint
    layers = {
        f"{part}.{name}": type(layer.weight).__name__
        for part in ("transformer", "text_encoder_2")
        for name, layer in getattr(checkpoint, part).named_modules() if isinstance(layer, torch.nn.Linear)
    }
    made = editor([photo], [edit])[0]
    difference = np.abs(np.asarray(made, np.int16) - np.asarray(plain, np.int16))
    told[kind] = {"layers": layers, "mean": float(difference.mean())}
print(json.dumps(told))
"""


@pytest.mark.skipif(not QUANTIZE_LIBRARY.is_dir(), reason="torchao is not installed beside the environment")
def test_quantised_weights_make_nearly_the_same_picture(tiny_folder: Path) -> None:
    # In a process of its own: diffusers loads torchao wherever it can, which takes seconds and writes to the terminal.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(QUANTIZE_LIBRARY)])}
    command = [sys.executable, "-W", "ignore", "-c", _QUANTIZED, str(tiny_folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    for kind, weight in (("int8", "Int8Tensor"), ("fp8", "Float8Tensor")):
        told = json.loads(done.stdout.splitlines()[-1])[kind]
        assert 0 < told["mean"] < 6
        for name, found in told["layers"].items():
            assert (found == weight) == (".block" in name or "transformer_blocks" in name), (name, found)
