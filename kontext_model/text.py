"""Prompts to embeddings: CLIP's pooled vector and T5's sequence.

Owns how long each tokenizer's ids are and how they are padded, as FLUX was trained, and tells which words do not fit.
Encodes one text at a time, so that an embedding never depends on the texts beside it and may be stored and used again.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

CLIP_LENGTH = 77


class CutPromptWarning(UserWarning):
    """A prompt is longer than T5 reads; the message says which words are lost."""


@dataclass(frozen=True)
class TextEmbeds:
    """Encoded texts, one row each.

    `pooled` (B, 768) from CLIP, `sequence` (B, L, 4096) from T5; the widths are those of the FLUX.1 checkpoints.
    """

    pooled: Tensor
    sequence: Tensor

    def __len__(self) -> int:
        return int(self.pooled.shape[0])

    def expand(self, batch: int) -> "TextEmbeds":
        """As `batch` rows: a single row is shared without a copy. Raises ValueError for any other count."""
        if len(self) not in (1, batch):
            raise ValueError(f"{len(self)} texts do not fit {batch} images: give one text, or one for each image")
        return TextEmbeds(self.pooled.expand(batch, -1), self.sequence.expand(batch, -1, -1))

    def cut(self, length: int | None) -> "TextEmbeds":
        """With the first `length` tokens of the sequence; None keeps all."""
        return TextEmbeds(self.pooled, self.sequence[:, :length])

    def to(self, device: torch.device, dtype: torch.dtype) -> "TextEmbeds":
        return TextEmbeds(self.pooled.to(device, dtype), self.sequence.to(device, dtype))


def join(embeds: Sequence[TextEmbeds]) -> TextEmbeds:
    """All rows, one below the other."""
    return TextEmbeds(torch.cat([each.pooled for each in embeds]), torch.cat([each.sequence for each in embeds]))


def encode_pooled(tokenizer: Any, encoder: Any, text: str) -> Tensor:
    """CLIP's pooled vector (1, 768) of a text padded or cut to 77 tokens.

    The cut is silent: CLIP gives only the summary, and T5 reads on.
    """
    return encoder(tokenize(tokenizer, text, CLIP_LENGTH).to(encoder.device)).pooler_output


def encode_sequence(tokenizer: Any, encoder: Any, text: str, length: int) -> Tensor:
    """T5's states (1, length, 4096) of a text padded or cut to `length` tokens.

    The padding is not masked: FLUX was trained to read it. Warns with CutPromptWarning when words are lost.
    """
    lost = find_lost_words(tokenizer, text, length)
    if lost:
        warnings.warn(
            f"the prompt {shorten(text, 60)!r} is longer than the {length} tokens that T5 reads; lost are its last "
            f"{len(lost.split())} words: {shorten(lost, 400)!r}",
            CutPromptWarning,
            stacklevel=2,
        )
    return encoder(tokenize(tokenizer, text, length).to(encoder.device)).last_hidden_state


def tokenize(tokenizer: Any, text: str, length: int) -> Tensor:
    """The ids (1, length) of a text, padded or cut; the end token stays when it is cut.

    Source: diffusers FluxPipeline._get_clip_prompt_embeds and _get_t5_prompt_embeds.
    """
    return tokenizer(text, padding="max_length", max_length=length, truncation=True, return_tensors="pt").input_ids


def find_lost_words(tokenizer: Any, text: str, length: int) -> str:
    """The end of a text that does not fit into `length` tokens, from the first word not wholly read; else empty.

    Signs alone are no words: a lost full stop gives the empty string.
    """
    # With truncation on, the library does not warn that the text is too long: we do, and say of what.
    pieces = tokenizer(
        text, max_length=length, truncation=True, return_overflowing_tokens=True, return_offsets_mapping=True
    ).offset_mapping
    if len(pieces) == 1:
        return ""
    start = next((begin for begin, end in pieces[1] if end > begin), len(text))
    while 0 < start < len(text) and text[start - 1].isalnum() and text[start].isalnum():
        start -= 1
    while start < len(text) and not text[start].isalnum():
        start += 1
    return text[start:].rstrip()


def shorten(text: str, most: int) -> str:
    """The text on one line, of at most `most` characters."""
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 1] + "…"
