"""LoRAs against diffusers' own pipeline; what they leave behind; and what is refused, and how it is said."""

import hashlib
import json
import struct
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from diffusers import FluxKontextPipeline, FluxTransformer2DModel
from huggingface_hub.errors import OfflineModeIsEnabled, RevisionNotFoundError
from peft import LoraConfig as PeftConfig
from peft import get_peft_model_state_dict
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from kontext_model import Edit, KontextEditor, lora_file
from kontext_model.acceleration import OFFLOADS
from kontext_model.canvas import Canvas
from kontext_model.checkpoint import silence
from kontext_model.lora import Adapters, Lora, open_lora
from kontext_model.lora_file import LoraError, check_file, choose_name, download, find_lora, is_hub_place, pin_hub
from kontext_model.training.config import LoraConfig, Phase, TrainingConfig
from kontext_model.training.shipping import export_lora
from kontext_model.training.trainer import Trainer

CANVAS, PROMPT, STEPS = Canvas(64, 64), "Flat lay on white.", 2
TARGETS = ("attn.to_q", "attn.to_k", "attn.to_out.0", "ff.net.2", "norm1.linear", "proj_out")
TO_Q = "transformer.transformer_blocks.0.attn.to_q"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
Make = Callable[..., Path]
Sample = Callable[..., Tensor]


@pytest.fixture(scope="module")
def make_lora(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Writes a LoRA with random weights, made by peft and saved by diffusers; gives its file."""

    def make(seed: int = 0, metadata: bool = True, **options: Any) -> Path:
        transformer = FluxTransformer2DModel.from_pretrained(str(tiny_folder / "transformer"))
        config = PeftConfig(**{"r": 3, "lora_alpha": 6, "target_modules": list(TARGETS), **options})
        transformer.add_adapter(config)
        generator = torch.Generator().manual_seed(seed)
        weights = get_peft_model_state_dict(transformer)
        weights = {key: 0.2 * torch.randn(value.shape, generator=generator) for key, value in weights.items()}
        folder = tmp_path_factory.mktemp("lora")
        told = {"transformer_lora_adapter_metadata": config.to_dict()} if metadata else {}
        FluxKontextPipeline.save_lora_weights(str(folder), transformer_lora_layers=weights, **told)
        return folder / "pytorch_lora_weights.safetensors"

    return make


@pytest.fixture(scope="module")
def lora(make_lora: Make) -> Path:
    return make_lora()


@pytest.fixture(scope="module")
def photo(draw_photo: Callable[..., Image.Image]) -> Image.Image:
    return draw_photo(64, 64)


@pytest.fixture(scope="module")
def sample(editor: KontextEditor, photo: Image.Image) -> Sample:
    condition, text = editor.encode_images([photo], CANVAS), editor.encode_text([PROMPT])

    def sample(lora: Lora | None = None, by: KontextEditor = editor) -> Tensor:
        return by.sample(condition, text, CANVAS, [7], STEPS, 2.5, lora=lora)

    return sample


@pytest.fixture(scope="module")
def plain(sample: Sample) -> Tensor:
    """What the transformer draws before it has ever seen a LoRA."""
    return sample()


def write_kohya(path: Path) -> Path:
    """A LoRA by the names of kohya's scripts, which put q, k and v together and scale by alpha."""
    generator, weights = torch.Generator().manual_seed(5), {}
    for name, out in (("double_blocks_0_img_attn_qkv", 96), ("double_blocks_0_img_attn_proj", 32)):
        weights[f"lora_unet_{name}.lora_down.weight"] = 0.2 * torch.randn(4, 32, generator=generator)
        weights[f"lora_unet_{name}.lora_up.weight"] = 0.2 * torch.randn(out, 4, generator=generator)
        weights[f"lora_unet_{name}.alpha"] = torch.tensor(2.0)
    save_file(weights, path)
    return path


FORMATS: Mapping[str, Callable[[Make, Path], Path]] = {
    "diffusers": lambda make, folder: make(),
    "without metadata": lambda make, folder: make(metadata=False),
    "several ranks": lambda make, folder: make(rank_pattern={"ff.net.2": 5}, alpha_pattern={"proj_out": 1}),
    "rank-stabilised": lambda make, folder: make(use_rslora=True, lora_dropout=0.5),
    "kohya": lambda make, folder: write_kohya(folder / "kohya.safetensors"),
}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("scale", [1.0, -0.4])
def test_it_equals_the_pipeline(
    pipeline: Any, make_lora: Make, sample: Sample, plain: Tensor, photo: Image.Image, tmp_path: Path, form: str,
    scale: float,
) -> None:  # fmt: skip
    path = FORMATS[form](make_lora, tmp_path)
    with silence():
        pipeline.load_lora_weights(str(path.parent), weight_name=path.name, adapter_name="reference")
    pipeline.transformer.eval()  # diffusers leaves dropout on
    try:
        pipeline.set_adapters(["reference"], [scale])
        expected = pipeline(
            image=photo, prompt=PROMPT, height=64, width=64, max_area=CANVAS.area_px, _auto_resize=False,
            num_inference_steps=STEPS, guidance_scale=2.5, generator=torch.Generator().manual_seed(7),
            max_sequence_length=16, output_type="latent",
        ).images  # fmt: skip
    finally:
        pipeline.unload_lora_weights()
    found = sample(open_lora(path, scale))
    assert (found - expected).abs().max() <= 1e-5
    assert (found - plain).abs().max() > 1e-2, "a LoRA without effect proves nothing"


def test_a_call_looks_a_lora_up_once_and_before_any_work(
    editor: KontextEditor, photo: Image.Image, lora: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Any, ...]] = []
    monkeypatch.setattr("kontext_model.editor.open_lora", lambda *given: asked.append(given) or open_lora(*given))
    edits = [Edit(PROMPT, seed=seed, steps=1, lora=lora, lora_scale=0.5 + seed % 2) for seed in range(18)]
    editor([photo] * len(edits), edits)
    assert asked == [(lora, 0.5), (lora, 1.5)]
    monkeypatch.setattr(KontextEditor, "encode_text", lambda *_: pytest.fail("work before every LoRA was found"))
    with pytest.raises(LoraError, match="no such file"):
        editor([photo, photo], [Edit(PROMPT), Edit(PROMPT, lora=lora.with_name("gone.safetensors"))])


