"""Text embeds of prompts, encoded once and kept on disk.

Owns the cache's files: one safetensors per prompt, named by what went in, the checkpoint included. All prompts are
encoded before training, so that the text encoders are gone when the transformer comes.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from kontext_model import text
from kontext_model.checkpoint import Checkpoint
from kontext_model.text import TextEmbeds
from kontext_model.training.latent_cache import SAFETENSORS_ERRORS, save_whole


@dataclass(frozen=True)
class EmbedCache:
    """Embeds of one checkpoint's text encoders in one dtype, under the folder."""

    folder: Path
    revision: str
    dtype: torch.dtype

    def path(self, prompt: str) -> Path:
        """Where a prompt's embeds are kept."""
        key = json.dumps([self.revision, str(self.dtype), prompt])
        name = hashlib.sha256(key.encode()).hexdigest()[:32]
        return self.folder / name[:2] / f"{name}.safetensors"

    def find_missing(self, prompts: Iterable[str]) -> list[str]:
        """The prompts without embeds, each once, in a fixed order."""
        return sorted(prompt for prompt in set(prompts) if not self.path(prompt).is_file())

    def fill(self, prompts: Iterable[str], checkpoint: Checkpoint) -> None:
        """Encode prompts with a checkpoint opened for `encode`; warns of those that T5 cuts."""
        length = checkpoint.defaults.text_length
        for prompt in prompts:
            with torch.inference_mode():
                pooled = text.encode_pooled(checkpoint.tokenizer, checkpoint.text_encoder, prompt)
                sequence = text.encode_sequence(checkpoint.tokenizer_2, checkpoint.text_encoder_2, prompt, length)
            save_whole({"pooled": pooled, "sequence": sequence}, self.path(prompt))

    def read(self, prompt: str) -> TextEmbeds:
        """A prompt's embeds (1, …) on the CPU. Raises FileNotFoundError when it was not encoded."""
        path = self.path(prompt)
        try:
            return TextEmbeds(**load_file(path))
        except SAFETENSORS_ERRORS as error:
            raise FileNotFoundError(
                f"the embeds of {text.shorten(prompt, 60)!r} cannot be read from {path} ({error}); delete the file, "
                "if there is one, and start again"
            ) from error
