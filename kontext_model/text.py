"""Prompts to embeddings: CLIP's pooled vector and T5's sequence.

Owns how long each tokenizer's ids are and how they are padded, as FLUX was trained. Encodes one text at a time, so that
an embedding never depends on the texts beside it and may be stored and used again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

CLIP_LENGTH = 77


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

    def to(self, device: torch.device, dtype: torch.dtype) -> "TextEmbeds":
        return TextEmbeds(self.pooled.to(device, dtype), self.sequence.to(device, dtype))


def join(embeds: Sequence[TextEmbeds]) -> TextEmbeds:
    """All rows, one below the other."""
    return TextEmbeds(torch.cat([each.pooled for each in embeds]), torch.cat([each.sequence for each in embeds]))


def encode_pooled(tokenizer: Any, encoder: Any, text: str) -> Tensor:
    """CLIP's pooled vector (1, 768) of a text padded or cut to 77 tokens."""
    return encoder(_tokenize(tokenizer, text, CLIP_LENGTH).to(encoder.device)).pooler_output


def encode_sequence(tokenizer: Any, encoder: Any, text: str, length: int) -> Tensor:
    """T5's states (1, length, 4096) of a text padded or cut to `length` tokens.

    The padding is not masked: FLUX was trained to read it.
    """
    return encoder(_tokenize(tokenizer, text, length).to(encoder.device)).last_hidden_state


def _tokenize(tokenizer: Any, text: str, length: int) -> Tensor:
    return tokenizer(text, padding="max_length", max_length=length, truncation=True, return_tensors="pt").input_ids
