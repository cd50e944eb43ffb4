"""Small checkpoints: reproducible, whole, and of the real classes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kontext_model import KontextEditor
from kontext_model.checkpoint_maker import build_parts, make_checkpoint, save_parts
from kontext_model.revision import Defaults, read_defaults, read_revision

PROMPT = "Transform the input photo of a person wearing clothes into a professional flat lay product shot."


def test_the_bytes_are_the_same_in_any_process(tiny_folder: Path, tmp_path: Path) -> None:
    code = (
        "import pathlib, sys, torch; torch.set_num_threads(2);"
        "from kontext_model.checkpoint_maker import make_checkpoint; make_checkpoint(pathlib.Path(sys.argv[1]))"
    )
    environment = os.environ | {"PYTHONHASHSEED": "12345"}
    root = Path(__file__).parents[3]
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "again")], check=True, env=environment, cwd=root)
    assert read_revision(tmp_path / "again") == read_revision(tiny_folder)


def test_another_seed_gives_other_weights_and_leaves_the_callers_draws_alone(tiny_folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    made = make_checkpoint(tmp_path / "other", seed=1)
    assert torch.equal(torch.rand(1), expected)
    assert read_revision(made) != read_revision(tiny_folder)


def test_its_kontext_json_says_what_was_asked(tiny_folder: Path, tmp_path: Path) -> None:
    assert read_defaults(tiny_folder) == Defaults(area_px=4096, text_length=16, steps=2, guidance=2.5)
    made = make_checkpoint(tmp_path / "made", area_px=128 * 128, text_length=24)
    assert read_defaults(made) == Defaults(area_px=16384, text_length=24, steps=2, guidance=2.5)
    assert KontextEditor.open(made).encode_text(["a"]).sequence.shape == (1, 24, 32)


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("kept")
    with pytest.raises(FileExistsError, match="is not empty"):
        make_checkpoint(tmp_path / "full")
    with pytest.raises(ValueError, match="size must be one of tiny, small, not 'huge'"):
        make_checkpoint(tmp_path / "none", size="huge")
    parts = build_parts("tiny")
    with pytest.raises(ValueError, match="needs the parts vae too"):
        save_parts(tmp_path / "none", {name: part for name, part in parts.items() if name != "vae"}, Defaults())
    with pytest.raises(AttributeError):
        save_parts(tmp_path / "none", parts | {"vae": None}, Defaults())
    assert [path.name for path in tmp_path.iterdir()] == ["full"]
    assert capfd.readouterr() == ("", "")


def test_the_index_names_the_real_classes(tiny_folder: Path) -> None:
    index = json.loads((tiny_folder / "model_index.json").read_text())
    assert index["_class_name"] == "FluxKontextPipeline"
    assert index["transformer"] == ["diffusers", "FluxTransformer2DModel"]
    assert index["tokenizer_2"] == ["transformers", "T5TokenizerFast"]


def test_clip_is_cut_at_77_tokens_as_the_published_one(editor: KontextEditor) -> None:
    assert editor.checkpoint.tokenizer.model_max_length == 77
    assert editor.checkpoint.text_encoder.config.max_position_embeddings == 77


def test_the_small_size_is_what_a_laptop_bears(tmp_path: Path) -> None:
    editor = KontextEditor.open(make_checkpoint(tmp_path / "small", size="small"))
    count = sum(each.numel() for each in editor.checkpoint.transformer.parameters())
    assert 2e6 <= count <= 5.5e6
    assert len(editor.checkpoint.transformer.transformer_blocks) == 2
    assert len(editor.checkpoint.transformer.single_transformer_blocks) == 4
    assert editor.defaults == Defaults(area_px=65536, text_length=64, steps=8, guidance=2.5)


def test_any_text_tokenizes_and_known_words_are_one_token(tmp_path: Path) -> None:
    parts = build_parts("small", corpus=["zebra-striped haberdashery"])
    clip, t5 = parts["tokenizer"], parts["tokenizer_2"]
    assert len(t5.tokenize(PROMPT)) <= 20 and "<unk>" not in t5.tokenize(PROMPT)
    assert t5.tokenize("Haberdashery") == ["▁Haberdashery"]
    for text in ("", " ", "naïve 中文 👗", "\x00\x07", "<|endoftext|> </s>", "a" * 5000):
        assert clip(text).input_ids[0] == clip.bos_token_id and clip(text).input_ids[-1] == clip.eos_token_id
        assert t5(text).input_ids[-1] == t5.eos_token_id
    inner = clip("naïve 中文 👗").input_ids[1:-1]
    assert clip.eos_token_id not in inner, "an unknown byte would end CLIP's text early"
