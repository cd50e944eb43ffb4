"""The edits a shop asks for every day, by name, as data.

Owns prompts and the options that suit them. Refuses logic: a preset only fills in what a catalogue row leaves open.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

_NO_OPTIONS: Mapping[str, str | int | float] = MappingProxyType({})


@dataclass(frozen=True)
class Preset:
    """A named edit. `options` uses the names of catalogue columns (fit, guidance, steps, …)."""

    name: str
    prompt: str
    negative_prompt: str | None = None
    options: Mapping[str, str | int | float] = field(default_factory=lambda: _NO_OPTIONS)
    summary: str = ""


_FLAT_LAY = """
Transform the input photo of a person wearing clothes into a professional flat lay product shot.

Extract only the clothing (top + pants set, or a single dress). Ignore body, background, shoes, jewelry, bags, and all \
other items.

Virtually flatten the garment: remove perspective distortion, complete hidden parts, keep contours, prints, and design \
features accurate and symmetrical.

Output a clean, commercial-grade image: perfectly front-facing, flat, sharp details, correct colors, with soft studio \
lighting.

Background must be pure white (#FFFFFF) or transparent PNG (preferred). No human remnants or AI artifacts.
"""

PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        preset.name: preset
        for preset in (
            Preset("flat-lay", _FLAT_LAY, summary="the garment alone, flattened, front-facing on pure white"),
            Preset(
                "flat-lay-grey",
                "Transform the input photo of a person wearing clothes into a professional flat lay product shot. "
                "Extract only the clothing, flattened, front-facing and symmetrical, with its prints, seams and colors "
                "unchanged. Background is an even light grey (#EEEEEE), with soft studio lighting.",
                summary="the garment alone, flattened, on light grey",
            ),
            Preset(
                "ghost-mannequin",
                "Turn the photo into a ghost mannequin product shot: keep the worn three-dimensional shape of the "
                "garment, remove the person entirely, and complete the inside of the collar, cuffs and hem. Keep "
                "fabric, prints and colors unchanged. Pure white background (#FFFFFF), soft studio lighting.",
                summary="the worn shape of the garment without the person",
            ),
            Preset(
                "white-background",
                "Replace only the background with pure white (#FFFFFF). Keep the person, pose, face, hair, clothing, "
                "colors and framing exactly as they are, with clean edges and no halo.",
                summary="the background replaced by pure white, all else kept",
            ),
            Preset(
                "light-grey",
                "Replace only the background with an even light grey (#EEEEEE) and a faint natural shadow on the "
                "ground. Keep the person, pose, face, hair, clothing, colors and framing exactly as they are.",
                summary="the background replaced by light grey, all else kept",
            ),
            Preset(
                "detail-crop",
                "Make a close-up product shot of the fabric and stitching at the collar and chest of the garment, "
                "sharp and evenly lit, with the true color, weave and print. No face, hands or background.",
                options=MappingProxyType({"fit": "crop"}),
                summary="a close-up of collar, fabric and stitching",
            ),
            Preset(
                "remove-wrinkles",
                "Press the clothing: smooth out wrinkles and creases as if freshly ironed. Keep the person, pose, "
                "cut, seams, prints, colors and background exactly as they are.",
                summary="the clothing ironed, all else kept",
            ),
            Preset(
                "studio-light",
                "Relight the photo with soft, even studio lighting and a neutral white balance. Keep the person, "
                "clothing, true fabric colors, background and framing exactly as they are.",
                summary="studio lighting and neutral colours, all else kept",
            ),
        )
    }
)
