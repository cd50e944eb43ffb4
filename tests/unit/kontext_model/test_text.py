"""Prompts to embeddings."""

from typing import Any

import pytest
import torch

from kontext_model import KontextEditor, text

PROMPTS = ["Flat lay of the dress, on white.", "", "Ein Kleid; 一件衣服 👗 \x00\t\n", "white " * 300]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_embeddings_are_those_of_the_pipeline(editor: KontextEditor, pipeline: Any, prompt: str) -> None:
    with torch.no_grad():
        sequence, pooled, ids = pipeline.encode_prompt(prompt, prompt_2=None, max_sequence_length=16)
    ours = editor.encode_text([prompt])
    assert (ours.pooled - pooled).abs().max() <= 1e-6 and (ours.sequence - sequence).abs().max() <= 1e-5
    assert ours.sequence.shape == (1, 16, 32) and ids.shape == (16, 3)


def test_a_text_is_embedded_alike_whatever_stands_beside_it(editor: KontextEditor) -> None:
    together = editor.encode_text(PROMPTS)
    assert len(together) == len(PROMPTS)
    for row, prompt in enumerate(PROMPTS):
        alone = editor.encode_text([prompt])
        assert torch.equal(together.pooled[row], alone.pooled[0])
        assert torch.equal(together.sequence[row], alone.sequence[0])


def test_different_texts_have_different_embeddings(editor: KontextEditor) -> None:
    embeds = editor.encode_text(["on pure white", "on light grey", "一件", "两件"])
    for row in range(1, 4):
        assert (embeds.pooled[row] - embeds.pooled[row - 1]).abs().max() > 1e-2
    assert (embeds.sequence[0] - embeds.sequence[1]).abs().max() > 1e-2


def test_one_row_serves_every_image_and_other_counts_do_not_fit(editor: KontextEditor) -> None:
    embeds = editor.encode_text(["a", "b"])
    assert text.TextEmbeds(embeds.pooled[:1], embeds.sequence[:1]).expand(3).sequence.shape == (3, 16, 32)
    assert len(text.join([embeds, embeds])) == 4
    with pytest.raises(ValueError, match="2 texts do not fit 3 images"):
        embeds.expand(3)
    with pytest.raises(ValueError, match="no texts"):
        editor.encode_text([])
