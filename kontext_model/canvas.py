"""The pixel sizes the model works at.

Owns which canvas a photo is edited on: one of Kontext's 17 aspect ratios scaled to a checkpoint's area, or the size
that was asked for. Reference and output always share one canvas; two grids show as zoom and shift. Imports neither
torch nor PIL, so that the control plane may use it; refuses to touch pixels.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

MULTIPLE_PX = 16
"""The VAE shrinks 8 times and the transformer takes 2x2 patches, so a side is a multiple of 16."""

MAX_SIDE_PX = 4096
MAX_STRETCH = 0.02

REFERENCE_AREA_PX = 1024 * 1024
# Width, height at the reference area; the same as diffusers' PREFERRED_KONTEXT_RESOLUTIONS.
REFERENCE_SIZES_PX = (
    (672, 1568),
    (688, 1504),
    (720, 1456),
    (752, 1392),
    (800, 1328),
    (832, 1248),
    (880, 1184),
    (944, 1104),
    (1024, 1024),
    (1104, 944),
    (1184, 880),
    (1248, 832),
    (1328, 800),
    (1392, 752),
    (1456, 720),
    (1504, 688),
    (1568, 672),
)


@dataclass(frozen=True, order=True)
class Canvas:
    """A width and height in pixels, both multiples of 16; printed and parsed as `256x192`."""

    width_px: int
    height_px: int

    def __post_init__(self) -> None:
        for name, side_px in (("width", self.width_px), ("height", self.height_px)):
            if not MULTIPLE_PX <= side_px <= MAX_SIDE_PX or side_px % MULTIPLE_PX:
                raise ValueError(
                    f"canvas {name} must be a multiple of {MULTIPLE_PX} from {MULTIPLE_PX} to {MAX_SIDE_PX} px, "
                    f"not {side_px}"
                )

    def __str__(self) -> str:
        return f"{self.width_px}x{self.height_px}"

    @classmethod
    def parse(cls, text: str) -> "Canvas":
        """Read what `str(canvas)` wrote; raises ValueError for anything else."""
        match = re.fullmatch(r"([1-9][0-9]{0,5})x([1-9][0-9]{0,5})", text, flags=re.ASCII)
        if match is None:
            raise ValueError(f"a canvas reads like 256x192, not {text!r}")
        return cls(int(match[1]), int(match[2]))

    @property
    def tokens(self) -> int:
        """The length of the canvas's packed latents: one token for 16x16 pixels."""
        return (self.width_px // MULTIPLE_PX) * (self.height_px // MULTIPLE_PX)

    @property
    def area_px(self) -> int:
        return self.width_px * self.height_px

    def needs_padding(self, source_width_px: int, source_height_px: int) -> bool:
        """Whether the source's aspect is over 2 % off, so that resizing it straight would visibly stretch it."""
        source, own = source_width_px * self.height_px, source_height_px * self.width_px
        return max(source, own) > (1 + MAX_STRETCH) * min(source, own)


@lru_cache(64)
def list_canvases(area_px: int) -> tuple[Canvas, ...]:
    """The preferred canvases, narrow to wide, at about `area_px`; fewer than 17 where a small area makes some equal.

    At 1024 x 1024 they are exactly diffusers' PREFERRED_KONTEXT_RESOLUTIONS. Raises ValueError outside 16² to 4096².
    """
    if not MULTIPLE_PX**2 <= area_px <= MAX_SIDE_PX**2:
        raise ValueError(f"area must be from {MULTIPLE_PX**2} to {MAX_SIDE_PX**2} px, not {area_px}")
    return tuple(dict.fromkeys(_scale_reference_sizes(math.sqrt(area_px / REFERENCE_AREA_PX))))


def choose(
    source_width_px: int,
    source_height_px: int,
    area_px: int,
    width_px: int | None = None,
    height_px: int | None = None,
) -> Canvas:
    """The canvas on which a photo of the source's size is edited.

    With `width_px` and `height_px`: those, rounded to 16. With one of them: the other follows the source's aspect. With
    neither: the preferred canvas at `area_px` nearest in aspect, by diffusers' own rule. Raises ValueError for a size
    that is not positive or, asked or followed, above 4096 px.
    """
    for name, side_px in (("source width", source_width_px), ("source height", source_height_px)):
        if side_px < 1:
            raise ValueError(f"{name} must be at least 1 px, not {side_px}")
    for name, asked_px in (("width", width_px), ("height", height_px)):
        if asked_px is not None and not 1 <= asked_px <= MAX_SIDE_PX:
            raise ValueError(f"{name} must be from 1 to {MAX_SIDE_PX} px, not {asked_px}")
    aspect = source_width_px / source_height_px
    if width_px is None and height_px is None:
        return min(list_canvases(area_px), key=lambda each: (abs(aspect - each.width_px / each.height_px), each))
    asked_width_px = width_px if width_px is not None else (height_px or 0) * aspect
    asked_height_px = height_px if height_px is not None else (width_px or 0) / aspect
    if max(asked_width_px, asked_height_px) > MAX_SIDE_PX:
        raise ValueError(
            f"a photo of {source_width_px}x{source_height_px} px makes a canvas of "
            f"{asked_width_px:.0f}x{asked_height_px:.0f} px, above {MAX_SIDE_PX}; ask for both width and height"
        )
    return Canvas(_round_side(asked_width_px), _round_side(asked_height_px))


def _round_side(side_px: float) -> int:
    """To the nearest multiple of 16, halves up, never zero."""
    return max(MULTIPLE_PX, math.floor(side_px / MULTIPLE_PX + 0.5) * MULTIPLE_PX)


def _scale_reference_sizes(scale: float) -> Iterator[Canvas]:
    for width_px, height_px in REFERENCE_SIZES_PX:
        yield Canvas(
            min(_round_side(width_px * scale), MAX_SIDE_PX),
            min(_round_side(height_px * scale), MAX_SIDE_PX),
        )