def test_a_lora_leaves_nothing_behind(sample: Sample, plain: Tensor, lora: Path, make_lora: Make) -> None:
    first = sample(open_lora(lora))
    assert not torch.equal(first, plain) and torch.equal(sample(), plain)
    other = sample(open_lora(make_lora(1)))
    assert not torch.equal(other, first)
    assert torch.equal(sample(open_lora(lora)), first)
    assert torch.equal(sample(open_lora(lora, 0.0)), plain) and torch.equal(sample(), plain)


def test_the_least_recently_used_is_unloaded(tiny_folder: Path, sample: Sample, make_lora: Make) -> None:
    editor = KontextEditor.open(tiny_folder, parts=frozenset({"sample"}))
    adapters = editor.__dict__["adapters"] = Adapters(editor.checkpoint.transformer, most=2)
    one, two, three = (open_lora(make_lora(seed)) for seed in (1, 2, 3))

    def weights_of(lora: Lora) -> list[str]:
        return [name for name, _ in editor.checkpoint.transformer.named_parameters() if lora.sha256 in name]

    first = sample(one, editor)
    sample(two, editor)
    assert torch.equal(sample(one, editor), first)
    sample(three, editor)
    assert adapters.loaded == [f"lora_{each.sha256}" for each in (one, three)]
    assert weights_of(one) and weights_of(three) and not weights_of(two)
    sample(two, editor)
    assert not weights_of(one)
    assert torch.equal(sample(one, editor), first) and torch.equal(sample(None, editor), sample())


def test_edits_with_and_without_a_lora_go_together(editor: KontextEditor, photo: Image.Image, lora: Path) -> None:
    edits = [Edit(PROMPT, 7, STEPS), Edit(PROMPT, 7, STEPS, lora=lora.parent), Edit(PROMPT, 7, STEPS, lora_scale=0.3)]
    edits.append(Edit(PROMPT, 7, STEPS, lora=lora, lora_scale=0))
    alone, other, without, silent = (np.asarray(each, dtype=int) for each in editor([photo] * 4, edits))
    assert abs(alone - without).max() <= 1 and abs(alone - silent).max() <= 1
    assert abs(alone - other).max() > 1
    with pytest.raises(ValueError, match="lora_scale"):
        Edit(PROMPT, lora=lora, lora_scale=float("nan"))


