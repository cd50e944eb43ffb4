"""What latents tell of a garment's outline.

Owns a linear reader, fitted to a run's targets: from a token to how much of each small cell of its pixels the garment
covers. An error that the reader sees is one of shape. The targets' masks are told by colour, from plain grounds.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kontext_model import image, latents
from kontext_model.canvas import MULTIPLE_PX
from kontext_model.latents import TOKEN_CHANNELS
from kontext_model.training.triples import TripleSource
from kontext_model.wardrobe.colour import to_lab
from kontext_model.wardrobe.score import enclose, find_garment

CELLS = 4
"""A token's 16×16 pixels are 4×4 cells."""
PICTURES = 240
AREA_PX = 256 * 256
RIDGE = 1e-4


def fit_reader(vae: Any, source: TripleSource, fit: str) -> Tensor:
    """A reader (64, 16) of the source's first targets: token times reader, plus a constant, is the cells' cover.

    The least squares with a ridge, in float64, so that every process of a run gets the same. Raises TripleError.
    """
    return _solve(_pairs(vae, source, fit)).float()


def _solve(pairs: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """The ridge regression from tokens (S, 64) to covers (S, 16), without its constant: float64 (64, 16)."""
    square, product, count = torch.zeros(65, 65).double(), torch.zeros(65, CELLS**2).double(), 0
    for tokens, covers in pairs:
        rows = torch.cat([tokens.double(), torch.ones(len(tokens), 1).double()], dim=1)
        square, product, count = square + rows.T @ rows, product + rows.T @ covers.double(), count + len(rows)
    return torch.linalg.solve(square + RIDGE * count * torch.eye(65).double(), product)[:TOKEN_CHANNELS]


def read_cover(picture: Image.Image) -> Tensor:
    """How much of each cell the garment covers, 0 to 1: RGB of whole tokens -> (S, 16), tokens row by row."""
    mask = torch.from_numpy(enclose(find_garment(to_lab(np.asarray(picture))))).float()
    side = MULTIPLE_PX // CELLS
    cells = mask.view(picture.height // MULTIPLE_PX, CELLS, side, picture.width // MULTIPLE_PX, CELLS, side)
    return cells.mean(dim=(2, 5)).permute(0, 2, 1, 3).reshape(-1, CELLS**2)


def _pairs(vae: Any, source: TripleSource, fit: str) -> Iterable[tuple[Tensor, Tensor]]:
    for index in range(min(PICTURES, len(source))):
        canvas = source.canvas(index, AREA_PX)
        target = image.fit(source.images(index, canvas)[1], canvas, fit)
        with torch.inference_mode():
            tokens = latents.pack(image.encode(vae, target))[0].cpu()
        yield tokens, read_cover(target)
