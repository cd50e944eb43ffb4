"""A drawn person: pose, build, skin, hair, face, shoes and small things that are not clothes.

Owns the body's proportions. Units: the body's own, shoulder to shoulder about two; the neck's base is the origin, v
points down; a person is about nine units tall.
"""

from dataclasses import dataclass
from math import cos, radians, sin
from random import Random

import numpy as np

from kontext_model.wardrobe.painter import Colour, Frame, Painter, arc, bend, between, blend, limb, points, shade

SHOULDER, HIP = (0.82, 0.53), (0.42, 2.95)
UPPER_ARM, FOREARM, THIGH, SHIN = 1.35, 1.3, 1.9, 1.85
SKINS: tuple[Colour, ...] = (
    (252, 222, 198), (244, 202, 172), (232, 184, 148), (214, 160, 120), (186, 128, 90),
    (150, 98, 68), (114, 72, 50), (84, 54, 42),
)  # fmt: skip
HAIRS: tuple[Colour, ...] = (
    (36, 28, 30), (62, 40, 32), (98, 62, 40), (150, 98, 52), (214, 168, 90),
    (176, 76, 40), (178, 178, 184), (226, 120, 150),
)  # fmt: skip
SHOES: tuple[Colour, ...] = ((236, 234, 230), (46, 44, 50), (150, 92, 58), (206, 70, 66), (70, 98, 160))


@dataclass(frozen=True)
class Limbs:
    """Joint angles in degrees: 0 hangs down, positive turns outward."""

    upper: float
    lower: float


@dataclass(frozen=True)
class Pose:
    """Arms and legs, left of the picture first, and how far the hem swings."""

    arms: tuple[Limbs, Limbs]
    legs: tuple[Limbs, Limbs]
    sway: float = 0.0
    girth: float = 1.0


FLAT_POSE = Pose((Limbs(34, 34), Limbs(34, 34)), (Limbs(6, 3), Limbs(6, 3)))
_ARMS = {
    "relaxed": (Limbs(15, 7), 30),
    "hip": (Limbs(42, -50), 16),
    "pocket": (Limbs(24, -10), 12),
    "out": (Limbs(52, 58), 10),
    "wave": (Limbs(96, 160), 7),
    "crossed": (Limbs(12, -76), 9),
    "raised": (Limbs(128, 150), 4),
}


@dataclass(frozen=True)
class Person:
    """Everything about the wearer that must not reach the flat lay."""

    pose: Pose
    skin: Colour
    hair: Colour
    hair_style: str
    shoes: Colour
    glasses: bool
    hat: Colour | None
    bag: Colour | None
    necklace: bool
    smile: float


def choose_person(rng: Random) -> Person:
    """Draw a person; poses stay those that a catalogue shows."""

    def arm() -> Limbs:
        base = rng.choices([limbs for limbs, _ in _ARMS.values()], [weight for _, weight in _ARMS.values()])[0]
        return Limbs(base.upper + rng.uniform(-6, 6), base.lower + rng.uniform(-7, 7))

    def leg() -> Limbs:
        thigh = rng.uniform(0, 11)
        return Limbs(thigh, thigh - rng.uniform(0, 8))

    pose = Pose((arm(), arm()), (leg(), leg()), rng.uniform(-0.14, 0.14), rng.uniform(0.94, 1.09))
    return Person(
        pose,
        rng.choice(SKINS),
        rng.choice(HAIRS),
        rng.choice(("short", "bob", "long", "bun", "curly", "pony", "crop")),
        rng.choice(SHOES),
        glasses=rng.random() < 0.16,
        hat=rng.choice(SHOES) if rng.random() < 0.1 else None,
        bag=rng.choice(((120, 74, 48), (48, 46, 52), (196, 64, 72))) if rng.random() < 0.14 else None,
        necklace=rng.random() < 0.15,
        smile=rng.uniform(0.5, 1.0),
    )


