"""The wardrobe: a drawn world of people and garments in which every photo has a known flat lay.

Unlimited, seeded, fast; Pillow and numpy only.
"""

from kontext_model.wardrobe.catalogue import write_catalogue
from kontext_model.wardrobe.prompts import FLAT_LAY, GROUNDS, PROMPTS
from kontext_model.wardrobe.world import Sample, draw

__all__ = ["FLAT_LAY", "GROUNDS", "PROMPTS", "Sample", "draw", "write_catalogue"]
