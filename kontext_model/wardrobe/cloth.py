"""Cloth: a few colours and a pattern that repeats in garment units.

Owns patterns and their colours. Every pattern is symmetric about u = 0, so that a flat garment is symmetric.
"""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from kontext_model.wardrobe.painter import Colour, blend, shade

Field: TypeAlias = NDArray[np.float32]
Index: TypeAlias = NDArray[np.uint8]

COLOURS: dict[str, Colour] = {
    "white": (243, 242, 238),
    "cream": (240, 228, 205),
    "black": (40, 40, 46),
    "charcoal": (78, 82, 92),
    "grey": (150, 154, 162),
    "navy": (38, 56, 104),
    "blue": (58, 112, 196),
    "sky": (138, 190, 232),
    "teal": (24, 132, 138),
    "mint": (152, 214, 188),
    "green": (58, 142, 86),
    "olive": (122, 128, 66),
    "yellow": (246, 204, 72),
    "mustard": (212, 158, 46),
    "orange": (238, 132, 54),
    "coral": (244, 122, 106),
    "red": (206, 52, 58),
    "burgundy": (124, 36, 60),
    "pink": (244, 168, 188),
    "fuchsia": (212, 66, 140),
    "lilac": (188, 164, 222),
    "purple": (112, 72, 160),
    "brown": (128, 84, 58),
    "camel": (196, 154, 104),
}
PALE = frozenset({"white", "cream", "sky", "mint", "yellow", "pink", "lilac"})


@dataclass(frozen=True)
class Cloth:
    """What a garment is made of. `period` and `duty` are the pattern's repeat (units) and share of accent."""

    pattern: str
    base_name: str
    accent_name: str
    base: Colour
    accent: Colour
    period: float
    duty: float

    @property
    def outline(self) -> Colour:
        """A line colour that shows on white even for white cloth."""
        return shade(self.base, 0.66)


def _wave(x: Field, period: float) -> Field:
    """Distance to the nearest multiple of the period, in periods: 0 on it, 0.5 half-way."""
    x = x * np.float32(1 / period)
    return np.abs(x - np.rint(x))


def _plain(u: Field, v: Field, c: Cloth) -> Index:
    return np.zeros(np.broadcast_shapes(u.shape, v.shape), np.uint8)


def _stripes(u: Field, v: Field, c: Cloth) -> Index:
    return (_wave(v, c.period) < c.duty / 2).view(np.uint8)


def _pinstripes(u: Field, v: Field, c: Cloth) -> Index:
    return (_wave(u, c.period) < c.duty * 0.3).view(np.uint8)


def _gingham(u: Field, v: Field, c: Cloth) -> Index:
    return (_wave(u, c.period) < 0.25).view(np.uint8) + (_wave(v, c.period) < 0.25).view(np.uint8)


def _windowpane(u: Field, v: Field, c: Cloth) -> Index:
    return ((_wave(u, c.period * 1.3) < 0.09) | (_wave(v, c.period * 1.3) < 0.09)).view(np.uint8)


def _staggered(u: Field, v: Field, period: float) -> tuple[Field, Field]:
    """Offsets to the nearest point of a staggered grid, in periods."""
    row = np.rint(v * np.float32(1 / period))
    dv = v * np.float32(1 / period) - row
    du = u * np.float32(1 / period) + np.float32(0.5) * (row % 2)
    return du - np.rint(du), dv


def _dots(u: Field, v: Field, c: Cloth) -> Index:
    du, dv = _staggered(u, v, c.period)
    return (du * du + dv * dv < (0.16 + 0.2 * c.duty) ** 2).view(np.uint8)


def _floral(u: Field, v: Field, c: Cloth) -> Index:
    du, dv = _staggered(u, v, c.period * 1.5)
    au, av = np.abs(du), np.abs(dv)
    petals = np.minimum((au - 0.17) ** 2 + av * av, au * au + (av - 0.17) ** 2) < 0.135**2
    centre = du * du + dv * dv < 0.085**2
    return petals.view(np.uint8) + 2 * centre.view(np.uint8)


