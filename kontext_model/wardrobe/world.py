"""The wardrobe world: one seed gives one photo, one prompt and the picture that answers it.

Owns framing, the order in which things are drawn, and determinism: the same seed and size give the same bytes in every
process. Refuses to import torch.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from types import MappingProxyType

from PIL import Image, ImageChops

from kontext_model.wardrobe.cloth import choose_cloth
from kontext_model.wardrobe.dungarees import choose_dungarees, draw_dungarees
from kontext_model.wardrobe.figure import (
    Person,
    choose_person,
    draw_arm,
    draw_bag,
    draw_behind,
    draw_head,
    draw_legs,
    draw_torso,
    in_front,
)  # fmt: skip
from kontext_model.wardrobe.flat_lay import draw_flat
from kontext_model.wardrobe.garment import Bottom, Garment, Top, choose_garment
from kontext_model.wardrobe.painter import Frame, Painter, placed
from kontext_model.wardrobe.prompts import GROUNDS, PROMPTS, WEIGHTS
from kontext_model.wardrobe.scene import draw_scene
from kontext_model.wardrobe.sewing import Look, draw_bottom, draw_front_sleeve, draw_top

OVERSAMPLE = 2
STYLES: Mapping[str, Callable[[Random], Garment]] = MappingProxyType({"dungarees": choose_dungarees})
"""Garments that no seed draws by itself: the model has never seen them until a LoRA is trained on them."""


@dataclass(frozen=True)
class Sample:
    """One training or test example.

    `photo` and `target` are RGB of the same size; `mask` (L, 0 or 255) marks in the target the garment (flat kinds) or
    the person (kind `background`).
    """

    seed: int
    photo: Image.Image
    target: Image.Image
    mask: Image.Image
    prompt: str
    prompt_kind: str
    garment: Garment
    person: Person


@dataclass(frozen=True)
class Shot:
    """How the photo is taken: body to pixels, and light."""

    body: Frame
    look: Look


def draw(
    seed: int,
    size_px: int | tuple[int, int],
    prompt_kind: str | None = None,
    prompt: str | None = None,
    style: str | None = None,
) -> Sample:
    """Draw the sample of a seed.

    `size_px` is the side of a square or (width, height). Without `prompt_kind` the seed chooses among `WEIGHTS`;
    without `prompt` the seed chooses one wording of that kind. The photo does not depend on either. `style` is one of
    `STYLES`, garments that are drawn only when they are asked for.
    Raises ValueError for an unknown kind or style or a size under 32.
    """
    width, height = (size_px, size_px) if isinstance(size_px, int) else size_px
    if min(width, height) < 32:
        raise ValueError(f"a wardrobe picture needs at least 32 pixels a side, not {width}x{height}")
    if prompt_kind is not None and prompt_kind not in PROMPTS:
        raise ValueError(f"unknown prompt kind {prompt_kind!r}; known: {', '.join(PROMPTS)}")
    if style is not None and style not in STYLES:
        raise ValueError(f"unknown style {style!r}; known: {', '.join(STYLES)}")
    kind = prompt_kind or choose_kind(seed)
    wording = Random(f"{seed}/wording").choice(PROMPTS[kind]) if prompt is None else prompt
    garment = STYLES[style](Random(f"{seed}/{style}")) if style else choose_garment(Random(f"{seed}/garment"))
    person = choose_person(Random(f"{seed}/person"))
    extra = _company(Random(f"{seed}/company"), garment)
    shot = _frame_shot(Random(f"{seed}/shot"), garment, width, height)
    photo = Painter(width, height, (255, 255, 255), OVERSAMPLE)
    draw_scene(photo, Random(f"{seed}/scene"))
    _draw_wearer(photo, garment, extra, person, shot)
    target, mask = _answer(kind, garment, extra, person, shot, width, height)
    return Sample(seed, photo.finish(), target, mask, wording, kind, garment, person)


def choose_kind(seed: int) -> str:
    """The kind of edit that a seed asks for when the caller does not say."""
    return Random(f"{seed}/kind").choices(tuple(WEIGHTS), tuple(WEIGHTS.values()))[0]


def _company(rng: Random, garment: Garment) -> Garment:
    """What else the wearer has on: a sliver at the edge of the frame, or the top under dungarees."""
    top = bottom = None
    if garment.top is None:
        hem, hem_width = (2.2, 0.74) if garment.bib else (2.6, 0.84)
        top = Top(choose_cloth(rng, plain=True), "crew", 0.85, 0.05, hem, hem_width, False, None, False)
    if garment.bottom is None and garment.kind == "top":
        bottom = Bottom(choose_cloth(rng, plain=True), True, 6.4, 0.36, 0)
    return Garment("company", top, bottom)


def _frame_shot(rng: Random, garment: Garment, width: int, height: int) -> Shot:
    """Place the body: full figure, three quarters, or the half that wears the garment."""
    if garment.kind == "top":
        assert garment.top is not None
        low = rng.uniform(-2.1, -1.2)
        high = garment.top.hem + rng.uniform(0.08, 0.2)
    elif garment.top is None and garment.bib is None:
        low, high = rng.uniform(1.9, 2.15), rng.uniform(6.95, 7.3)
    else:
        hem = max(part.hem for part in (garment.top, garment.bottom) if part)
        low = rng.uniform(-2.35, -1.75)
        high = rng.uniform(6.9, 7.4) if hem > 5.5 or rng.random() < 0.5 else hem + rng.uniform(0.5, 1.2)
    scale = min(height / (high - low), width / 4.3)
    slack = height / scale - (high - low)
    if garment.kind == "top":
        low -= slack
    elif garment.top is not None or garment.bib is not None:
        low -= slack * rng.uniform(0.3, 0.7)
    turns = garment.bib is not None or (garment.top is not None and garment.kind != "top")
    turn = rng.uniform(-3.0, 3.0) if turns else rng.uniform(-1.2, 1.2)
    x = width / 2 + rng.uniform(-0.35, 0.35) * scale
    lean = Frame(a=rng.uniform(0.93, 1.0), b=rng.uniform(-0.05, 0.05), d=0.0, e=1.0)
    body = placed(x, -low * scale, scale, turn).after(lean)
    return Shot(body, Look(rng.uniform(0.14, 0.26), rng.uniform(0, 6.2), rng.uniform(0.95, 1.02)))


def _draw_wearer(painter: Painter, garment: Garment, extra: Garment, person: Person, shot: Shot) -> None:
    body, look, pose = shot.body, shot.look, person.pose
    top = garment.top or extra.top
    bottom = garment.bottom or extra.bottom
    draw_behind(painter, body, person)
    draw_legs(painter, body, person)
    for side in (-1, 1):
        draw_arm(painter, body, person, side, forearm=False)
        if not in_front(pose, side):
            draw_arm(painter, body, person, side, forearm=True)
    draw_torso(painter, body, person)
    if bottom and not garment.bib:
        draw_bottom(painter, body, bottom, pose, look)
    if top:
        draw_top(painter, body, top, pose, look)
    if bottom and garment.bib:
        draw_dungarees(painter, body, bottom, garment.bib, pose, look)
    draw_bag(painter, body, person)
    draw_head(painter, body, person)
    for side in (-1, 1):
        if in_front(pose, side):
            draw_arm(painter, body, person, side, forearm=True)
            if top:
                draw_front_sleeve(painter, body, top, pose, side, look)


def _answer(
    kind: str, garment: Garment, extra: Garment, person: Person, shot: Shot, width: int, height: int
) -> tuple[Image.Image, Image.Image]:
    target = Painter(width, height, GROUNDS[kind], OVERSAMPLE)
    if kind == "background":
        _draw_wearer(target, garment, extra, person, shot)
        other = Painter(width, height, (255, 0, 255), OVERSAMPLE)
        _draw_wearer(other, garment, extra, person, shot)
        picture = target.finish()
        return picture, _agreement(picture, other.finish())
    mask = draw_flat(target, garment)
    return target.finish(), mask


def _agreement(one: Image.Image, other: Image.Image) -> Image.Image:
    """Where two pictures drawn on different grounds agree."""
    difference = ImageChops.difference(one, other).convert("L")
    return difference.point(lambda value: 255 * (value < 8))
