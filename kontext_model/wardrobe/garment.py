"""Garments: what is worn, and how it is drawn in any pose, with or without a body.

Owns cut and trim. A flat lay is the same garment drawn in the flat pose without folds.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from random import Random

import numpy as np

from kontext_model.wardrobe.cloth import COLOURS, Cloth, choose_cloth, weave
from kontext_model.wardrobe.figure import FLAT_POSE, UPPER_ARM, Pose, arm_joints, in_front, leg_joints
from kontext_model.wardrobe.painter import (
    Colour,
    Frame,
    Painter,
    Points,
    arc,
    bend,
    between,
    blend,
    limb,
    mirrored,
    placed,
    points,
    shade,
)  # fmt: skip

KINDS = ("top", "trousers", "skirt", "dress", "set")
_KIND_WEIGHTS = (24, 9, 8, 26, 33)
NECKLINES = ("crew", "V", "scoop", "boat", "collar", "high")
LOGOS = ("heart", "star", "circle", "band", "diamond")
WAIST = 2.3


@dataclass(frozen=True)
class Top:
    """The upper part of a top or dress. Lengths in body units."""

    cloth: Cloth
    neckline: str
    sleeve: float
    flare: float
    hem: float
    hem_width: float
    trim: bool
    logo: str | None
    buttons: bool


@dataclass(frozen=True)
class Bottom:
    """Trousers (`legs`) or a skirt."""

    cloth: Cloth
    legs: bool
    hem: float
    width: float
    pleats: int


@dataclass(frozen=True)
class Garment:
    """What is extracted. A dress is a top that reaches the legs; a set is a top and a bottom."""

    kind: str
    top: Top | None
    bottom: Bottom | None

    @property
    def description(self) -> str:
        """A few words, such as "navy striped top and cream plain trousers"."""

        def words(cloth: Cloth) -> str:
            accent = "" if cloth.pattern == "plain" else f" and {cloth.accent_name}"
            return f"{cloth.base_name}{accent} {cloth.pattern}"

        lower = "trousers" if self.bottom and self.bottom.legs else "skirt"
        parts = []
        if self.top:
            parts.append(f"{words(self.top.cloth)} {'dress' if self.kind == 'dress' else 'top'}")
        if self.bottom:
            parts.append(f"{words(self.bottom.cloth)} {lower}")
        return " with ".join(parts)


def choose_garment(rng: Random) -> Garment:
    """Draw a garment of any kind."""
    kind = rng.choices(KINDS, _KIND_WEIGHTS)[0]
    if kind == "dress":
        return Garment(kind, _choose_top(rng, choose_cloth(rng), dress=True), None)
    if kind == "top":
        return Garment(kind, _choose_top(rng, choose_cloth(rng)), None)
    if kind in ("trousers", "skirt"):
        return Garment(kind, None, _choose_bottom(rng, choose_cloth(rng, plain=rng.random() < 0.4), kind == "trousers"))
    upper = choose_cloth(rng)
    lower = upper if rng.random() < 0.25 else choose_cloth(rng, plain=upper.pattern != "plain" or rng.random() < 0.5)
    return Garment(kind, _choose_top(rng, upper), _choose_bottom(rng, lower, rng.random() < 0.68))


def _choose_top(rng: Random, cloth: Cloth, dress: bool = False) -> Top:
    neckline = rng.choice(NECKLINES)
    if dress:
        hem, hem_width = rng.choice((4.3, 4.9, 5.7)), rng.uniform(1.0, 1.5)
    else:
        hem, hem_width = rng.choice((2.75, 3.0, 3.25)), rng.uniform(0.84, 0.98)
    plain = cloth.pattern == "plain"
    return Top(
        cloth,
        neckline,
        sleeve=rng.choice((0.0, 0.62, 0.85, 1.5, 2.5, 2.5)),
        flare=rng.uniform(0.0, 0.16),
        hem=hem,
        hem_width=hem_width,
        trim=rng.random() < 0.35,
        logo=rng.choice(LOGOS) if plain and not dress and neckline != "collar" and rng.random() < 0.6 else None,
        buttons=neckline == "collar" or (dress and plain and rng.random() < 0.25),
    )


def _choose_bottom(rng: Random, cloth: Cloth, legs: bool) -> Bottom:
    if legs:
        return Bottom(cloth, True, rng.choice((4.1, 6.2, 6.6)), rng.uniform(0.27, 0.56), 0)
    return Bottom(cloth, False, rng.choice((3.9, 4.5, 5.4)), rng.uniform(0.85, 1.55), rng.choice((0, 0, 4, 6)))


@dataclass(frozen=True)
class Piece:
    """One outline of a garment, in body units, with the frame in which its pattern lies."""

    outline: Points
    frame: Frame


@dataclass(frozen=True)
class Look:
    """How cloth is lit: depth and place of folds, and overall light."""

    folds: float = 0.0
    phase: float = 0.0
    light: float = 1.0


def draw_bottom(painter: Painter, body: Frame, bottom: Bottom, pose: Pose, look: Look) -> None:
    """Trousers or a skirt on a pose."""
    pieces = bottom_pieces(bottom, pose)
    _draw_pieces(painter, body, bottom.cloth, pieces, look)
    line = bottom.cloth.outline
    width = _seam(painter)
    band = bend((-0.73 * pose.girth, WAIST + 0.24), (0, WAIST + 0.36), (0.73 * pose.girth, WAIST + 0.24), 10)
    painter.line(body, band, line, width(body))
    if bottom.legs:
        painter.line(body, points((0.0, WAIST + 0.3), (0.0, WAIST + 0.95)), line, width(body))
        for side in (-1, 1):
            painter.line(
                body,
                bend(
                    (side * 0.42, WAIST + 0.34), (side * 0.5, WAIST + 0.62), (side * 0.8 * pose.girth, WAIST + 0.72), 8
                ),
                line,
                width(body),
            )
    for pleat in range(bottom.pleats):
        share = (pleat + 1) / (bottom.pleats + 1) * 2 - 1
        foot = (share * bottom.width * 0.92 + pose.sway, bottom.hem - 0.08)
        painter.line(body, points((share * 0.62, WAIST + 0.4), foot), shade(bottom.cloth.base, 0.8), width(body))


def draw_top(painter: Painter, body: Frame, top: Top, pose: Pose, look: Look) -> None:
    """A top or dress with the sleeves that do not pass in front of it."""
    for side in (-1, 1):
        _draw_pieces(painter, body, top.cloth, sleeve_pieces(top, pose, front=False, sides=(side,)), look)
        if top.trim and top.sleeve and (top.sleeve <= UPPER_ARM or not in_front(pose, side)):
            _draw_cuff(painter, body, top, pose, side)
    _draw_pieces(painter, body, top.cloth, [Piece(torso_outline(top, pose), Frame())], look)
    _draw_details(painter, body, top, pose)


def draw_front_sleeve(painter: Painter, body: Frame, top: Top, pose: Pose, side: int, look: Look) -> None:
    """The sleeve of a forearm that crosses the body."""
    pieces = sleeve_pieces(top, pose, front=True, sides=(side,))
    _draw_pieces(painter, body, top.cloth, pieces, look)
    if top.trim and top.sleeve > UPPER_ARM:
        _draw_cuff(painter, body, top, pose, side)


def bottom_pieces(bottom: Bottom, pose: Pose) -> list[Piece]:
    """Outlines of trousers or a skirt."""
    girth = pose.girth
    if not bottom.legs:
        w, h, s = bottom.width, bottom.hem, pose.sway
        side = bend((0.72 * girth, WAIST), (0.98 * girth, WAIST + 0.7), (w + s, h), 10)
        other = bend((-w + s, h), (-0.98 * girth, WAIST + 0.7), (-0.72 * girth, WAIST), 10)
        hem = bend((w + s, h), (s, h + 0.22), (-w + s, h), 10)
        return [Piece(np.concatenate((side, hem, other)), Frame())]
    half = points(
        (0.0, WAIST),
        (0.72 * girth, WAIST),
        (0.86 * girth, WAIST + 0.65),
        (0.9 * girth, WAIST + 1.0),
        (0.12, WAIST + 1.32),
    )
    pieces = []
    for side in (-1, 1):
        hip, knee, ankle = leg_joints(pose, side)
        reach = bottom.hem - hip[1]
        knee_width = 0.36 + (bottom.width - 0.36) * 0.45
        first, length = between(*hip, *knee)
        share = min(1.0, reach / length)
        pieces.append(
            Piece(
                _moved(limb(length * share, 0.45 * girth, 0.45 + (knee_width - 0.45) * share, reach > length), first),
                first.after(placed(0, -hip[1])),
            )
        )
        if reach > length:
            second, length_2 = between(*knee, *ankle)
            share = min(1.06, (reach - length) / length_2)
            pieces.append(
                Piece(
                    _moved(limb(length_2 * share, knee_width, bottom.width), second),
                    second.after(placed(0, -length - hip[1])),
                )
            )
    return [*pieces, Piece(mirrored(half), Frame())]


def _moved(outline: Points, frame: Frame) -> Points:
    return frame.apply(outline)


def torso_outline(top: Top, pose: Pose) -> Points:
    """The body of a top or dress without its sleeves."""
    girth, sway = pose.girth, pose.sway
    neck = {"boat": 0.56, "scoop": 0.46, "high": 0.3}.get(top.neckline, 0.36)
    shoulder, armhole = (0.96, 0.8) if top.sleeve else (0.72, 0.56)
    waist = 0.72 + top.flare * (0.4 if top.hem > 4 else 1)
    depth = {"crew": 0.3, "V": 0.86, "scoop": 0.68, "boat": 0.2, "collar": 0.5, "high": -0.3}[top.neckline]
    if top.neckline in ("V", "collar"):
        neckline = points((-neck, 0.0), (0.0, depth), (neck, 0.0))
    elif top.neckline == "high":
        neckline = points((-neck, -0.28), (neck, -0.28), (neck, 0.02))
    else:
        neckline = bend((-neck, 0.0), (0.0, depth * 1.75), (neck, 0.0), 12)

    def flank(side: int) -> Points:
        def x(value: float) -> float:
            return side * value * girth

        return np.concatenate(
            (
                points((x(shoulder), 0.2)),
                bend((x(shoulder), 0.24), (x(armhole), 0.75), (x(0.86), 1.05), 6),
                bend((x(0.86), 1.05), (x(waist * 0.94), 1.6), (x(waist), 2.05), 6),
                bend(
                    (x(waist), 2.1),
                    (x(waist + (top.hem_width - waist) * 0.35), 2.1 + (top.hem - 2.1) * 0.3),
                    (x(top.hem_width) + sway * (top.hem / 4), top.hem),
                    8,
                ),
            )
        )

    shift = sway * (top.hem / 4)
    hem = bend(
        (top.hem_width * girth + shift, top.hem), (shift, top.hem + 0.2), (-top.hem_width * girth + shift, top.hem), 10
    )
    return np.concatenate((neckline, flank(1), hem, flank(-1)[::-1]))


def sleeve_pieces(top: Top, pose: Pose, front: bool, sides: tuple[int, ...] = (-1, 1)) -> list[Piece]:
    """Sleeve outlines: the forearms in front of the body, or everything else."""
    pieces: list[Piece] = []
    for side in sides if top.sleeve else ():
        shoulder, elbow, wrist = arm_joints(pose, side)
        first, length = between(*shoulder, *elbow)
        share = min(1.0, top.sleeve / length)
        start, elbow_width = 0.37, 0.33 + top.flare * 0.6
        stop = start + (elbow_width - start) * share
        lower = top.sleeve > length
        if lower and front == in_front(pose, side):
            second, length_2 = between(*elbow, *wrist)
            share_2 = (top.sleeve - length) / length_2
            outline = limb(length_2 * share_2, elbow_width, elbow_width + (0.25 - elbow_width) * share_2)
            pieces.append(Piece(second.apply(outline), second.after(placed(0, -length))))
        if not front:
            outline = limb(length * share, start, stop, round_stop=lower)
            pieces.append(Piece(first.apply(outline), first))
    return pieces


def _seam(painter: Painter) -> Callable[[Frame], float]:
    """A line about one delivered pixel wide (a little more on large pictures), in local units."""

    def width(frame: Frame) -> float:
        return max(1.0, frame.scale * 0.034) / frame.scale

    return width


def _draw_pieces(painter: Painter, body: Frame, cloth: Cloth, pieces: list[Piece], look: Look) -> None:
    edge_px = max(0.8, body.scale * 0.03)
    for piece in pieces:
        painter.edge(body, piece.outline, cloth.outline, edge_px)
    for piece in pieces:
        fill = partial(weave, cloth, folds=look.folds, phase=look.phase, light=look.light)
        painter.paint(body, piece.outline, fill, body.after(piece.frame))


def _draw_cuff(painter: Painter, body: Frame, top: Top, pose: Pose, side: int) -> None:
    shoulder, elbow, wrist = arm_joints(pose, side)
    frame, length = between(*shoulder, *elbow)
    at, half = top.sleeve, 0.37 + (0.33 + top.flare * 0.6 - 0.37) * min(1.0, top.sleeve / length)
    if top.sleeve > length:
        at -= length
        frame, length_2 = between(*elbow, *wrist)
        half = (0.33 + top.flare * 0.6) + (0.25 - 0.33 - top.flare * 0.6) * at / length_2
    painter.polygon(
        body.after(frame), points((-half, at - 0.16), (half, at - 0.16), (half, at), (-half, at)), top.cloth.accent
    )


def _draw_details(painter: Painter, body: Frame, top: Top, pose: Pose) -> None:
    """Neck band, collar, buttons, hem band, waist seam and print."""
    cloth, girth, width = top.cloth, pose.girth, _seam(painter)
    trim = cloth.accent if top.trim else shade(cloth.base, 0.84)
    neck = {"boat": 0.56, "scoop": 0.46}.get(top.neckline, 0.36)
    if top.neckline == "high":
        painter.polygon(body, points((-0.3, -0.28), (0.3, -0.28), (0.33, 0.06), (-0.33, 0.06)), trim)
    elif top.neckline == "collar":
        for side in (-1, 1):
            flap = points((side * 0.34, -0.1), (side * 0.02, 0.48), (side * 0.34, 0.62), (side * 0.6, 0.1))
            painter.edge(body, flap, cloth.outline, max(0.6, body.scale * 0.02))
            painter.polygon(body, flap, blend(cloth.accent, cloth.base, 0.1) if top.trim else shade(cloth.base, 0.95))
    elif top.neckline == "V":
        painter.line(body, points((-neck, 0.02), (0.0, 0.88), (neck, 0.02)), trim, 0.12)
    else:
        depth = {"crew": 0.3, "scoop": 0.68, "boat": 0.2}[top.neckline]
        painter.line(body, bend((-neck, 0.02), (0.0, depth * 1.75 + 0.04), (neck, 0.02), 14), trim, 0.12)
    if top.buttons:
        painter.line(body, points((0.0, 0.5), (pose.sway * top.hem / 4, top.hem)), cloth.outline, width(body))
        for number in range(4):
            y = 0.8 + number * 0.5
            painter.polygon(
                body,
                arc(0.1 + pose.sway * y / 4, y, 0.07, 0.07, n=12),
                shade(cloth.base, 0.5 if sum(cloth.base) > 300 else 1.6),
            )
    if top.hem > 4:
        w = (0.72 + top.flare * 0.4) * girth
        painter.line(body, bend((-w, 2.08), (0, 2.2), (w, 2.08), 10), cloth.outline, width(body))
    elif top.trim:
        w, shift = top.hem_width * girth, pose.sway * top.hem / 4
        band = np.concatenate(
            (
                bend((-w + shift, top.hem), (shift, top.hem + 0.2), (w + shift, top.hem), 10),
                bend((w + shift, top.hem - 0.2), (shift, top.hem), (-w + shift, top.hem - 0.2), 10),
            )
        )
        painter.polygon(body, band, cloth.accent)
    if top.logo:
        _draw_logo(painter, body.after(placed(0.0, 1.2)), top.logo, cloth.accent)


def _draw_logo(painter: Painter, frame: Frame, logo: str, colour: Colour) -> None:
    if logo == "circle":
        painter.polygon(frame, arc(0, 0, 0.38, 0.38, n=28), colour)
    elif logo == "band":
        painter.polygon(frame, points((-0.8, -0.16), (0.8, -0.16), (0.8, 0.2), (-0.8, 0.2)), colour)
    elif logo == "diamond":
        painter.polygon(frame, points((0, -0.46), (0.4, 0), (0, 0.46), (-0.4, 0)), colour)
    elif logo == "heart":
        half = np.concatenate(
            (
                points((0.0, -0.14)),
                bend((0.0, -0.16), (0.2, -0.48), (0.42, -0.2)),
                bend((0.42, -0.2), (0.42, 0.12), (0.0, 0.46)),
            )
        )
        painter.polygon(frame, mirrored(half), colour)
    else:
        turns = np.arange(10) * np.pi / 5
        radius = np.where(np.arange(10) % 2 == 0, 0.48, 0.2)
        painter.polygon(frame, np.stack((radius * np.sin(turns), -radius * np.cos(turns)), axis=1), colour)


def flat_pieces(garment: Garment) -> tuple[list[Points], list[Points], float]:
    """Outlines of the flat garment (top part, bottom part, already set apart) and the bottom's shift down."""
    upper: list[Points] = []
    lower: list[Points] = []
    shift = 0.0
    if garment.top:
        pieces = sleeve_pieces(garment.top, FLAT_POSE, front=False)
        upper = [piece.outline for piece in pieces] + [torso_outline(garment.top, FLAT_POSE)]
    if garment.bottom:
        shift = garment.top.hem + 0.3 - WAIST if garment.top else 0.0
        lower = [piece.outline + np.array((0.0, shift)) for piece in bottom_pieces(garment.bottom, FLAT_POSE)]
    return upper, lower, shift


def draw_flat(painter: Painter, garment: Garment, fill: float = 0.86) -> Frame:
    """Draw the garment flat and centred so that it fills that share of the canvas; gives the frame used."""
    upper, lower, shift = flat_pieces(garment)
    every = np.concatenate(upper + lower)
    low, high = every.min(axis=0), every.max(axis=0)
    # A small garment stays small: at most as large as if it were 4.4 units long.
    scale = min(painter.width_px * fill / (high[0] - low[0]), painter.height_px * fill / (high[1] - low[1]))
    scale = min(scale, min(painter.width_px, painter.height_px) / 4.4)
    frame = placed(painter.width_px / 2, painter.height_px / 2 - (low[1] + high[1]) / 2 * scale, scale)
    if garment.bottom:
        draw_bottom(painter, frame.after(placed(0, shift)), garment.bottom, FLAT_POSE, Look())
    if garment.top:
        draw_top(painter, frame, garment.top, FLAT_POSE, Look())
    return frame


NEUTRAL = COLOURS["charcoal"]