def _zigzag(u: Field, v: Field, c: Cloth) -> Index:
    return (_wave(v + _wave(u, c.period * 1.6) * np.float32(c.period * 0.9), c.period) < c.duty / 2).view(np.uint8)


def _block(u: Field, v: Field, c: Cloth) -> Index:
    return np.broadcast_to(v > 1.0 + c.duty, np.broadcast_shapes(u.shape, v.shape)).view(np.uint8)


PATTERNS: dict[str, Callable[[Field, Field, Cloth], Index]] = {
    "plain": _plain,
    "striped": _stripes,
    "pinstriped": _pinstripes,
    "gingham": _gingham,
    "checked": _windowpane,
    "dotted": _dots,
    "floral": _floral,
    "zigzag": _zigzag,
    "two-tone": _block,
}
_WEIGHTS = (34, 15, 6, 8, 7, 10, 8, 4, 8)


def weave(cloth: Cloth, u: Field, v: Field, folds: float = 0.0, phase: float = 0.0, light: float = 1.0) -> Index:
    """Colour every point of a cloth.

    Shapes: u (H, W) and v (H, W) or broadcastable, garment units -> uint8 (H, W, 3).
    `folds` is the depth of soft folds (0 flat), `phase` moves them, `light` scales all.
    """
    index = PATTERNS[cloth.pattern](u, v, cloth)
    mix = blend(cloth.base, cloth.accent, 0.5)
    steps = 8
    levels = 1 - folds * np.arange(steps) / (steps - 1)
    second = mix if cloth.pattern == "gingham" else cloth.accent
    third = cloth.accent if cloth.pattern == "gingham" else cloth.base
    tones = np.array((cloth.base, second, third, blend(cloth.accent, COLOURS["yellow"], 0.75)), np.float64)
    table = np.clip(tones[None] * levels[:, None, None] * light, 0, 255).astype(np.uint8).reshape(-1, 3)
    if folds:
        # One broad shadow side and slanted ripples, in a few tones: the look of flat illustration.
        # Half the resolution is enough for something so soft.
        height, width = index.shape
        u, v = u[::2, ::2], v[::2, ::2]
        ripple = np.sin(u * np.float32(3.1) + v * np.float32(1.3 + phase % 1) + np.float32(phase))
        ripple += np.float32(0.7) * np.sin(u * np.float32(2.0) - v * np.float32(2.2) + np.float32(phase * 1.7))
        level = np.clip(ripple * np.float32(steps * 0.36) - np.float32(0.2), 0, steps - 1).astype(np.uint8)
        index = index + 4 * level.repeat(2, axis=0).repeat(2, axis=1)[:height, :width]
    return np.take(table, index, axis=0)


def choose_cloth(rng: Random, plain: bool = False) -> Cloth:
    """Draw a cloth: colours vary a little around the named ones, and base and accent always differ."""
    names = list(COLOURS)
    base_name = "white" if rng.random() < 0.08 else rng.choice(names)
    if base_name in PALE:
        accents = [name for name in names if name not in PALE and name != "grey"]
    else:
        accents = ["white", "cream", *sorted(PALE - {"white", "cream", base_name})]
    accent_name = rng.choice(accents)
    pattern = "plain" if plain else rng.choices(tuple(PATTERNS), _WEIGHTS)[0]
    return Cloth(
        pattern,
        base_name,
        accent_name,
        _vary(rng, COLOURS[base_name]),
        _vary(rng, COLOURS[accent_name]),
        period=rng.uniform(0.42, 0.72),
        duty=rng.uniform(0.4, 0.6),
    )


def _vary(rng: Random, colour: Colour) -> Colour:
    lift, spread = rng.uniform(0.94, 1.04), 6
    r, g, b = (min(244, max(18, int(value * lift + rng.uniform(-spread, spread)))) for value in colour)
    return (r, g, b)
