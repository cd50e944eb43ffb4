"""How near a result comes to the wardrobe's answer: the figures of one picture.

Pure functions of pictures; refuses models. Works on finished 8-bit RGB of one size.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from kontext_model.wardrobe.colour import Floats, difference, to_lab
from kontext_model.wardrobe.prompts import GROUNDS
from kontext_model.wardrobe.world import Sample

MASK_DELTA = 3.0
"""ΔE2000 from the border's colour over which a pixel belongs to the garment."""
PALE_DELTA, PALE_SHARE = 10.0, 0.1
"""A garment of which more than this share lies within PALE_DELTA of its ground is told by its outline."""
WHITE_LEVEL = 250
FOLLOWED_DELTA = 6.0
"""ΔE2000 within which a border has the colour that was asked for."""
Pixels: TypeAlias = NDArray[np.uint8]
Mask: TypeAlias = NDArray[np.bool_]


@dataclass(frozen=True)
class Score:
    """How near one result comes. None where a kind of edit or garment has no such figure.

    `iou` is of the mask by colour, `iou_white` of garments too near their ground for that: of what their outline
    encloses. `delta_e` is the median inside the answer's mask, `white_border` the share of border pixels with every
    channel ≥ 250 (flat lays on white only), `followed` whether the border has the colour that the prompt asked for.
    """

    psnr: float
    ssim: float
    iou: float | None
    iou_white: float | None
    delta_e: float
    white_border: float | None
    followed: bool


def score(result: Image.Image, sample: Sample) -> Score:
    """Compare a result with a sample's answer. Raises ValueError when their sizes differ."""
    if result.size != sample.target.size:
        raise ValueError(f"the result is {result.size}, its answer {sample.target.size}: edit it at the answer's size")
    ours, answer = np.asarray(result.convert("RGB")), np.asarray(sample.target)
    lab, answer_lab = to_lab(ours), to_lab(answer)
    truth = np.asarray(sample.mask) > 127
    flat, pale = sample.prompt_kind != "background", is_pale(answer_lab, truth)
    inside = difference(lab[truth], answer_lab[truth]) if truth.any() else np.zeros(1)
    return Score(
        psnr(ours, answer),
        ssim(ours, answer),
        overlap(find_garment(lab), truth) if flat and not pale else None,
        overlap(enclose(find_garment(lab)), truth) if flat and pale else None,
        float(np.median(inside)),
        float((border(ours).min(axis=1) >= WHITE_LEVEL).mean()) if sample.prompt_kind == "flat-lay" else None,
        ground_kind(lab) == sample.prompt_kind,
    )


def psnr(one: Pixels, other: Pixels) -> float:
    """Peak signal-to-noise ratio in decibels, at most 99."""
    error = float(np.mean((one.astype(np.float64) - other) ** 2))
    return min(99.0, float(10 * np.log10(255**2 / max(error, 1e-6))))


def ssim(one: Pixels, other: Pixels) -> float:
    """Structural similarity of the luma: Gaussian window of 11 and 1.5 pixels. Source: Wang et al., 2004."""
    x, y = (pixels.astype(np.float64) @ (0.299, 0.587, 0.114) for pixels in (one, other))
    mx, my = blur(x), blur(y)
    vx, vy, vxy = blur(x * x) - mx**2, blur(y * y) - my**2, blur(x * y) - mx * my
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    return float(np.mean((2 * mx * my + c1) * (2 * vxy + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))))


def blur(plane: Floats) -> Floats:
    """The Gaussian mean around every point whose window lies inside: (H, W) -> (H - 10, W - 10)."""
    weights = _gaussian()
    for _ in range(2):  # rows, then columns
        length = plane.shape[0] - len(weights) + 1
        plane = sum(weight * plane[at : at + length] for at, weight in enumerate(weights)).T
    return plane


@lru_cache(maxsize=1)
def _gaussian(width: int = 11, sigma: float = 1.5) -> tuple[float, ...]:
    bell = np.exp(-((np.arange(width) - width // 2) ** 2) / (2 * sigma**2))
    return tuple(float(value) for value in bell / bell.sum())


def border(pixels: NDArray[Any]) -> NDArray[Any]:
    """What the frame holds: (H, W, 3) -> (N, 3)."""
    return pixels[frame(*pixels.shape[:2])]


def frame(height: int, width: int, share: float = 0.03) -> Mask:
    """A frame of this share of the shorter side, at least one pixel wide: (H, W)."""
    wide = max(1, round(min(height, width) * share))
    outside: Mask = np.ones((height, width), bool)
    outside[wide:-wide, wide:-wide] = False
    return outside


def ground_kind(lab: Floats) -> str | None:
    """The kind of edit whose ground the border's median colour is nearest to; None when it is near to none."""
    colour = np.median(border(lab), axis=0)
    distances = {kind: float(difference(colour, to_lab(np.array(rgb, np.uint8)))) for kind, rgb in GROUNDS.items()}
    nearest = min(distances, key=distances.__getitem__)
    return nearest if distances[nearest] < FOLLOWED_DELTA else None


def find_garment(lab: Floats) -> Mask:
    """Where the picture differs from its border's median colour by more than MASK_DELTA; L*a*b* (H, W, 3) -> (H, W)."""
    return _distance(lab) > MASK_DELTA


def is_pale(lab: Floats, mask: Mask) -> bool:
    """Whether the garment under the mask has too much of its ground's colour to be told by colour."""
    return bool(mask.any() and (_distance(lab)[mask] < PALE_DELTA).mean() > PALE_SHARE)


def _distance(lab: Floats) -> Floats:
    return difference(lab, np.median(border(lab), axis=0))


def enclose(mask: Mask) -> Mask:
    """The mask and everything it cuts off from the picture's border (4 neighbours)."""
    free = Image.fromarray(np.pad(~mask, 1, constant_values=True).astype(np.uint8) * 128).copy()
    ImageDraw.floodfill(free, (0, 0), 255)
    return np.asarray(np.asarray(free)[1:-1, 1:-1] != 255)


def overlap(one: Mask, other: Mask) -> float:
    """Intersection over union; 1 for two empty masks."""
    union = (one | other).sum()
    return float((one & other).sum() / union) if union else 1.0
