"""How near a result comes to the wardrobe's answer: the figures of one picture.

Pure functions of pictures; refuses models. Works on finished 8-bit RGB of one size.
"""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from kontext_model.wardrobe.colour import difference, to_lab
from kontext_model.wardrobe.prompts import GROUNDS
from kontext_model.wardrobe.world import Sample

MASK_DELTA = 3.0
"""ΔE2000 from the border's colour over which a pixel belongs to the garment."""
WHITE_LEVEL = 250
FOLLOWED_DELTA = 6.0
Pixels: TypeAlias = NDArray[np.uint8]
Mask: TypeAlias = NDArray[np.bool_]


@dataclass(frozen=True)
class Score:
    """`iou` and `delta_e` concern the garment; `white_border` is the share of border pixels with every channel ≥ 250;
    `followed` whether the border has the colour that the prompt asked for. None where a kind has no such figure."""

    psnr: float
    ssim: float
    iou: float | None
    delta_e: float | None
    white_border: float | None
    followed: bool


def score(result: Image.Image, sample: Sample) -> Score:
    """Compare a result with a sample's answer. Raises ValueError when their sizes differ."""
    if result.size != sample.target.size:
        raise ValueError(f"the result is {result.size}, its answer {sample.target.size}: edit it at the answer's size")
    ours, answer = np.asarray(result.convert("RGB")), np.asarray(sample.target)
    mask = np.asarray(sample.mask) > 127
    flat = sample.prompt_kind != "background"
    inside = difference(to_lab(ours[mask]), to_lab(answer[mask])) if mask.any() else np.zeros(1)
    border = border_pixels(ours)
    ground = to_lab(np.array(GROUNDS[sample.prompt_kind], np.uint8))
    nearest = min(
        GROUNDS, key=lambda kind: float(difference(border_colour(ours), to_lab(np.array(GROUNDS[kind], np.uint8))))
    )
    near = float(difference(border_colour(ours), ground)) < FOLLOWED_DELTA
    return Score(
        psnr(ours, answer),
        ssim(ours, answer),
        overlap(find_garment(ours), mask) if flat else None,
        float(np.median(inside)),
        float((border.min(axis=1) >= WHITE_LEVEL).mean()) if sample.prompt_kind == "flat-lay" else None,
        near and nearest == sample.prompt_kind,
    )


def psnr(one: Pixels, other: Pixels) -> float:
    """Peak signal-to-noise ratio in decibels, at most 99."""
    error = float(np.mean((one.astype(np.float64) - other) ** 2))
    return min(99.0, float(10 * np.log10(255**2 / max(error, 1e-6))))


def ssim(one: Pixels, other: Pixels, window: int = 7) -> float:
    """Structural similarity of the luma, uniform window. Source: Wang et al., 2004."""
    x, y = (pixels.astype(np.float64) @ (0.299, 0.587, 0.114) for pixels in (one, other))

    def mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
        sums = np.pad(values, ((1, 0), (1, 0))).cumsum(axis=0).cumsum(axis=1)
        box = sums[window:, window:] - sums[:-window, window:] - sums[window:, :-window] + sums[:-window, :-window]
        return np.asarray(box / window**2)

    mx, my = mean(x), mean(y)
    vx, vy, vxy = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    return float(np.mean((2 * mx * my + c1) * (2 * vxy + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))))


def border_pixels(pixels: Pixels, share: float = 0.03) -> Pixels:
    """The pixels (N, 3) of a frame that takes up this share of the shorter side, at least one pixel."""
    width = max(1, round(min(pixels.shape[:2]) * share))
    outside = np.ones(pixels.shape[:2], bool)
    outside[width:-width, width:-width] = False
    return pixels[outside]


def border_colour(pixels: Pixels) -> NDArray[np.float64]:
    """The border's median colour in L*a*b*."""
    return np.asarray(np.median(to_lab(border_pixels(pixels)), axis=0))


def find_garment(pixels: Pixels) -> Mask:
    """Where the picture differs from its border, and what that encloses (white cloth in its outline)."""
    seen = difference(to_lab(pixels), border_colour(pixels)) > MASK_DELTA
    return ~_reach_from_border(~seen)


def _reach_from_border(free: Mask) -> Mask:
    """The part of `free` connected to the picture's border (4 neighbours)."""

    canvas = Image.fromarray(np.pad(free, 1, constant_values=True).astype(np.uint8) * 128).copy()
    ImageDraw.floodfill(canvas, (0, 0), 255)
    return np.asarray(np.asarray(canvas)[1:-1, 1:-1] == 255)


def overlap(one: Mask, other: Mask) -> float:
    """Intersection over union; 1 for two empty masks."""
    union = (one | other).sum()
    return float((one & other).sum() / union) if union else 1.0
