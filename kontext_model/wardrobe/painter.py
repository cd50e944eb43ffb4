"""A supersampled canvas on which shapes are drawn in local coordinates.

Owns affine frames, polygons and the final reduction. Knows nothing of garments or people.
"""

from dataclasses import dataclass
from functools import lru_cache
from math import ceil, cos, floor, hypot, pi, radians, sin, sqrt
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Points: TypeAlias = NDArray[np.float64]
Colour: TypeAlias = tuple[int, int, int]


@dataclass(frozen=True)
class Frame:
    """An affine map from local units to pixels: x = a·u + b·v + c, y = d·u + e·v + f."""

    a: float = 1.0
    b: float = 0.0
    c: float = 0.0
    d: float = 0.0
    e: float = 1.0
    f: float = 0.0

    @property
    def scale(self) -> float:
        """Pixels per local unit (geometric mean of both axes)."""
        return sqrt(abs(self.a * self.e - self.b * self.d))

    def apply(self, points: Points) -> Points:
        """Map points (N, 2) from local units to pixels (N, 2)."""
        return points @ np.array(((self.a, self.d), (self.b, self.e))) + (self.c, self.f)

    def after(self, inner: "Frame") -> "Frame":
        """The frame that applies `inner` first and then this one."""
        return Frame(
            self.a * inner.a + self.b * inner.d,
            self.a * inner.b + self.b * inner.e,
            self.a * inner.c + self.b * inner.f + self.c,
            self.d * inner.a + self.e * inner.d,
            self.d * inner.b + self.e * inner.e,
            self.d * inner.c + self.e * inner.f + self.f,
        )

    def inverse(self) -> "Frame":
        """The frame from pixels back to local units."""
        det = self.a * self.e - self.b * self.d
        a, b, d, e = self.e / det, -self.b / det, -self.d / det, self.a / det
        return Frame(a, b, -(a * self.c + b * self.f), d, e, -(d * self.c + e * self.f))


def placed(x: float, y: float, scale: float = 1.0, angle_deg: float = 0.0) -> Frame:
    """The frame that scales, turns (clockwise on screen) and then moves the origin to (x, y)."""
    s, c = sin(radians(angle_deg)) * scale, cos(radians(angle_deg)) * scale
    return Frame(c, -s, x, s, c, y)


def points(*pairs: tuple[float, float]) -> Points:
    """Points (N, 2) from coordinate pairs."""
    return np.array(pairs, dtype=np.float64)


def arc(
    x: float, y: float, radius_x: float, radius_y: float, start_deg: float = 0.0, stop_deg: float = 360.0, n: int = 20
) -> Points:
    """Points along an ellipse; angle 0 points right, 90 down."""
    return _unit_arc(start_deg, stop_deg, n) * (radius_x, radius_y) + (x, y)


@lru_cache(maxsize=256)
def _unit_arc(start_deg: float, stop_deg: float, n: int) -> Points:
    t = np.linspace(start_deg * pi / 180, stop_deg * pi / 180, n)
    return np.stack((np.cos(t), np.sin(t)), axis=1)


@lru_cache(maxsize=64)
def _bernstein(n: int) -> Points:
    t = np.linspace(0, 1, n)
    return np.stack(((1 - t) ** 2, 2 * t * (1 - t), t**2), axis=1)


def bend(start: tuple[float, float], pull: tuple[float, float], stop: tuple[float, float], n: int = 8) -> Points:
    """A quadratic Bézier curve of n points."""
    return _bernstein(n) @ np.array((start, pull, stop), dtype=np.float64)


def mirrored(right: Points) -> Points:
    """A closed outline from its right half, listed from the top middle to the bottom middle."""
    return np.concatenate((right, right[::-1] * np.array((-1.0, 1.0))))


def limb(length: float, radius_start: float, radius_stop: float, round_stop: bool = False) -> Points:
    """A tapered limb along +v from the origin, rounded at its start and on request at its end."""
    start = arc(0, 0, radius_start, radius_start, 180, 360, 9)
    if round_stop:
        return np.concatenate((start, arc(0, length, radius_stop, radius_stop, 0, 180, 9)))
    return np.concatenate((start, points((radius_stop, length), (-radius_stop, length))))