def test_blocks_that_are_offloaded_carry_a_lora_that_comes_later(
    tiny_folder: Path, editor: KontextEditor, photo: Image.Image, lora: Path
) -> None:
    opened = KontextEditor.open(tiny_folder)
    OFFLOADS["group"]({"transformer": opened.checkpoint.transformer}, torch.device("cpu"))
    block = opened.checkpoint.transformer.transformer_blocks[0]
    before = block._diffusers_hook.get_hook("group_offloading")
    edits = [Edit(PROMPT, steps=STEPS, lora=lora), Edit(PROMPT, steps=STEPS)]
    assert [each.tobytes() for each in opened([photo] * 2, edits)] == [
        each.tobytes() for each in editor([photo] * 2, edits)
    ]
    after = block._diffusers_hook.get_hook("group_offloading")
    assert after is not None and after is not before, "with a stream, a hook knows only the weights it was made with"


def test_what_training_exports_draws_what_training_saw(
    tiny_folder: Path, tmp_path: Path, sample: Sample, plain: Tensor
) -> None:
    phases = (Phase(64 * 64, 1, 1, 1e-3),)
    config = TrainingConfig(str(tiny_folder), str(tmp_path / "run"), phases, lora=LoraConfig(rank=2, alpha=4.0))
    trainer = Trainer(config, report=lambda line: None)
    generator = torch.Generator().manual_seed(3)
    for value in trainer.average.shadow.values():
        value.copy_(0.2 * torch.randn(value.shape, generator=generator))
    trainer.save()
    with trainer.average.applied(trainer.model):
        seen = sample(None, KontextEditor(trainer.checkpoint))
    found = sample(open_lora(export_lora(config, tmp_path / "lora")))
    assert (found - seen).abs().max() < 2e-3 < (found - plain).abs().max()  # half precision on disk
    with pytest.raises(ValueError, match="open the checkpoint anew"):
        sample(open_lora(tmp_path / "lora"), KontextEditor(trainer.checkpoint))


def pair(name: str = TO_Q, rank: int = 2, out: int = 32, into: int = 32) -> dict[str, Tensor]:
    return {f"{name}.lora_A.weight": torch.ones(rank, into), f"{name}.lora_B.weight": torch.ones(out, rank)}


