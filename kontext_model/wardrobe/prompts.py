"""What is asked of the wardrobe model: three kinds of edit, each said in several ways.

Owns the words. `flat-lay` is the first wording of its kind: the product's built-in preset.
"""

FLAT_LAY = (
    "Transform the input photo of a person wearing clothes into a professional flat lay product shot.\n\n"
    "Extract only the clothing (top + pants set, or a single dress). Ignore body, background, shoes, jewelry, bags, "
    "and all other items.\n\n"
    "Virtually flatten the garment: remove perspective distortion, complete hidden parts, keep contours, prints, and "
    "design features accurate and symmetrical.\n\n"
    "Output a clean, commercial-grade image: perfectly front-facing, flat, sharp details, correct colors, with soft "
    "studio lighting.\n\n"
    "Background must be pure white (#FFFFFF) or transparent PNG (preferred). No human remnants or AI artifacts."
)
PROMPTS: dict[str, tuple[str, ...]] = {
    "flat-lay": (
        FLAT_LAY,
        "Flat lay of the clothes on a pure white background.",
        "The same garment, flat and front-facing, on white.",
        "Turn this photo into a flat lay product shot on white.",
    ),
    "grey": (
        "Flat lay of the clothes on a light grey background.",
        "The same garment, flat and front-facing, on light grey.",
        "Turn this photo into a flat lay product shot on light grey.",
        "Transform the input photo of a person wearing clothes into a professional flat lay product shot. "
        "Background must be light grey (#DCDEE2).",
    ),
    "background": (
        "Replace only the background with plain sky blue; keep the person and the clothes.",
        "Keep the person, change the background to plain sky blue.",
        "The same person in the same clothes before a plain sky blue background.",
    ),
}
GROUNDS: dict[str, tuple[int, int, int]] = {
    "flat-lay": (255, 255, 255),
    "grey": (220, 222, 226),
    "background": (190, 216, 238),
}
WEIGHTS: dict[str, int] = {"flat-lay": 70, "grey": 16, "background": 14}
