"""Opening checkpoints: what is refused, and that opening is silent and offline."""

import json
import pickle
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from kontext_model.checkpoint import Checkpoint, open_checkpoint, open_outline
from kontext_model.revision import PARTS, CheckpointError, CheckpointRef, Defaults, read_revision

WEIGHTS = {
    "transformer": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
    "text_encoder_2": "model.safetensors",
}


def _change_weights(path: Path, change: Callable[[dict[str, Any]], Any]) -> str:
    """Rewrite a safetensors file; returns the name of its first tensor."""
    tensors = load_file(path)
    first = sorted(tensors)[0]
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})
    return first


def _set_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_opening_is_silent_and_uses_no_network(
    tiny_folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    verbosity = transformers.utils.logging.get_verbosity()
    found = open_checkpoint(tiny_folder)
    assert capfd.readouterr() == ("", "")
    assert transformers.utils.logging.get_verbosity() == verbosity
    assert transformers.utils.logging.is_progress_bar_enabled()
    assert found.revision == read_revision(tiny_folder)


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ({"encode"}, {"tokenizer", "text_encoder", "tokenizer_2", "text_encoder_2", "vae"}),
        ({"sample"}, {"transformer", "scheduler"}),
        ({"decode"}, {"vae"}),
        ({"encode", "sample", "decode"}, set(PARTS)),
    ],
)
def test_only_what_the_stages_need_is_opened(tiny_folder: Path, parts: set[str], expected: set[str]) -> None:
    found = open_checkpoint(tiny_folder, parts=frozenset(parts))
    assert {part for part in PARTS if getattr(found, part) is not None} == expected


def test_weights_are_frozen_and_of_the_asked_dtype(tiny_folder: Path) -> None:
    found = open_checkpoint(tiny_folder, dtype="bfloat16")
    assert found.dtype == torch.bfloat16
    for part in WEIGHTS:
        model = getattr(found, part)
        assert not model.training
        assert all(each.dtype == torch.bfloat16 and not each.requires_grad for each in model.parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"parts": frozenset({"train"})}, r"parts must be some of decode, encode, sample, not \['train'\]"),
        ({"parts": frozenset()}, "parts must be some of"),
        ({"dtype": "int8"}, "dtype must be one of float32, bfloat16, float16, not 'int8'"),
    ],
)
def test_a_wrong_argument_is_an_error(tiny_folder: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_checkpoint(tiny_folder, **arguments)


@pytest.mark.parametrize("device", ["toaster", "cuda:99", torch.device("cuda", 99)])
def test_a_device_that_is_not_there_is_told_before_a_weight_is_read(tiny_copy: Path, device: Any) -> None:
    for part, name in WEIGHTS.items():
        (tiny_copy / part / name).write_bytes(b"not read")
    with pytest.raises(CheckpointError, match=f"device '{device}' cannot be used here: .*; name another .cpu always"):
        open_checkpoint(tiny_copy, device=device)


def test_a_pinned_revision_must_be_the_folders(tiny_folder: Path) -> None:
    assert open_checkpoint(tiny_folder, revision=read_revision(tiny_folder), parts=frozenset({"decode"}))
    with pytest.raises(CheckpointError, match="not the asked 0000"):
        open_checkpoint(tiny_folder, revision="0" * 40)


@pytest.mark.parametrize("part", [*PARTS, "model_index.json"])
def test_a_missing_part_is_named(tiny_copy: Path, part: str) -> None:
    path = tiny_copy / part
    path.unlink() if path.is_file() else shutil.rmtree(path)
    with pytest.raises(CheckpointError, match=part):
        open_checkpoint(tiny_copy)


@pytest.mark.parametrize("part", WEIGHTS)
def test_a_missing_key_is_named(tiny_copy: Path, part: str) -> None:
    gone: list[str] = []
    _change_weights(tiny_copy / part / WEIGHTS[part], lambda t: gone.append(sorted(t)[-1]) or t.pop(gone[0]))
    with pytest.raises(CheckpointError, match=f"{part} has missing keys: .*{gone[0].split('.')[-2]}"):
        open_checkpoint(tiny_copy)


@pytest.mark.parametrize("part", WEIGHTS)
def test_an_unexpected_key_is_named(tiny_copy: Path, part: str) -> None:
    _change_weights(tiny_copy / part / WEIGHTS[part], lambda t: t.update({"intruder.weight": torch.ones(2)}))
    with pytest.raises(CheckpointError, match=f"{part} has unexpected keys: intruder.weight"):
        open_checkpoint(tiny_copy)


@pytest.mark.parametrize("part", WEIGHTS)
def test_a_wrong_shape_is_refused(tiny_copy: Path, part: str) -> None:
    _change_weights(tiny_copy / part / WEIGHTS[part], lambda t: t.update({sorted(t)[0]: torch.ones(3, 5)}))
    with pytest.raises(CheckpointError, match=part):
        open_checkpoint(tiny_copy)


@pytest.mark.parametrize("part", WEIGHTS)
@pytest.mark.parametrize("kept", [0, 5, 300, -7])
def test_truncated_weights_are_refused(tiny_copy: Path, part: str, kept: int) -> None:
    path = tiny_copy / part / WEIGHTS[part]
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=f"{part} cannot be opened"):
        open_checkpoint(tiny_copy)


