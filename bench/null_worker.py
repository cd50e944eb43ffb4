"""A worker whose model does nothing: what remains is the pipeline. Run as `python -m bench.null_worker NAME`."""

import sys
from collections.abc import Callable, Sequence

import torch
from PIL import Image
from torch import Tensor

from kontext_model.canvas import Canvas
from kontext_model.lora import Lora
from kontext_model.preview import OnPreview
from kontext_model.revision import Defaults
from kontext_model.text import TextEmbeds
from orchestrator.settings import Settings, configure_logs, read_settings
from orchestrator.state.transitions import Stage
from workers.app import serve

REVISION = "0" * 40
DEFAULTS = Defaults(area_px=64 * 64, text_length=8, steps=1, guidance=1.0)


class NullEditor:
    """Gives zeros of the right shape at every stage."""

    defaults, revision, draws_previews = DEFAULTS, REVISION, False

    def encode_text(self, texts: Sequence[str]) -> TextEmbeds:
        return TextEmbeds(torch.zeros(len(texts), 8), torch.zeros(len(texts), 8, 8))

    def encode_images(self, images: Sequence[Image.Image], canvas: Canvas, fit: str = "pad") -> Tensor:
        return torch.zeros(len(images), canvas.tokens, 64)

    def sample(
        self, condition: Tensor, text: TextEmbeds, canvas: Canvas, seeds: Sequence[int], steps: int, guidance: float,
        true_cfg: float = 1.0, negative: TextEmbeds | None = None, sampler: str = "euler",
        on_step: Callable[[int, Tensor], bool | None] | None = None, *, lora: Lora | None = None,
        on_preview: OnPreview | None = None, preview_every: int = 1,
    ) -> Tensor:  # fmt: skip
        return condition

    def decode(self, tokens: Tensor, canvas: Canvas) -> list[Image.Image]:
        return [Image.new("RGB", (canvas.width_px, canvas.height_px), "white") for _ in tokens]


def open_null(settings: Settings, stages: Sequence[Stage]) -> NullEditor:
    """What `workers.app.serve` opens instead of a checkpoint."""
    return NullEditor()


if __name__ == "__main__":
    given = read_settings()
    configure_logs(given)
    sys.exit(serve(given, list(Stage), sys.argv[1], open_null))
