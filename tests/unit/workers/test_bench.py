"""What a worker says of the texts it encodes."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import structlog
import torch
from sqlalchemy import create_engine

from kontext_model.text import CutPromptWarning, TextEmbeds
from orchestrator.settings import Settings
from workers.bench import open_bench


class Handoffs:
    """Embeds in a dictionary."""

    def __init__(self) -> None:
        self.kept: dict[str, TextEmbeds] = {}

    def renew_embeds(self, texts: Sequence[str]) -> list[str]:
        return [text for text in texts if text not in self.kept]

    def put_embeds(self, text: str, embeds: TextEmbeds) -> None:
        self.kept[text] = embeds


class Editor:
    """A model that cuts every text that is not short."""

    def encode_text(self, texts: Sequence[str]) -> TextEmbeds:
        if len(texts[0]) > 5:
            warnings.warn(f"lost are the last words of {texts[0]}", CutPromptWarning, stacklevel=2)
        return TextEmbeds(torch.zeros(1, 8), torch.zeros(1, 8, 8))


def test_a_cut_prompt_is_logged_once_for_its_text(tmp_path: Path) -> None:
    editor: Any = Editor()
    handoffs: Any = Handoffs()
    engine = create_engine("sqlite://")
    with (
        structlog.testing.capture_logs() as logs,
        open_bench(engine, Settings(home=tmp_path), editor, handoffs) as bench,
    ):
        for _ in range(3):
            bench.keep_embeds(["long prompt", "short", "longer prompt"], surely=True)
    assert [entry["reason"] for entry in logs] == [
        "lost are the last words of long prompt",
        "lost are the last words of longer prompt",
    ]
    assert {entry["log_level"] for entry in logs} == {"warning"}
    assert set(handoffs.kept) == {"long prompt", "short", "longer prompt"}
