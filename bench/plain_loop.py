"""The counterpart of images a second: diffusers' FluxKontextPipeline in a loop, one image at a time.

`python -m bench.plain_loop CHECKPOINT PREFIX STEPS` edits every photo under PREFIX/in to PREFIX/loop and prints the
seconds of the loop, without imports and loading.
"""

import io
import sys
import time
from pathlib import Path

import torch
from diffusers import FluxKontextPipeline
from diffusers.utils import logging
from PIL import Image

from kontext_model.revision import Defaults, read_defaults
from orchestrator.presets import PRESETS
from orchestrator.settings import read_settings
from orchestrator.storage import open_store


def main(checkpoint: str, prefix: str, steps: int) -> None:
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    settings = read_settings()
    pipeline = FluxKontextPipeline.from_pretrained(checkpoint, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    defaults = read_defaults(Path(checkpoint))
    prompt = PRESETS["flat-lay"].prompt
    source, target = open_store(f"{prefix}/in", settings), open_store(f"{prefix}/loop", settings)
    names = [found.key for found in source.list("")]
    _edit(pipeline, prompt, defaults, steps, source.get(names[0]))  # warm, as the workers are
    start = time.perf_counter()
    for name in names:
        target.put(f"{name.rpartition('.')[0]}.png", _edit(pipeline, prompt, defaults, steps, source.get(name)))
    print(time.perf_counter() - start)


def _edit(pipeline: FluxKontextPipeline, prompt: str, defaults: Defaults, steps: int, data: bytes) -> bytes:
    photo = Image.open(io.BytesIO(data)).convert("RGB")
    picture = pipeline(
        image=photo,
        prompt=prompt,
        num_inference_steps=steps,
        guidance_scale=defaults.guidance,
        height=photo.height,
        width=photo.width,
        max_area=photo.height * photo.width,
        _auto_resize=False,
        max_sequence_length=defaults.text_length,
        generator=torch.Generator("cpu").manual_seed(0),
    ).images[0]
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
