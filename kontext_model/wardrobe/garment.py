"""Garments: what is worn, as data.

Owns kinds, lengths and necklines, and how a seed chooses among them. Refuses pixels: `cut` has outlines, `sewing`
draws.
"""

from dataclasses import dataclass
from random import Random

from kontext_model.wardrobe.cloth import Cloth, choose_cloth
from kontext_model.wardrobe.painter import Colour

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
class Bib:
    """The front of dungarees: half its width and its upper edge, body units, and the thread's colour."""

    half_width: float
    upper: float
    stitch: Colour


@dataclass(frozen=True)
class Garment:
    """What is extracted. A dress is a top that reaches the legs; a set is a top and a bottom; dungarees are a bottom
    with a bib, worn over somebody else's top."""

    kind: str
    top: Top | None
    bottom: Bottom | None
    bib: Bib | None = None

    @property
    def description(self) -> str:
        """A few words, such as "navy striped top and cream plain trousers"."""

        def words(cloth: Cloth) -> str:
            if self.bib:
                return cloth.base_name
            accent = "" if cloth.pattern == "plain" else f" and {cloth.accent_name}"
            return f"{cloth.base_name}{accent} {cloth.pattern}"

        lower = "dungarees" if self.bib else "trousers" if self.bottom and self.bottom.legs else "skirt"
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