METADATA = {"lora_adapter_metadata": json.dumps({"transformer.r": 7, "transformer.lora_alpha": 7})}
WRONG: Mapping[str, tuple[dict[str, Tensor], str]] = {
    "other layer": (pair("transformer.transformer_blocks.9.attn.to_q"), "2 of its weights fit no layer"),
    "other prefix": (pair("unet.down_blocks.0.attn.to_q"), "fit no layer of this checkpoint: unet"),
    "other width": (pair(into=48), r"to_q has A \(2, 48\), B \(32, 2\), where A \(rank, 32\) and B \(32, rank\) fit"),
    "wider input": (pair("transformer.x_embedder", into=128), "x_embedder has"),
    "two ranks": (pair() | {f"{TO_Q}.lora_A.weight": torch.ones(3, 32)}, "to_q has A"),
    "one half": ({f"{TO_Q}.lora_B.weight": torch.ones(32, 2)}, "to_q has B"),
    "no rank": (pair(rank=0), "to_q has A"),
    "bias": (pair() | {f"{TO_Q}.lora_B.bias": torch.ones(32)}, "1 of its weights fit no layer"),
    "NaN": (pair() | {f"{TO_Q}.lora_B.weight": torch.full((32, 2), torch.nan)}, "holds NaN"),
    "text encoder": (pair() | pair("text_encoder.layers.0"), "it also changes a text encoder, .* text_encoder.layers"),
    "text encoder, kohya": ({"lora_te1_x.lora_down.weight": torch.ones(2, 2)}, "a text encoder"),
    "DoRA": (pair() | {f"{TO_Q}.lora_magnitude_vector": torch.ones(32)}, r"magnitudes \(DoRA\)"),
    "no LoRA": ({"weight": torch.ones(2, 2)}, "it holds no LoRA weights: weight"),
    "numbers": ({key: value.int() for key, value in pair().items()}, "type I32, not floating point"),
    "kohya, left over": (
        {"lora_unet_single_blocks_0_linear9.lora_down.weight": torch.ones(2, 2)},
        "cannot be read as a LoRA of FLUX: Incompatible keys",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_weights_are_refused_by_name(tmp_path: Path, sample: Sample, plain: Tensor, name: str) -> None:
    weights, said = WRONG[name]
    save_file(weights, tmp_path / "wrong.safetensors")
    with pytest.raises(LoraError, match=rf"LoRA .*/wrong\.safetensors: .*{said}") as caught:
        sample(open_lora(tmp_path / "wrong.safetensors"))
    assert caught.value.code == "bad_lora" and not caught.value.transient
    assert torch.equal(sample(), plain)


def test_a_lora_that_breaks_while_it_is_loaded_is_gone(
    tmp_path: Path, editor: KontextEditor, sample: Sample, plain: Tensor, lora: Path
) -> None:
    expected = sample(open_lora(lora))
    save_file(pair() | pair(TO_Q.replace("to_q", "to_v")), tmp_path / "wrong.safetensors", METADATA)
    wrong = open_lora(tmp_path / "wrong.safetensors")
    with pytest.raises(LoraError, match=r"it cannot be loaded: .*size mismatch"):
        sample(wrong)
    assert not [name for name, _ in editor.checkpoint.transformer.named_parameters() if wrong.sha256 in name]
    assert torch.equal(sample(), plain) and torch.equal(sample(open_lora(lora)), expected)


def write_told(path: Path, weights: dict[str, Tensor], **told: Any) -> Lora:
    """A LoRA with what peft would tell of it."""
    metadata = {f"transformer.{key}": value for key, value in told.items()}
    save_file(weights, path, {"lora_adapter_metadata": json.dumps(metadata)})
    return open_lora(path)


@pytest.mark.parametrize("before", ["fresh", "after another"])
def test_a_lora_that_breaks_while_it_is_built_harms_no_later_job(
    tmp_path: Path, tiny_folder: Path, sample: Sample, plain: Tensor, lora: Path, before: str
) -> None:
    opened = KontextEditor.open(tiny_folder, parts=frozenset({"sample"}))
    OFFLOADS["group"]({"transformer": opened.checkpoint.transformer}, torch.device("cpu"))
    if before == "after another":
        sample(open_lora(lora), opened)
    told = {"r": 2, "rank_pattern": {"transformer_blocks.0.attn.to_v": 10**18}}  # to_q is built, to_v is not
    wrong = write_told(tmp_path / "wrong.safetensors", pair() | pair(TO_Q.replace("to_q", "to_v")), **told)
    with pytest.raises(LoraError, match="it cannot be loaded"):
        sample(wrong, opened)
    weights = dict(opened.checkpoint.transformer.named_parameters())
    assert not [name for name, weight in weights.items() if wrong.sha256 in name or weight.is_meta]
    assert torch.equal(sample(None, opened), plain)
    assert torch.equal(sample(open_lora(lora), opened), sample(open_lora(lora)))
    assert opened.adapters.loaded == [f"lora_{open_lora(lora).sha256}"]


def test_a_lora_that_comes_too_late_for_the_offload_is_taken_back(
    tiny_folder: Path, sample: Sample, plain: Tensor, lora: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(model: Any) -> None:
        raise RuntimeError("cannot pin memory")

    opened = KontextEditor.open(tiny_folder, parts=frozenset({"sample"}))
    with monkeypatch.context() as patched, pytest.raises(LoraError, match="cannot pin memory"):
        patched.setattr("kontext_model.lora.renew_offload", fail)
        sample(open_lora(lora), opened)
    assert torch.equal(sample(None, opened), plain)
    assert torch.equal(sample(open_lora(lora), opened), sample(open_lora(lora)))


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"r": 0}, "r must be a positive integer, not 0"),
        ({"r": "2"}, "r must be a positive integer"),
        ({"rank_pattern": {"attn.to_q": 0}}, "rank_pattern must be positive integers by layer, not .*to_q"),
        ({"rank_pattern": None}, "rank_pattern must be positive integers by layer, not None"),
        ({"lora_alpha": float("nan")}, "lora_alpha must be a finite number, not nan"),
        ({"alpha_pattern": None}, "alpha_pattern must be finite numbers by layer, not None"),
        ({"alpha_pattern": {"attn.to_q": "1"}}, "alpha_pattern must be finite numbers by layer"),
        ({"use_rslora": "no"}, "use_rslora must be true or false"),
    ],
)
def test_metadata_that_cannot_be_meant_is_refused_by_name(
    tmp_path: Path, sample: Sample, plain: Tensor, told: dict[str, Any], said: str
) -> None:
    wrong = write_told(tmp_path / "wrong.safetensors", pair(), **{"r": 2, "lora_alpha": 2, **told})
    with pytest.raises(LoraError, match=rf"its metadata's transformer\.{said}") as caught:
        sample(wrong)
    assert caught.value.code == "bad_lora" and torch.equal(sample(), plain)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()], ids=["card", "host"])
