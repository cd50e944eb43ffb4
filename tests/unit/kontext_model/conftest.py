"""One tiny checkpoint for all tests of the model, opened once as ours and once as the reference pipeline."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from kontext_model import KontextEditor
from kontext_model.checkpoint import silence
from kontext_model.checkpoint_maker import make_checkpoint


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """The tensors are tiny: a second thread only waits."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("checkpoints") / "tiny", size="tiny")


@pytest.fixture
def tiny_copy(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "copy"))


@pytest.fixture(scope="session")
def editor(tiny_folder: Path) -> KontextEditor:
    return KontextEditor.open(tiny_folder)


@pytest.fixture(scope="session")
def pipeline(tiny_folder: Path) -> Any:
    """The reference: diffusers' own pipeline on the same folder."""
    with silence():
        from diffusers import FluxKontextPipeline

        reference = FluxKontextPipeline.from_pretrained(str(tiny_folder))
    reference.set_progress_bar_config(disable=True)
    return reference


@pytest.fixture(scope="session")
def draw_photo() -> Callable[..., Image.Image]:
    """Photos of smooth colour and some noise, one for each number."""

    def draw(width_px: int, height_px: int, number: int = 0) -> Image.Image:
        generator = np.random.default_rng(number)
        y, x = np.mgrid[0:height_px, 0:width_px] / max(width_px, height_px)
        waves = [np.sin(6 * x + generator.uniform(0, 6)) + np.cos(5 * y + generator.uniform(0, 6)) for _ in range(3)]
        levels = 128 + 50 * np.stack(waves, axis=-1) + generator.normal(0, 8, (height_px, width_px, 3))
        return Image.fromarray(levels.clip(0, 255).astype(np.uint8))

    return draw
