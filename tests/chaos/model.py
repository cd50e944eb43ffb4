"""A model that is fast, deterministic and told how long to take: the picture shows photo, prompt and seed.

What remains of a worker with it is the real system around a model. A folder named by `CHAOS_FOLDER` commands it: files
`sleep-<stage>` hold the seconds that a unit takes, and while `hang-<stage>` exists the stage never ends.
"""

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from kontext_model.canvas import Canvas
from kontext_model.text import TextEmbeds
from orchestrator.settings import Settings
from orchestrator.state.transitions import Stage
from tests.chaos.command import CHECKPOINT

TOKEN_PX, CHANNELS = 16, 64
STEP_S = 0.05


class EchoEditor:
    """Latents are the photo's colours by token, sampling adds noise from the seed, decoding paints the tokens."""

    defaults, revision, draws_previews = CHECKPOINT.defaults, CHECKPOINT.revision, False

    def encode_text(self, texts: Sequence[str]) -> TextEmbeds:
        pooled = torch.stack([_noise(sum(text.encode()), 1)[0, :8] for text in texts])
        return TextEmbeds(pooled, pooled[:, None].repeat(1, 8, 1))

    def encode_images(self, images: Sequence[Image.Image], canvas: Canvas, fit: str = "pad") -> Tensor:
        linger(Stage.ENCODE)
        columns, rows = canvas.width_px // TOKEN_PX, canvas.height_px // TOKEN_PX
        latents = torch.zeros(len(images), canvas.tokens, CHANNELS)
        for index, image in enumerate(images):
            pixels = image.convert("RGB").resize((columns, rows), Image.Resampling.BOX).tobytes()
            latents[index, :, :3] = torch.frombuffer(bytearray(pixels), dtype=torch.uint8).view(-1, 3) / 255
        return latents

    def sample(
        self, condition: Tensor, text: TextEmbeds, canvas: Canvas, seeds: Sequence[int], steps: int, guidance: float,
        true_cfg: float = 1.0, negative: TextEmbeds | None = None, sampler: str = "euler",
        on_step: Callable[[int, Tensor], bool | None] | None = None, *, lora: object = None, **_: object,
    ) -> Tensor:  # fmt: skip
        linger(Stage.SAMPLE, lambda: on_step is None or on_step(0, condition) is not False)
        noise = torch.stack([_noise(seed, canvas.tokens) for seed in seeds])
        return condition + 0.2 * noise + 0.1 * text.pooled.mean()

    def decode(self, tokens: Tensor, canvas: Canvas) -> list[Image.Image]:
        linger(Stage.DECODE)
        columns, rows = canvas.width_px // TOKEN_PX, canvas.height_px // TOKEN_PX
        colours = (tokens[:, :, :3].clamp(0, 1) * 255).round().to(torch.uint8)
        small = [Image.frombytes("RGB", (columns, rows), bytes(picture.flatten().tolist())) for picture in colours]
        return [each.resize((canvas.width_px, canvas.height_px), Image.Resampling.NEAREST) for each in small]


def open_echo(settings: Settings, stages: Sequence[Stage]) -> EchoEditor:
    """What `workers.app.serve` opens instead of a checkpoint."""
    return EchoEditor()


def linger(stage: Stage, wanted: Callable[[], bool] = lambda: True) -> None:
    """Take as long as the commanding folder says, in small steps, as long as the work is wanted."""
    if "CHAOS_FOLDER" not in os.environ:
        return
    folder = Path(os.environ["CHAOS_FOLDER"])
    sleep = folder / f"sleep-{stage}"
    end_s = time.monotonic() + (float(sleep.read_text()) if sleep.exists() else 0.0)
    while (folder / f"hang-{stage}").exists() or time.monotonic() < end_s:
        time.sleep(STEP_S)
        if not wanted():
            raise RuntimeError("nobody wants this unit any more")


def _noise(seed: int, tokens: int) -> Tensor:
    return torch.randn(tokens, CHANNELS, generator=torch.Generator("cpu").manual_seed(seed))
