"""Cut: the outlines of a garment's pieces in any pose, in body units.

Pure geometry; refuses colours and canvases.
"""

from dataclasses import dataclass

import numpy as np

from kontext_model.wardrobe.figure import FLAT_POSE, Pose, arm_joints, in_front, leg_joints
from kontext_model.wardrobe.garment import WAIST, Bib, Bottom, Garment, Top
from kontext_model.wardrobe.painter import Frame, Points, bend, between, limb, mirrored, placed, points


@dataclass(frozen=True)
class Piece:
    """One outline of a garment, in body units, with the frame in which its pattern lies."""

    outline: Points
    frame: Frame


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
                first.apply(limb(length * share, 0.45 * girth, 0.45 + (knee_width - 0.45) * share, reach > length)),
                first.after(placed(0, -hip[1])),
            )
        )
        if reach > length:
            second, length_2 = between(*knee, *ankle)
            share = min(1.06, (reach - length) / length_2)
            pieces.append(
                Piece(
                    second.apply(limb(length_2 * share, knee_width, bottom.width)),
                    second.after(placed(0, -length - hip[1])),
                )
            )
    return [*pieces, Piece(mirrored(half), Frame())]


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


def bib_pieces(bib: Bib, pose: Pose) -> list[Piece]:
    """Outlines of dungarees above the waist: both straps and the bib with its waistband."""
    girth, w = pose.girth, bib.half_width
    flank = bend((w, bib.upper), (w + 0.02, WAIST - 0.25), (0.78 * girth, WAIST - 0.1), 8)
    right = np.concatenate((points((0.0, bib.upper)), flank, points((0.8 * girth, WAIST + 0.3), (0.0, WAIST + 0.3))))
    straps = [
        points(
            (side * (w - 0.02), bib.upper + 0.2),
            (side * (w - 0.2), bib.upper + 0.2),
            (side * 0.38, 0.0),
            (side * 0.56, 0.04),
        )
        for side in (-1, 1)
    ]
    return [Piece(outline, Frame()) for outline in (*straps, mirrored(right))]


def strap_backs(bib: Bib) -> list[Points]:
    """What a wearer hides and a flat lay shows: the straps run on behind the bib."""
    return [
        points((side * 0.4, 0.0), (side * 0.56, 0.02), (side * 0.2, bib.upper), (side * 0.02, bib.upper))
        for side in (-1, 1)
    ]


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
    if garment.bib:
        upper = [*strap_backs(garment.bib), *(piece.outline for piece in bib_pieces(garment.bib, FLAT_POSE))]
    return upper, lower, shift
