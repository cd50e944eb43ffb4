"""What latents tell of a garment's outline, and what the objective makes of it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kontext_model import image, latents, wardrobe
from kontext_model.checkpoint import open_checkpoint
from kontext_model.training import outline
from kontext_model.training.objective import rollout_loss
from kontext_model.training.outline import fit_reader, read_cover
from kontext_model.training.triples import WardrobeSource

SHIPPED = Path(str(wardrobe.__file__)).parent / "checkpoint"


def test_an_error_that_the_reader_sees_counts_more() -> None:
    clean, noise, levels = torch.randn(2, 5, 64), torch.randn(2, 5, 64), torch.full((2,), 0.5)
    reader = torch.zeros(64, 16)
    reader[3, 0] = 4.0

    def loss(channel: int, reader: torch.Tensor | None) -> float:
        wrong = clean.clone()
        wrong[..., channel] += 1
        return rollout_loss(
            lambda x, sigmas: (x - wrong) / sigmas.view(-1, 1, 1), clean, noise, levels, reader=reader
        ).item()

    assert loss(3, None) == pytest.approx(loss(4, None)) == pytest.approx(loss(4, reader)) == pytest.approx(4 / 64)
    assert loss(3, reader) == pytest.approx(4 / 64 + 4 * 16 / 16)


def test_a_reader_tells_the_garments_shape_from_latents_it_has_not_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    vae = open_checkpoint(SHIPPED, parts=frozenset({"decode"})).vae
    monkeypatch.setattr(outline, "PICTURES", 24)
    monkeypatch.setattr(outline, "AREA_PX", 128 * 128)
    reader = fit_reader(vae, WardrobeSource(24, 70_000), "pad")
    assert reader.shape == (64, 16) and torch.equal(reader, fit_reader(vae, WardrobeSource(24, 70_000), "pad"))
    source, seen, covered = WardrobeSource(8, 80_000), [], []
    for index in range(len(source)):
        target = source.images(index, source.canvas(index, 128 * 128))[1]
        with torch.inference_mode():
            seen.append(latents.pack(image.encode(vae, target))[0] @ reader)
        covered.append(read_cover(target))
    told = np.corrcoef(torch.cat(seen).flatten().numpy(), torch.cat(covered).flatten().numpy())[0, 1]
    assert told > 0.75


def test_the_cover_of_cells_is_told_row_by_row() -> None:
    picture = Image.new("RGB", (32, 48), "white")
    picture.paste("red", (20, 16, 24, 18))  # second row of tokens, second token, its first row of cells, the second
    cover = read_cover(picture)
    assert cover.shape == (6, 16)
    assert cover[3, 1] == 0.5 and cover.sum() == 0.5
