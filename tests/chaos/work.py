"""Work for the echo model: photos in a store, a catalogue of them, a batch in SQL."""

import io
from pathlib import Path

from PIL import Image
from sqlalchemy import Engine

from orchestrator.batches import Request, create_batch, ingest
from orchestrator.catalogs import open_catalogue
from orchestrator.settings import Settings
from orchestrator.storage import open_store
from tests.chaos.command import CHECKPOINT

SHAPES = ((64, 64), (96, 64), (64, 96))


def draw_photo(number: int) -> Image.Image:
    """A photo that no other number has; shapes change every 16 numbers, so that units can form."""
    width_px, height_px = SHAPES[number // 16 % len(SHAPES)]
    photo = Image.new("RGB", (width_px, height_px), (number % 256, number // 256 % 256, 128))
    photo.paste((255 - number % 256, 64, number * 7 % 256), (0, 0, width_px // 2, height_px // 3))
    return photo


def submit(engine: Engine, settings: Settings, root: str, count: int, *, first: int = 0) -> str:
    """Store `count` photos and their catalogue below `root`, ingest them as a batch; gives its id.

    Row n has photo and seed `first` + n, and the custom_id of that number.
    """
    store = open_store(root, settings)
    rows = ["image,custom_id,seed"]
    for number in range(first, first + count):
        data = io.BytesIO()
        draw_photo(number).save(data, "PNG")
        store.put(f"photos/{number}.png", data.getvalue())
        rows.append(f"photos/{number}.png,{number},{number}")
    name = f"catalogue-{first}.csv"
    store.replace(name, "\n".join(rows).encode())
    catalogue = open_catalogue(f"{root}/{name}" if "://" in root else Path(root) / name, settings)
    assert settings.results_uri is not None
    request = Request({"preset": "flat-lay"}, settings.results_uri, CHECKPOINT, settings.numerics)
    return ingest(engine, create_batch(engine, catalogue, request), catalogue, request).id
