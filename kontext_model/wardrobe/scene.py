"""Backgrounds behind the wearer: studio, room, shop, street, park, poster.

Owns what is drawn before a person. Units: 0..1 across the shorter side of the canvas.
"""

from collections.abc import Callable
from random import Random

import numpy as np
from PIL import Image

from kontext_model.wardrobe.painter import Colour, Frame, Painter, arc, bend, blend, placed, points, shade

WALLS: tuple[Colour, ...] = (
    (232, 220, 206), (214, 226, 222), (224, 214, 230), (206, 216, 232),
    (238, 214, 204), (222, 226, 204), (196, 204, 212), (174, 190, 184), (208, 184, 168),
)  # fmt: skip
FLOORS: tuple[Colour, ...] = ((198, 160, 122), (170, 134, 104), (186, 178, 170), (150, 146, 150), (214, 196, 172))
LEAVES: tuple[Colour, ...] = ((92, 148, 98), (68, 124, 92), (128, 168, 96), (74, 142, 124))
ACCENTS: tuple[Colour, ...] = (
    (226, 144, 104),
    (110, 150, 180),
    (232, 190, 104),
    (160, 120, 150),
    (132, 170, 140),
    (206, 110, 110),
)


def draw_scene(painter: Painter, rng: Random) -> None:
    """Draw one background over the whole canvas."""
    kind: Callable[[Painter, Frame, float, float, Random], None]
    kind = rng.choices((_studio, _room, _shop, _street, _park, _poster), (20, 22, 14, 16, 16, 12))[0]
    scale = float(min(painter.width_px, painter.height_px))
    kind(painter, placed(0, 0, scale), painter.width_px / scale, painter.height_px / scale, rng)


def _box(painter: Painter, frame: Frame, x: float, y: float, w: float, h: float, colour: Colour) -> None:
    painter.polygon(frame, points((x, y), (x + w, y), (x + w, y + h), (x, y + h)), colour)


def _fade(painter: Painter, top: Colour, bottom: Colour) -> None:
    column = np.linspace(top, bottom, 64).astype(np.uint8)[:, None, :]
    painter.image.paste(Image.fromarray(column).resize(painter.image.size, Image.Resampling.BILINEAR))


def _studio(painter: Painter, frame: Frame, w: float, h: float, rng: Random) -> None:
    wall = rng.choice(WALLS + ACCENTS)
    _fade(painter, shade(wall, 1.15), shade(wall, 0.92))
    y = h * rng.uniform(0.82, 0.94)
    painter.polygon(
        frame,
        np.concatenate((bend((0, y), (w / 2, y + rng.uniform(-0.03, 0.03)), (w, y)), points((w, h), (0, h)))),
        shade(wall, 0.84),
    )
    if rng.random() < 0.5:
        painter.polygon(
            frame, arc(w * rng.uniform(0.3, 0.7), h * 0.45, 0.38, 0.38, n=48), shade(wall, rng.choice((0.93, 1.3)))
        )


