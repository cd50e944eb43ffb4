"""Dungarees: a style that the training never draws, for a LoRA to learn.

Owns their washes, stitching and how they are worn: over a top that is not part of the answer. Symmetric about u = 0.
"""

from random import Random

import numpy as np

from kontext_model.wardrobe.cloth import COLOURS, Cloth
from kontext_model.wardrobe.cut import bib_pieces, bottom_pieces, strap_backs
from kontext_model.wardrobe.figure import FLAT_POSE, Pose, leg_joints
from kontext_model.wardrobe.garment import WAIST, Bib, Bottom, Garment
from kontext_model.wardrobe.painter import Colour, Frame, Painter, Points, arc, bend, between, mirrored, points, shade
from kontext_model.wardrobe.sewing import Look, seam_width, sew

AMBER, BRASS = (226, 158, 58), (222, 184, 92)
WASHES: dict[str, tuple[Colour, Colour]] = {
    "light denim": ((150, 178, 210), AMBER),
    "mid denim": ((88, 124, 172), AMBER),
    "raw denim": ((50, 64, 100), AMBER),
    "black denim": ((58, 60, 70), AMBER),
    "olive drill": ((116, 120, 78), COLOURS["cream"]),
    "rust corduroy": ((168, 86, 52), COLOURS["cream"]),
}
"""Cloth and thread by name."""


def choose_dungarees(rng: Random) -> Garment:
    """Draw a pair: long or short, slim to wide."""
    name = rng.choice(tuple(WASHES))
    base, stitch = WASHES[name]
    lift = rng.uniform(0.94, 1.06)
    cloth = Cloth("plain", name, "", (int(base[0] * lift), int(base[1] * lift), int(base[2] * lift)), stitch, 0.5, 0.5)
    bottom = Bottom(cloth, True, rng.choice((4.1, 6.2, 6.5)), rng.uniform(0.34, 0.56), 0)
    return Garment("dungarees", None, bottom, Bib(rng.uniform(0.46, 0.56), rng.uniform(0.85, 1.15), stitch))


def draw_dungarees(painter: Painter, body: Frame, bottom: Bottom, bib: Bib, pose: Pose, look: Look) -> None:
    """Dungarees on a pose, over whatever is drawn already."""
    if pose is FLAT_POSE:
        for strap in strap_backs(bib):
            painter.edge(body, strap, bottom.cloth.outline, max(0.8, body.scale * 0.03))
            painter.polygon(body, strap, shade(bottom.cloth.base, 0.8))
    sew(painter, body, bottom.cloth, [*bib_pieces(bib, pose), *bottom_pieces(bottom, pose)], look)
    line, width = bottom.cloth.outline, seam_width(body)
    _draw_turn_ups(painter, body, bottom, pose)
    for path in _edges(bib, pose):
        painter.line(body, path, line, width)
    for path in _stitches(bib, pose):
        painter.line(body, path, bib.stitch, max(width, 0.045))
    for side in (-1, 1):
        painter.polygon(body, arc(side * (bib.half_width - 0.11), bib.upper + 0.13, 0.1, 0.1, n=14), BRASS)
        painter.polygon(body, arc(side * 0.74 * pose.girth, WAIST + 0.42, 0.07, 0.07, n=12), BRASS)


def _draw_turn_ups(painter: Painter, body: Frame, bottom: Bottom, pose: Pose) -> None:
    """The legs' ends, turned so that the cloth's pale side shows."""
    for side in (-1, 1):
        hip, knee, ankle = leg_joints(pose, side)
        frame, length = between(*hip, *knee)
        at, half = bottom.hem - hip[1], 0.36 + (bottom.width - 0.36) * 0.45
        if at > length:
            frame, length_2 = between(*knee, *ankle)
            at = min(at - length, 1.06 * length_2)
            half += (bottom.width - half) * min(1.0, at / length_2)
        else:
            half = 0.45 * pose.girth + (half - 0.45) * min(1.0, at / length)
        band = points((-half, at - 0.24), (half, at - 0.24), (half, at), (-half, at))
        painter.polygon(body.after(frame), band, shade(bottom.cloth.base, 1.45))


def _edges(bib: Bib, pose: Pose) -> list[Points]:
    """Lines in the outline's colour: the bib's upper edge and sides, the waistband's lower seam, the fly."""
    w, girth = bib.half_width, pose.girth
    return [
        points((-w, bib.upper), (w, bib.upper)),
        bend((-0.8 * girth, WAIST + 0.24), (0, WAIST + 0.34), (0.8 * girth, WAIST + 0.24), 10),
        points((0.0, WAIST + 0.3), (0.0, WAIST + 1.0)),
    ]


def _stitches(bib: Bib, pose: Pose) -> list[Points]:
    """Lines in the thread's colour: hems of the bib and its pocket, waistband, hip pockets."""
    w, girth, upper = bib.half_width, pose.girth, bib.upper
    pocket = mirrored(points((0.0, upper + 0.36), (0.3, upper + 0.36), (0.3, upper + 0.86), (0.0, upper + 1.02)))
    hips = [
        bend((side * 0.4, WAIST + 0.34), (side * 0.48, WAIST + 0.72), (side * 0.86 * girth, WAIST + 0.8), 8)
        for side in (-1, 1)
    ]
    return [
        points((-w + 0.06, upper + 0.12), (w - 0.06, upper + 0.12)),
        np.concatenate((pocket, pocket[:1])),
        bend((-0.76 * girth, WAIST), (0, WAIST + 0.08), (0.76 * girth, WAIST), 10),
        *hips,
    ]
