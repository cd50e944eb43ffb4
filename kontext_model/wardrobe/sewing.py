"""Sewing: tops and bottoms drawn on any pose, with or without a body.

Owns seams, edges and trim. A flat lay is the same garment drawn in the flat pose without folds.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np

from kontext_model.wardrobe.cloth import Cloth, weave
from kontext_model.wardrobe.cut import Piece, bottom_pieces, sleeve_pieces, torso_outline
from kontext_model.wardrobe.figure import UPPER_ARM, Pose, arm_joints, in_front
from kontext_model.wardrobe.garment import WAIST, Bottom, Top
from kontext_model.wardrobe.painter import (
    Colour,
    Frame,
    Painter,
    arc,
    bend,
    between,
    blend,
    mirrored,
    placed,
    points,
    shade,
)


@dataclass(frozen=True)
class Look:
    """How cloth is lit: depth and place of folds, and overall light."""

    folds: float = 0.0
    phase: float = 0.0
    light: float = 1.0


def draw_bottom(painter: Painter, body: Frame, bottom: Bottom, pose: Pose, look: Look) -> None:
    """Trousers or a skirt on a pose."""
    pieces = bottom_pieces(bottom, pose)
    sew(painter, body, bottom.cloth, pieces, look)
    line, width = bottom.cloth.outline, seam_width(body)
    band = bend((-0.73 * pose.girth, WAIST + 0.24), (0, WAIST + 0.36), (0.73 * pose.girth, WAIST + 0.24), 10)
    painter.line(body, band, line, width)
    if bottom.legs:
        painter.line(body, points((0.0, WAIST + 0.3), (0.0, WAIST + 0.95)), line, width)
        for side in (-1, 1):
            painter.line(
                body,
                bend(
                    (side * 0.42, WAIST + 0.34), (side * 0.5, WAIST + 0.62), (side * 0.8 * pose.girth, WAIST + 0.72), 8
                ),
                line,
                width,
            )
    for pleat in range(bottom.pleats):
        share = (pleat + 1) / (bottom.pleats + 1) * 2 - 1
        foot = (share * bottom.width * 0.92 + pose.sway, bottom.hem - 0.08)
        painter.line(body, points((share * 0.62, WAIST + 0.4), foot), shade(bottom.cloth.base, 0.8), width)


def draw_top(painter: Painter, body: Frame, top: Top, pose: Pose, look: Look) -> None:
    """A top or dress with the sleeves that do not pass in front of it."""
    for side in (-1, 1):
        sew(painter, body, top.cloth, sleeve_pieces(top, pose, front=False, sides=(side,)), look)
        if top.trim and top.sleeve and (top.sleeve <= UPPER_ARM or not in_front(pose, side)):
            _draw_cuff(painter, body, top, pose, side)
    sew(painter, body, top.cloth, [Piece(torso_outline(top, pose), Frame())], look)
    _draw_details(painter, body, top, pose)


def draw_front_sleeve(painter: Painter, body: Frame, top: Top, pose: Pose, side: int, look: Look) -> None:
    """The sleeve of a forearm that crosses the body."""
    pieces = sleeve_pieces(top, pose, front=True, sides=(side,))
    sew(painter, body, top.cloth, pieces, look)
    if top.trim and top.sleeve > UPPER_ARM:
        _draw_cuff(painter, body, top, pose, side)


def seam_width(frame: Frame) -> float:
    """A line about one delivered pixel wide (a little more on large pictures), in local units."""
    return max(1.0, frame.scale * 0.034) / frame.scale


def sew(painter: Painter, body: Frame, cloth: Cloth, pieces: list[Piece], look: Look) -> None:
    """Draw pieces as one garment: first all their edges, then the cloth, so that no seam shows between them."""
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
    cloth, girth, width = top.cloth, pose.girth, seam_width(body)
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
        painter.line(body, points((0.0, 0.5), (pose.sway * top.hem / 4, top.hem)), cloth.outline, width)
        for number in range(4):
            y = 0.8 + number * 0.5
            painter.polygon(
                body,
                arc(0.1 + pose.sway * y / 4, y, 0.07, 0.07, n=12),
                shade(cloth.base, 0.5 if sum(cloth.base) > 300 else 1.6),
            )
    if top.hem > 4:
        w = (0.72 + top.flare * 0.4) * girth
        painter.line(body, bend((-w, 2.08), (0, 2.2), (w, 2.08), 10), cloth.outline, width)
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