def _room(painter: Painter, frame: Frame, w: float, h: float, rng: Random) -> None:
    wall, floor = rng.choice(WALLS), rng.choice(FLOORS)
    _fade(painter, shade(wall, 1.1), wall)
    y = h * rng.uniform(0.74, 0.86)
    _box(painter, frame, 0, y, w, h - y, floor)
    for number in range(4):
        _box(painter, frame, 0, y + (h - y) * (number + 0.5) / 4, w, 0.006, shade(floor, 0.9))
    _box(painter, frame, 0, y - 0.03, w, 0.03, shade(wall, 1.5))
    x = rng.uniform(0.02, 0.12) if rng.random() < 0.5 else w - rng.uniform(0.4, 0.5)
    _box(painter, frame, x, 0.08, 0.36, 0.44, (250, 250, 248))
    _box(painter, frame, x + 0.02, 0.1, 0.32, 0.4, (176, 212, 232))
    painter.polygon(frame, arc(x + 0.12, 0.5, 0.1, 0.1, 180, 360, 14), rng.choice(LEAVES))
    painter.polygon(frame, arc(x + 0.25, 0.5, 0.08, 0.14, 180, 360, 14), rng.choice(LEAVES))
    _box(painter, frame, x + 0.17, 0.1, 0.02, 0.4, (250, 250, 248))
    _box(painter, frame, x, 0.29, 0.36, 0.02, (250, 250, 248))
    other = w - x - 0.3
    for number in range(rng.randint(1, 3)):
        left = other + (number % 2) * 0.17
        top = 0.1 + number * 0.16
        _box(painter, frame, left, top, 0.15, 0.13, shade(floor, 0.6))
        _box(painter, frame, left + 0.015, top + 0.015, 0.12, 0.1, rng.choice(ACCENTS))
    _plant(painter, frame, rng.choice((0.1, w - 0.1)), y + 0.06, rng.uniform(0.8, 1.3), rng)
    if rng.random() < 0.5:
        painter.polygon(frame, arc(w / 2, h * 0.95, w * 0.4, 0.07, n=36), rng.choice(ACCENTS))


def _plant(painter: Painter, frame: Frame, x: float, y: float, size: float, rng: Random) -> None:
    leaf = rng.choice(LEAVES)
    here = frame.after(placed(x, y, size))
    for angle in (-50, -25, 0, 24, 48):
        blade = np.concatenate((bend((0, 0), (0.07, -0.16), (0, -0.32)), bend((0, -0.32), (-0.07, -0.16), (0, 0))))
        painter.polygon(here.after(placed(0, -0.08, 1, angle)), blade, shade(leaf, 1 - abs(angle) / 250))
    painter.polygon(here, points((-0.07, -0.1), (0.07, -0.1), (0.05, 0.06), (-0.05, 0.06)), rng.choice(ACCENTS))


def _shop(painter: Painter, frame: Frame, w: float, h: float, rng: Random) -> None:
    wall, floor = rng.choice(WALLS), rng.choice(FLOORS)
    painter.image.paste(wall, (0, 0, *painter.image.size))
    y = h * rng.uniform(0.8, 0.9)
    _box(painter, frame, 0, y, w, h - y, floor)
    for side in (0, 1):
        rail = rng.uniform(0.16, 0.3)
        left = side * (w - 0.36)
        _box(painter, frame, left, rail, 0.36, 0.012, (90, 84, 86))
        for number in range(6):
            colour = blend(rng.choice(ACCENTS + WALLS + LEAVES), wall, rng.uniform(0.1, 0.5))
            x = left + 0.015 + number * 0.056
            painter.polygon(
                frame,
                points(
                    (x + 0.01, rail + 0.02),
                    (x + 0.04, rail + 0.02),
                    (x + 0.052, rail + rng.uniform(0.2, 0.36)),
                    (x, rail + 0.24),
                ),
                colour,
            )
        shelf = rail + 0.48
        if shelf < y - 0.06:
            _box(painter, frame, left, shelf, 0.36, 0.016, shade(floor, 0.7))
            for number in range(4):
                _box(
                    painter,
                    frame,
                    left + 0.02 + number * 0.085,
                    shelf - 0.06,
                    0.07,
                    0.06,
                    blend(rng.choice(ACCENTS), wall, 0.3),
                )