@pytest.mark.parametrize("job", ["with a LoRA", "plain"])
def test_too_little_memory_unloads_what_the_job_does_not_need(
    tiny_folder: Path, sample: Sample, make_lora: Make, lora: Path, job: str, error: Exception
) -> None:
    opened = KontextEditor.open(tiny_folder, parts=frozenset({"sample"}))
    used, other = open_lora(lora), open_lora(make_lora(4))
    first = sample(used, opened)
    sample(other, opened)

    def fail(*_: Any) -> None:
        raise error

    handle = opened.checkpoint.transformer.register_forward_pre_hook(fail)
    with pytest.raises(type(error)):
        sample(used if job == "with a LoRA" else None, opened)
    handle.remove()
    kept = [f"lora_{used.sha256}"] if job == "with a LoRA" else []
    assert opened.adapters.loaded == kept
    assert not [name for name, _ in opened.checkpoint.transformer.named_parameters() if other.sha256 in name]
    assert torch.equal(sample(used, opened), first)


def test_a_file_chooses_nothing_but_its_scale(tmp_path: Path, sample: Sample, plain: Tensor) -> None:
    told = {"r": 2, "lora_alpha": 2, "target_modules": ".*", "modules_to_save": ["proj_out"], "lora_dropout": 0.9}
    metadata = {"lora_adapter_metadata": json.dumps({f"transformer.{key}": value for key, value in told.items()})}
    for name, header in (("told", metadata), ("silent", None)):
        save_file(pair(), tmp_path / f"{name}.safetensors", header)
    found = sample(open_lora(tmp_path / "told.safetensors"))
    assert torch.equal(found, sample(open_lora(tmp_path / "silent.safetensors"))) and not torch.equal(found, plain)


def test_a_changed_file_is_refused(tmp_path: Path, sample: Sample) -> None:
    path = tmp_path / "style.safetensors"
    save_file(pair(rank=5), path)
    pinned = open_lora(path)
    save_file(pair(rank=4), path)
    with pytest.raises(LoraError, match=rf"content has changed: .*, not {pinned.sha256[:12]}") as caught:
        sample(pinned)
    assert caught.value.code == "lora_changed"
    path.unlink()
    with pytest.raises(LoraError, match="it cannot be read") as caught:
        sample(pinned)
    assert caught.value.code == "lora_missing"


class TestFiles:
    @pytest.mark.parametrize(
        ("content", "said"),
        [
            (b"", "it is not a safetensors file"),
            (b"\x80\x04pickle", "it is not a safetensors file"),
            (struct.pack("<Q", 1 << 62) + b"{}", "it is not a safetensors file"),
            (struct.pack("<Q", 4) + b"{{{{", "it is not a safetensors file"),
            (struct.pack("<Q", 200_000) + b"[" * 200_000, "it is not a safetensors file"),
            (struct.pack("<Q", 2) + b"[]", "it holds no LoRA weights"),
            (struct.pack("<Q", 12) + b'{"lora": 12}', "its header is not one of safetensors"),
        ],
    )
    def test_what_is_no_safetensors_file_is_refused(self, tmp_path: Path, content: bytes, said: str) -> None:
        (tmp_path / "x.safetensors").write_bytes(content)
        with pytest.raises(LoraError, match=said):
            check_file(tmp_path / "x.safetensors")

    def test_a_torn_copy_is_refused(self, tmp_path: Path, lora: Path) -> None:
        check_file(lora)
        (tmp_path / "x.safetensors").write_bytes(lora.read_bytes()[:-1])
        with pytest.raises(LoraError, match=r"LoRA style: .*not as many bytes as its header says; copy it again"):
            check_file(tmp_path / "x.safetensors", "style")

    def test_a_file_too_large_is_refused_unread(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lora: Path
    ) -> None:
        monkeypatch.setattr(lora_file, "MAX_BYTES", 100)
        with pytest.raises(LoraError, match="are more than the 100 allowed"):
            check_file(lora)

    def test_a_folder_means_its_one_lora(self, tmp_path: Path, lora: Path) -> None:
        assert find_lora(lora) == find_lora(lora.parent) == lora
        assert choose_name(["a.safetensors", lora.name], "x") == lora.name
        (tmp_path / "weights.bin").touch()
        for wrong in (tmp_path, tmp_path / "weights.bin"):
            with pytest.raises(LoraError, match=r"\.safetensors file"):
                find_lora(wrong)
        (tmp_path / "only.safetensors").touch()
        assert find_lora(tmp_path) == tmp_path / "only.safetensors"
        (tmp_path / "second.safetensors").touch()
        with pytest.raises(LoraError, match=r"several .*only\.safetensors, second.*name one of them"):
            find_lora(tmp_path)

    @pytest.mark.parametrize("name", ["nowhere", "no/such/file.bin", "loras/no.safetensors", "x" * 5000, "a\0b"])
    def test_a_missing_file_is_named(self, name: str) -> None:
        with pytest.raises(LoraError, match=f"LoRA {name[:9]}") as caught:
            find_lora(name)
        assert caught.value.code == "lora_missing"