class Bomb:
    """A pickle that leaves a mark when it is opened."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.mark,))


@pytest.mark.parametrize(
    ("part", "name"), [("vae", "diffusion_pytorch_model.bin"), ("text_encoder", "pytorch_model.bin")]
)
def test_pickles_are_refused_unopened(tiny_copy: Path, tmp_path: Path, part: str, name: str) -> None:
    (tiny_copy / part / WEIGHTS[part]).unlink()
    (tiny_copy / part / name).write_bytes(pickle.dumps(Bomb(tmp_path / "exploded")))
    with pytest.raises(CheckpointError, match=f"{part} is refused: its weights are pickles .{name}"):
        open_checkpoint(tiny_copy)
    assert not (tmp_path / "exploded").exists()


def test_a_part_without_weights_is_refused(tiny_copy: Path) -> None:
    (tiny_copy / "transformer" / WEIGHTS["transformer"]).unlink()
    with pytest.raises(CheckpointError, match="transformer is refused: it has no weights"):
        open_checkpoint(tiny_copy)


@pytest.mark.parametrize(
    ("path", "values", "message"),
    [
        ("model_index.json", {"_class_name": "StableDiffusionPipeline"}, "is of 'StableDiffusionPipeline', not of"),
        ("vae/config.json", {"latent_channels": 4}, "the VAE's latent_channels is 4, where 16 fits"),
        ("vae/config.json", {"block_out_channels": 4}, "vae/config.json: block_out_channels is 4, where a list fits"),
        ("vae/config.json", {"shift_factor": None}, "vae/config.json: shift_factor is None, where a number fits"),
        ("vae/config.json", {"scaling_factor": "1"}, "vae/config.json: scaling_factor is '1', where a number fits"),
        ("vae/config.json", {"block_out_channels": [8, 8, 8]}, "number of block_out_channels is 3, where 4 fits"),
        ("transformer/config.json", {"in_channels": 32}, "the transformer's in_channels is 32, where 64 fits"),
        ("transformer/config.json", {"joint_attention_dim": 8}, "joint_attention_dim is 8, where 32 fits"),
        ("text_encoder/config.json", {"hidden_size": 64}, "pooled_projection_dim is 32, where 64 fits"),
        ("scheduler/scheduler_config.json", {"stochastic_sampling": True}, "scheduler sets stochastic_sampling"),
        ("kontext.json", {"steps": "many"}, "steps must be a whole number, not 'many'"),
    ],
)
def test_parts_that_do_not_fit_are_named(tiny_copy: Path, path: str, values: dict[str, Any], message: str) -> None:
    _set_json(tiny_copy / path, **values)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(tiny_copy)


@pytest.mark.parametrize(
    "name",
    ["model_index.json", "kontext.json", "vae/config.json", "tokenizer/tokenizer.json", "tokenizer_2/tokenizer.json"],
)
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xff"])
def test_garbage_for_json_is_refused(tiny_copy: Path, name: str, content: bytes) -> None:
    (tiny_copy / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=name.split("/")[0]):
        open_checkpoint(tiny_copy)


def test_what_is_pinned_already_is_taken_as_it_is(tiny_folder: Path) -> None:
    pinned = CheckpointRef("s3://bucket/weights", tiny_folder, "e" * 40, Defaults(steps=3))
    found = open_checkpoint(pinned, parts=frozenset({"decode"}))
    assert found.revision == "e" * 40 and found.defaults.steps == 3 and found.vae is not None


def test_an_outline_has_the_layers_and_no_weights(tiny_folder: Path, tiny_copy: Path) -> None:
    for part, name in WEIGHTS.items():
        (tiny_copy / part / name).write_bytes(b"not read")
    found, whole = open_outline(tiny_copy), open_checkpoint(tiny_folder)
    shapes = {name: value.shape for name, value in whole.transformer.named_parameters()}
    assert {name: value.shape for name, value in found.transformer.named_parameters()} == shapes
    assert all(value.is_meta for value in found.transformer.parameters())
    assert found.tokenizer_2("a flat lay").input_ids == whole.tokenizer_2("a flat lay").input_ids
    assert found.vae is None and found.defaults == whole.defaults
    (tiny_copy / "model_index.json").unlink()
    with pytest.raises(CheckpointError, match=r"no model_index.json"):
        open_outline(tiny_copy)


@pytest.mark.parametrize("values", [{"num_layers": "two"}, {"attention_head_dim": None}])
def test_an_outline_of_no_sizes_is_refused(tiny_copy: Path, values: dict[str, Any]) -> None:
    _set_json(tiny_copy / "transformer" / "config.json", **values)
    with pytest.raises(CheckpointError, match=r"transformer/config\.json describes no transformer: ."):
        open_outline(tiny_copy)


def test_what_is_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a folder"):
        open_checkpoint(tmp_path / "nothing")


def test_a_hub_id_is_opened_from_its_downloaded_commit(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    commit, asked = "c" * 40, {}

    def download(ref: str, **arguments: Any) -> str:
        asked.update(arguments, ref=ref)
        return str(tiny_folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_, **__: str(tiny_folder / "kontext.json"))
    found: Checkpoint = open_checkpoint(f"owner/name@{commit}", parts=frozenset({"decode"}))
    assert (asked["ref"], asked["revision"], found.revision) == ("owner/name", commit, commit)
    assert not any("transformer" in pattern or ".bin" in pattern for pattern in asked["allow_patterns"])
    assert found.defaults.area_px == 64 * 64