def arm_joints(pose: Pose, side: int) -> tuple[tuple[float, float], tuple[float, float], tuple[float, float]]:
    """Shoulder, elbow and wrist of side -1 (left of the picture) or 1."""
    limbs = pose.arms[(side + 1) // 2]
    return _joints((SHOULDER[0] * pose.girth * side, SHOULDER[1]), limbs, side, UPPER_ARM, FOREARM)


def leg_joints(pose: Pose, side: int) -> tuple[tuple[float, float], tuple[float, float], tuple[float, float]]:
    """Hip, knee and ankle of side -1 (left of the picture) or 1."""
    limbs = pose.legs[(side + 1) // 2]
    return _joints((HIP[0] * pose.girth * side, HIP[1]), limbs, side, THIGH, SHIN)


def _joints(
    start: tuple[float, float], limbs: Limbs, side: int, first: float, second: float
) -> tuple[tuple[float, float], tuple[float, float], tuple[float, float]]:
    x, y = start
    middle = (x + side * first * sin(radians(limbs.upper)), y + first * cos(radians(limbs.upper)))
    x, y = middle
    return start, middle, (x + side * second * sin(radians(limbs.lower)), y + second * cos(radians(limbs.lower)))


def in_front(pose: Pose, side: int) -> bool:
    """Whether the forearm lies before the body."""
    return pose.arms[(side + 1) // 2].lower < -28


def draw_behind(painter: Painter, body: Frame, person: Person) -> None:
    """Hair that falls behind the shoulders."""
    hair = shade(person.hair, 0.86)
    if person.hair_style == "long":
        outline = np.concatenate(
            (arc(0, -1.05, 0.78, 0.8, 180, 360, 16), points((0.86, 0.55), (0.5, 0.72), (-0.5, 0.72), (-0.86, 0.55)))
        )
        painter.polygon(body, outline, hair)
    elif person.hair_style == "bob":
        outline = np.concatenate((arc(0, -1.05, 0.8, 0.8, 180, 360, 16), points((0.84, -0.38), (-0.84, -0.38))))
        painter.polygon(body, outline, hair)
    elif person.hair_style == "pony":
        painter.polygon(body, bend((0.4, -1.6), (1.5, -1.3), (0.95, 0.3)), hair)
        painter.polygon(body, arc(0.98, -0.55, 0.26, 0.62), hair)
    elif person.hair_style == "curly":
        for x, y in ((-0.66, -0.9), (0.66, -0.9), (-0.6, -1.4), (0.6, -1.4), (-0.72, -0.5), (0.72, -0.5)):
            painter.polygon(body, arc(x, y, 0.36, 0.36, n=14), hair)
    if person.hair_style == "bun":
        painter.polygon(body, arc(0, -1.93, 0.34, 0.32, n=16), person.hair)


def draw_legs(painter: Painter, body: Frame, person: Person) -> None:
    """Bare legs and shoes."""
    for side in (-1, 1):
        hip, knee, ankle = leg_joints(person.pose, side)
        for start, stop, r0, r1 in ((hip, knee, 0.4, 0.27), (knee, ankle, 0.27, 0.17)):
            frame, length = between(*start, *stop)
            painter.polygon(body.after(frame), limb(length, r0, r1, round_stop=True), person.skin)
        x, y = ankle
        sole = points((x - 0.17, y - 0.06), (x + 0.17, y - 0.06), (x + 0.17, y + 0.1))
        toe = bend((x + side * 0.3, y + 0.12), (x + side * 0.56, y + 0.2), (x + side * 0.5, y + 0.4))
        heel = arc(x, y + 0.02, 0.19, 0.14, 180, 360, 8)[::side]
        shoe = np.concatenate((heel, toe, points((x - side * 0.2, y + 0.4))))
        painter.polygon(body, sole, person.skin)
        painter.polygon(body, shoe, person.shoes)


def draw_torso(painter: Painter, body: Frame, person: Person) -> None:
    """Bare body, neck and the chin's shadow."""
    girth = person.pose.girth
    right = points((0.0, -0.3), (0.26, -0.3), (0.28, 0.0), (0.84 * girth, 0.2), (0.8 * girth, 1.0), (0.66 * girth, 1.9))
    right = np.concatenate((right, points((0.8 * girth, 2.9), (0.0, 3.3))))
    painter.polygon(body, np.concatenate((right, right[::-1] * np.array((-1.0, 1.0)))), person.skin)
    painter.polygon(body, arc(0, -0.28, 0.28, 0.22, 0, 180, 10), shade(person.skin, 0.86))
    if person.necklace:
        painter.line(body, bend((-0.3, 0.02), (0, 0.66), (0.3, 0.02)), (232, 192, 84), 0.055)


def draw_arm(painter: Painter, body: Frame, person: Person, side: int, forearm: bool) -> None:
    """The bare upper arm, or the forearm with its hand."""
    shoulder, elbow, wrist = arm_joints(person.pose, side)
    start, stop, r0, r1 = (elbow, wrist, 0.22, 0.15) if forearm else (shoulder, elbow, 0.28, 0.22)
    frame, length = between(*start, *stop)
    local = body.after(frame)
    dark = shade(person.skin, 0.84)
    if forearm and in_front(person.pose, side):
        painter.polygon(local, limb(length + 0.06, r0 + 0.05, r1 + 0.05, round_stop=True), dark)
    painter.polygon(local, limb(length, r0, r1, round_stop=True), person.skin)
    if forearm:
        painter.polygon(local, arc(0, length + 0.16, 0.2, 0.26, n=16), person.skin)
        painter.polygon(local, arc(-0.17 * side, length + 0.06, 0.08, 0.17, n=10), person.skin)


def draw_head(painter: Painter, body: Frame, person: Person) -> None:
    """Head, face, hair in front, hat and glasses."""
    skin, hair = person.skin, person.hair
    for side in (-1, 1):
        painter.polygon(body, arc(side * 0.64, -0.92, 0.13, 0.17, n=12), shade(skin, 0.92))
    painter.polygon(body, arc(0, -0.95, 0.64, 0.76, n=36), skin)
    blush = blend(skin, (236, 96, 96), 0.28)
    ink = blend(skin, (30, 22, 26), 0.88)
    for side in (-1, 1):
        painter.polygon(body, arc(side * 0.38, -0.72, 0.13, 0.09, n=12), blush)
        painter.polygon(body, arc(side * 0.25, -0.94, 0.065, 0.09, n=12), ink)
        painter.line(
            body, bend((side * 0.14, -1.14), (side * 0.25, -1.21), (side * 0.37, -1.13), 6), shade(hair, 0.8), 0.05
        )
    painter.line(body, bend((-0.02, -0.9), (0.09, -0.76), (-0.02, -0.75), 6), shade(skin, 0.78), 0.045)
    painter.line(body, bend((-0.18, -0.57), (0, -0.57 + 0.2 * person.smile), (0.18, -0.57), 8), (172, 62, 66), 0.065)
    if person.glasses:
        for side in (-1, 1):
            painter.line(body, arc(side * 0.26, -0.94, 0.19, 0.18, n=18), (52, 48, 58), 0.05)
        painter.line(body, points((-0.08, -0.96), (0.08, -0.96)), (52, 48, 58), 0.05)
    _draw_fringe(painter, body, person, hair)
    if person.hat:
        painter.polygon(
            body,
            np.concatenate((arc(0, -1.32, 0.74, 0.62, 180, 360, 18), points((0.74, -1.24), (-0.74, -1.24)))),
            person.hat,
        )
        painter.polygon(body, arc(0.12, -1.25, 0.94, 0.13, n=20), shade(person.hat, 0.8))


def _draw_fringe(painter: Painter, body: Frame, person: Person, hair: Colour) -> None:
    cap = arc(0, -1.06, 0.72, 0.76, 172, 368, 22)
    style = person.hair_style
    if style == "crop":
        painter.polygon(
            body,
            np.concatenate((arc(0, -1.12, 0.67, 0.66, 190, 350, 18), bend((0.62, -1.26), (0, -1.5), (-0.62, -1.26)))),
            hair,
        )
    elif style in ("short", "curly"):
        painter.polygon(
            body,
            np.concatenate(
                (cap, bend((0.66, -1.0), (0.62, -1.42), (0.2, -1.4)), bend((0.2, -1.4), (-0.5, -1.24), (-0.66, -0.98)))
            ),
            hair,
        )
    else:
        for side in (-1, 1):
            sweep = np.concatenate(
                (
                    bend((side * -0.12, -1.62), (side * 0.5, -1.42), (side * 0.6, -0.8)),
                    points((side * 0.74, -0.78)),
                    arc(0, -1.06, 0.74, 0.76, 8, -95, 14) * np.array((side, 1.0)),
                )
            )
            painter.polygon(body, sweep, hair)


def draw_bag(painter: Painter, body: Frame, person: Person) -> None:
    """A bag whose strap crosses the chest."""
    if person.bag is None:
        return
    painter.line(body, points((-0.62, 0.14), (0.98, 2.75)), person.bag, 0.13)
    painter.polygon(body, points((0.62, 2.65), (1.42, 2.65), (1.48, 3.35), (0.56, 3.35)), person.bag)
    painter.polygon(body, points((0.62, 2.65), (1.42, 2.65), (1.3, 2.98), (0.74, 2.98)), shade(person.bag, 0.8))