class TestHub:
    @pytest.fixture
    def hub(self, monkeypatch: pytest.MonkeyPatch, lora: Path) -> list[tuple[str, ...]]:
        """A hub with one repository of three files; gives what it was asked."""
        asked: list[tuple[str, ...]] = []

        def model_info(repository: str, revision: str | None) -> SimpleNamespace:
            asked.append((repository, str(revision)))
            names = ("README.md", "a.safetensors", *(("b.safetensors",) if repository.endswith("two") else ()))
            return SimpleNamespace(sha=COMMIT, siblings=[SimpleNamespace(rfilename=name) for name in names])

        def hf_hub_download(repository: str, name: str, revision: str) -> str:
            asked.append((repository, name, revision))
            return str(lora)

        monkeypatch.setattr(huggingface_hub, "HfApi", lambda: SimpleNamespace(model_info=model_info))
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", hf_hub_download)
        return asked

    def test_a_hub_id_is_pinned_to_its_commit_and_file(self, hub: list[tuple[str, ...]], lora: Path) -> None:
        place = pin_hub("owner/one")
        assert place == f"hf://owner/one@{COMMIT}/a.safetensors" and is_hub_place(place)
        assert pin_hub("hf://owner/two@main/deep/c.safetensors") == f"hf://owner/two@{COMMIT}/deep/c.safetensors"
        assert download(place) == lora
        assert hub == [("owner/one", "None"), ("owner/two", "main"), ("owner/one", "a.safetensors", COMMIT)]
        with pytest.raises(LoraError, match=r"LoRA owner/two: it holds several .*a\.safetensors, b\.safetensors"):
            pin_hub("owner/two")
        assert find_lora("owner/one") == lora

    @pytest.mark.parametrize(
        ("error", "code", "transient"),
        [
            (RevisionNotFoundError("no such revision", response=SimpleNamespace(headers={}, request=None)),
             "lora_missing", False),
            (OfflineModeIsEnabled("offline"), "lora_unavailable", True), (OSError("reset"), "lora_unavailable", True),
        ],
        ids=["unknown", "offline", "network"],
    )  # fmt: skip
    def test_a_hub_that_does_not_answer_is_not_one_without_it(
        self, monkeypatch: pytest.MonkeyPatch, error: Exception, code: str, transient: bool
    ) -> None:
        def fail() -> None:
            raise error

        monkeypatch.setattr(huggingface_hub, "HfApi", fail)
        with pytest.raises(LoraError, match="LoRA owner/name: it is") as caught:
            find_lora("owner/name")
        assert (caught.value.code, caught.value.transient) == (code, transient)

    def test_without_the_client_it_says_what_is_needed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "huggingface_hub", None)
        with pytest.raises(LoraError, match="needs the package huggingface_hub"):
            find_lora("owner/name")


def test_a_lora_is_known_by_its_content(lora: Path) -> None:
    assert open_lora(lora).sha256 == hashlib.sha256(lora.read_bytes()).hexdigest()