def between(x0: float, y0: float, x1: float, y1: float) -> tuple[Frame, float]:
    """The frame whose +v axis runs from the first point to the second, and the distance."""
    length = hypot(x1 - x0, y1 - y0) or 1e-6
    s, c = (x1 - x0) / length, (y1 - y0) / length
    return Frame(c, s, x0, -s, c, y0), length


def shade(colour: Colour, factor: float) -> Colour:
    """Darken (factor < 1) or lighten (factor > 1, towards white) a colour."""
    if factor <= 1:
        return (int(colour[0] * factor), int(colour[1] * factor), int(colour[2] * factor))
    lift = min(1.0, factor - 1)
    return (
        int(colour[0] + (255 - colour[0]) * lift),
        int(colour[1] + (255 - colour[1]) * lift),
        int(colour[2] + (255 - colour[2]) * lift),
    )


def blend(one: Colour, other: Colour, share: float) -> Colour:
    """Mix two colours; share 0 gives the first, 1 the second."""
    r, g, b = (round(p + (q - p) * share) for p, q in zip(one, other, strict=True))
    return (r, g, b)


class Painter:
    """An RGB canvas, drawn `oversample` times larger than it is delivered."""

    def __init__(self, width_px: int, height_px: int, ground: Colour, oversample: int = 2) -> None:
        self.oversample = oversample
        self.width_px, self.height_px = width_px, height_px
        self.image = Image.new("RGB", (width_px * oversample, height_px * oversample), ground)
        self.pen = ImageDraw.Draw(self.image)
        self.pixels = Frame(a=float(oversample), e=float(oversample))

    def polygon(self, frame: Frame, outline: Points, colour: Colour) -> None:
        """Fill an outline given in local units."""
        self.pen.polygon(self.pixels.after(frame).apply(outline).ravel().tolist(), fill=colour)

    def line(self, frame: Frame, path: Points, colour: Colour, width: float) -> None:
        """Draw a path; the width is in local units, at least one pixel of the large canvas."""
        full = self.pixels.after(frame)
        self.pen.line(full.apply(path).ravel().tolist(), fill=colour, width=max(1, round(width * full.scale)))

    def edge(self, frame: Frame, outline: Points, colour: Colour, width_px: float) -> None:
        """Fill an outline grown by width_px (delivered pixels) on every side."""
        flat = self.pixels.after(frame).apply(outline).ravel().tolist()
        self.pen.polygon(flat, fill=colour)
        self.pen.line(flat + flat[:4], fill=colour, width=max(1, round(2 * width_px * self.oversample)), joint=None)

    def paint(self, frame: Frame, outline: Points, weave: Any, cloth_frame: Frame | None = None) -> None:
        """Fill an outline with a pattern.

        `weave(u, v)` takes two broadcastable float32 arrays in the units of `cloth_frame` (default: `frame`) and gives
        uint8 (H, W, 3).
        """
        full = self.pixels.after(frame)
        corners = full.apply(outline)
        left, top = max(0, floor(corners[:, 0].min())), max(0, floor(corners[:, 1].min()))
        right = min(self.image.width, ceil(corners[:, 0].max()) + 1)
        bottom = min(self.image.height, ceil(corners[:, 1].max()) + 1)
        if right <= left or bottom <= top:
            return
        back = (self.pixels.after(cloth_frame) if cloth_frame else full).inverse()
        x = np.arange(left, right, dtype=np.float32)[None, :] + np.float32(0.5)
        y = np.arange(top, bottom, dtype=np.float32)[:, None] + np.float32(0.5)
        coefficients = [np.float32(value) for value in (back.a, back.b, back.c, back.d, back.e, back.f)]
        a, b, c, d, e, f = coefficients
        picture = Image.fromarray(weave(a * x + (b * y + c), d * x + (e * y + f)))
        mask = Image.new("1", picture.size, 0)
        ImageDraw.Draw(mask).polygon((corners - (left, top)).ravel().tolist(), fill=1)
        self.image.paste(picture, (left, top), mask)

    def finish(self) -> Image.Image:
        """The picture at its delivered size, anti-aliased by averaging."""
        return self.image.reduce(self.oversample) if self.oversample > 1 else self.image
