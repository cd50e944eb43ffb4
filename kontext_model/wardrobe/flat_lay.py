"""The flat lay: a garment laid out front-facing and centred, and the mask of where it lies."""

import numpy as np
from PIL import Image, ImageDraw

from kontext_model.wardrobe.cut import flat_pieces
from kontext_model.wardrobe.dungarees import draw_dungarees
from kontext_model.wardrobe.figure import FLAT_POSE
from kontext_model.wardrobe.garment import Garment
from kontext_model.wardrobe.painter import Frame, Painter, placed
from kontext_model.wardrobe.sewing import Look, draw_bottom, draw_top


def draw_flat(painter: Painter, garment: Garment, fill: float = 0.86) -> Image.Image:
    """Draw the garment flat and centred, so that it fills that share of the canvas at most; gives its mask.

    The mask (L, 0 or 255) has the delivered size.
    """
    upper, lower, shift = flat_pieces(garment)
    every = np.concatenate(upper + lower)
    low, high = every.min(axis=0), every.max(axis=0)
    # A small garment stays small: at most as large as if it were 4.4 units long.
    scale = min(painter.width_px * fill / (high[0] - low[0]), painter.height_px * fill / (high[1] - low[1]))
    scale = min(scale, min(painter.width_px, painter.height_px) / 4.4)
    frame = placed(painter.width_px / 2, painter.height_px / 2 - (low[1] + high[1]) / 2 * scale, scale)
    if garment.bottom and garment.bib:
        draw_dungarees(painter, frame, garment.bottom, garment.bib, FLAT_POSE, Look())
    elif garment.bottom:
        draw_bottom(painter, frame.after(placed(0, shift)), garment.bottom, FLAT_POSE, Look())
    if garment.top:
        draw_top(painter, frame, garment.top, FLAT_POSE, Look())
    return _mask(painter, painter.pixels.after(frame), [*upper, *lower])


def _mask(painter: Painter, frame: Frame, outlines: list[np.ndarray]) -> Image.Image:
    mask = Image.new("L", painter.image.size, 0)
    pen, oversample = ImageDraw.Draw(mask), painter.oversample
    edge_px = round(2 * max(0.8, frame.scale / oversample * 0.03) * oversample)
    for outline in outlines:
        flat = frame.apply(outline).ravel().tolist()
        pen.polygon(flat, fill=255)
        pen.line(flat + flat[:4], fill=255, width=edge_px)
    return mask.reduce(oversample).point(lambda value: 255 * (value > 127))