def _street(painter: Painter, frame: Frame, w: float, h: float, rng: Random) -> None:
    _fade(painter, (168, 206, 234), (226, 236, 238))
    y = h * rng.uniform(0.78, 0.86)
    x = 0.0
    while x < w:
        width, top = rng.uniform(0.2, 0.34), h * rng.uniform(0.05, 0.34)
        wall = rng.choice(WALLS + ACCENTS)
        _box(painter, frame, x, top, width, y - top, wall)
        glass = blend(wall, (96, 124, 150), 0.6)
        columns = 3 if width > 0.26 else 2
        for row in range(int((y - top - 0.12) / 0.13)):
            for column in range(columns):
                step = width / columns
                _box(painter, frame, x + step * (column + 0.25), top + 0.05 + row * 0.13, step * 0.5, 0.075, glass)
        x += width
    _box(painter, frame, 0, y, w, h - y, (168, 166, 170))
    _box(painter, frame, 0, y, w, 0.03, (204, 202, 200))
    if rng.random() < 0.6:
        x = rng.choice((0.1, w - 0.1))
        _box(painter, frame, x - 0.012, y - 0.36, 0.024, 0.4, (112, 84, 66))
        for dx, dy, r in ((0, -0.42, 0.13), (-0.08, -0.36, 0.1), (0.08, -0.35, 0.1)):
            painter.polygon(frame, arc(x + dx, y + dy, r, r, n=20), rng.choice(LEAVES))


def _park(painter: Painter, frame: Frame, w: float, h: float, rng: Random) -> None:
    _fade(painter, rng.choice(((152, 200, 236), (246, 206, 176), (188, 200, 236))), (236, 240, 232))
    painter.polygon(frame, arc(w * rng.uniform(0.1, 0.9), 0.16, 0.08, 0.08, n=24), (252, 226, 150))
    for _ in range(3):
        x, y = rng.uniform(0, w), rng.uniform(0.06, 0.3)
        for dx, r in ((-0.06, 0.035), (0, 0.05), (0.06, 0.035)):
            painter.polygon(frame, arc(x + dx, y, r * 1.3, r, n=16), (250, 250, 250))
    for number in range(3):
        y = h * (0.55 + number * 0.12)
        hill = np.concatenate(
            (
                bend(
                    (0, y + rng.uniform(-0.08, 0.08)),
                    (w * rng.uniform(0.2, 0.8), y - 0.16),
                    (w, y + rng.uniform(-0.06, 0.1)),
                    16,
                ),
                points((w, h), (0, h)),
            )
        )
        painter.polygon(frame, hill, shade(LEAVES[number], 1.35 - number * 0.15))
    for _ in range(rng.randint(1, 4)):
        x, y, r = rng.uniform(0, w), h * rng.uniform(0.6, 0.74), rng.uniform(0.06, 0.12)
        _box(painter, frame, x - 0.01, y, 0.02, 0.14, (120, 88, 66))
        painter.polygon(frame, arc(x, y - r * 0.4, r, r * 1.25, n=22), rng.choice(LEAVES))
    for _ in range(14):
        painter.polygon(
            frame, arc(rng.uniform(0, w), h * rng.uniform(0.84, 0.99), 0.012, 0.012, n=8), rng.choice(ACCENTS)
        )


def _poster(painter: Painter, frame: Frame, w: float, h: float, rng: Random) -> None:
    ground = rng.choice(WALLS + ACCENTS)
    painter.image.paste(ground, (0, 0, *painter.image.size))
    for _ in range(rng.randint(10, 22)):
        x, y, r = rng.uniform(0, w), rng.uniform(0, h), rng.uniform(0.03, 0.13)
        colour = blend(rng.choice(ACCENTS + WALLS + LEAVES), ground, rng.uniform(0.0, 0.5))
        shape = rng.randint(0, 3)
        here = frame.after(placed(x, y, r, rng.uniform(0, 180)))
        if shape == 0:
            painter.polygon(here, arc(0, 0, 1, 1, n=24), colour)
        elif shape == 1:
            painter.polygon(here, points((-1, 0.7), (1, 0.7), (0, -1)), colour)
        elif shape == 2:
            painter.polygon(here, points((-1.3, -0.2), (1.3, -0.2), (1.3, 0.2), (-1.3, 0.2)), colour)
        else:
            painter.polygon(
                here, np.concatenate((arc(0, 0, 1, 1, 0, 180, 16), arc(0, 0, 0.6, 0.6, 180, 0, 14))), colour
            )
