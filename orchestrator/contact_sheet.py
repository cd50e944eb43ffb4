"""The contact sheet: one picture that shows what a batch made, source beside result, with its prompt.

Owns the layout. Shows the first jobs only, so that its size has a bound; a picture that cannot be read leaves an empty
frame and stops nothing.
"""

import io
import posixpath
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from itertools import islice
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps
from sqlalchemy import Engine, RowMapping

from orchestrator.presets import PRESETS
from orchestrator.progress import Snapshot, show_duration
from orchestrator.settings import Settings
from orchestrator.state import queries
from orchestrator.state.database import reading
from orchestrator.state.transitions import JobState
from orchestrator.storage import open_object, open_store

CARDS_SHOWN = 24
COLUMNS = 3
# Looked for in the system's font folders, the ones with the most scripts first.
WIDE_FONTS = (
    "NotoSansCJK-Regular.ttc",
    "msyh.ttc",
    "PingFang.ttc",
    "NotoSans-Regular.ttf",
    "DejaVuSans.ttf",
    "Arial.ttf",
)
FRAME_PX, GAP_PX, MARGIN_PX, GUTTER_PX, ROW_GAP_PX = 300, 12, 72, 56, 28
CARD_PX = 2 * FRAME_PX + GAP_PX
HEADER_PX, FOOTER_PX, CAPTION_PX = 150, 92, 118
TITLE_PX, TEXT_PX, SMALL_PX = 38, 21, 17
LEADING = 1.4
PAPER, MAT, HAIRLINE = "#ffffff", "#fafaf8", "#e0e0db"
INK, QUIET, ALARM = "#1c1c1a", "#77766f", "#b3261e"
MAX_SOURCE_BYTES = 64 << 20
THREADS = 8

Font = ImageFont.FreeTypeFont


@dataclass(frozen=True)
class Card:
    """One job on the sheet. `source` and `result` are small RGB pictures; `error` says why there is no result."""

    custom_id: str
    text: str
    source: Image.Image | None
    result: Image.Image | None
    error: str | None = None


def write_sheet(engine: Engine, snapshot: Snapshot, settings: Settings, path: Path, *, seconds: float) -> None:
    """Draw the first jobs of a batch into a PNG. Raises OSError when the file cannot be written."""
    batch, counts = snapshot.batch, snapshot.counts
    jobs = list(islice(queries.stream_jobs(engine, batch.id), CARDS_SHOWN))
    with reading(engine).connect() as connection:
        prompts = {job["recipe_id"]: _read_prompt(queries.read_recipe(connection, job["recipe_id"])) for job in jobs}
    with ThreadPoolExecutor(THREADS) as threads:
        sources = list(threads.map(partial(_read_source, root=batch.image_root, settings=settings), jobs))
        results = list(threads.map(partial(_read_result, settings=settings), jobs))
    cards = [
        Card(job["custom_id"] or f"line {job['line']}", prompts[job["recipe_id"]], source, result, _error(job))
        for job, source, result in zip(jobs, sources, results, strict=True)
    ]
    parts = [f"{counts.succeeded:,} of {counts.total:,} succeeded"]
    parts += [f"{number:,} {name}" for name in ("failed", "cancelled", "reused") if (number := getattr(counts, name))]
    draw_sheet(
        cards,
        path,
        title=batch.catalogue.rstrip("/").rpartition("/")[2],
        facts=" · ".join([f"batch {batch.id}", *parts, show_duration(seconds)]),
        more=counts.total - len(cards),
        foot=f"checkpoint {batch.revision[:12]} · {batch.numerics}",
    )


def draw_sheet(cards: Sequence[Card], path: Path, *, title: str, facts: str, more: int = 0, foot: str = "") -> None:
    """Draw cards in rows of three: source and result side by side, the id and the prompt under them."""
    columns = max(1, min(COLUMNS, len(cards)))
    rows = -(-len(cards) // columns)
    width_px = 2 * MARGIN_PX + columns * CARD_PX + (columns - 1) * GUTTER_PX
    top = MARGIN_PX + HEADER_PX
    height_px = top + rows * (FRAME_PX + CAPTION_PX) + max(0, rows - 1) * ROW_GAP_PX + FOOTER_PX
    sheet = Image.new("RGB", (width_px, height_px), PAPER)
    draw = ImageDraw.Draw(sheet)
    inner_px = width_px - 2 * MARGIN_PX
    _write(draw, (MARGIN_PX, MARGIN_PX - 12), title, TITLE_PX, INK, inner_px)
    _write(draw, (MARGIN_PX, MARGIN_PX + 46), facts, TEXT_PX, QUIET, inner_px)
    lefts = [MARGIN_PX + column * (CARD_PX + GUTTER_PX) for column in range(columns)]
    for left in lefts:
        _write(draw, (left, top - 32), "source", SMALL_PX, QUIET, FRAME_PX)
        _write(draw, (left + FRAME_PX + GAP_PX, top - 32), "result", SMALL_PX, QUIET, FRAME_PX)
    for number, card in enumerate(cards):
        row, column = divmod(number, columns)
        _draw_card(sheet, draw, card, lefts[column], top + row * (FRAME_PX + CAPTION_PX + ROW_GAP_PX))
    said = " · ".join(filter(None, (f"and {more:,} more" if more > 0 else "", foot)))
    _write(draw, (MARGIN_PX, height_px - FOOTER_PX + 20), said, SMALL_PX, QUIET, inner_px)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, format="PNG", optimize=True)


def _draw_card(sheet: Image.Image, draw: ImageDraw.ImageDraw, card: Card, left: int, top: int) -> None:
    _draw_frame(sheet, draw, card.source, left, top, "no source")
    _draw_frame(sheet, draw, card.result, left + FRAME_PX + GAP_PX, top, "failed" if card.error else "no result")
    _write(draw, (left, top + FRAME_PX + 16), card.custom_id, TEXT_PX, INK, CARD_PX)
    text, colour = (card.error, ALARM) if card.error else (card.text, QUIET)
    _write(draw, (left, top + FRAME_PX + 50), text, SMALL_PX, colour, CARD_PX, lines=2)


def _draw_frame(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, picture: Image.Image | None, left: int, top: int, absent: str
) -> None:
    """A square mat with the picture centred on it, or a word where there is none."""
    box = (left, top, left + FRAME_PX - 1, top + FRAME_PX - 1)
    draw.rectangle(box, fill=MAT)
    if picture is None:
        draw.text((left + FRAME_PX / 2, top + FRAME_PX / 2), absent, QUIET, _font(SMALL_PX), anchor="mm")
    else:
        fitted = ImageOps.contain(picture, (FRAME_PX, FRAME_PX), Image.Resampling.LANCZOS)
        sheet.paste(fitted, (left + (FRAME_PX - fitted.width) // 2, top + (FRAME_PX - fitted.height) // 2))
    draw.rectangle(box, outline=HAIRLINE)


def _write(
    draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, size_px: int, colour: str, width_px: int, lines: int = 1
) -> None:
    """Write a text in at most so many lines, its end cut when it is longer."""
    text = " ".join(text.split())[:1000]
    font = _font(size_px, wide=not text.replace("…", "").replace("·", "").isascii())
    for number, line in enumerate(_wrap(text, font, width_px, lines)):
        draw.text((at[0], at[1] + number * size_px * LEADING), line, colour, font)


def _wrap(text: str, font: Font, width_px: int, lines: int) -> list[str]:
    """Break a text at its spaces; what does not fit ends in an ellipsis."""
    words, wrapped = text.split(), list[str]()
    while words and len(wrapped) < lines - 1:
        taken = 1
        while taken < len(words) and font.getlength(" ".join(words[: taken + 1])) <= width_px:
            taken += 1
        wrapped.append(_fit(" ".join(words[:taken]), font, width_px))
        words = words[taken:]
    return [*wrapped, _fit(" ".join(words), font, width_px)] if words else wrapped


def _fit(text: str, font: Font, width_px: int) -> str:
    if font.getlength(text) <= width_px:
        return text
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        fits = font.getlength(f"{text[:middle].rstrip()}…") <= width_px
        low, high = (middle, high) if fits else (low, middle - 1)
    return f"{text[:low].rstrip()}…"


@cache
def _font(size_px: int, wide: bool = False) -> Font:
    """Pillow's own font; `wide`: one of the system's that knows more than ASCII, where there is one."""
    for name in WIDE_FONTS if wide else ():
        with suppress(OSError):
            return ImageFont.truetype(name, size_px)
    font = ImageFont.load_default(size_px)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font


def _read_prompt(recipe: object) -> str:
    """A recipe's prompt, with its preset's name before it when it is one's."""
    prompt = str(recipe["prompt"]) if isinstance(recipe, dict) else ""
    names = [name for name, preset in PRESETS.items() if preset.prompt == prompt]
    return f"{names[0]}: {PRESETS[names[0]].summary}" if names else prompt


def _error(job: RowMapping) -> str | None:
    return f"{job['code']}: {job['message']}" if job["state"] == JobState.FAILED else None


def _read_source(job: RowMapping, root: str, settings: Settings) -> Image.Image | None:
    """The job's source, small; from a catalogue's folder or from S3. Pictures of the web are not fetched again."""
    image = job["image"]
    try:
        if image is None or ("://" in image and not image.startswith("s3://")):
            return None
        if image.startswith("s3://"):
            store, key = open_object(image, settings)
        else:
            store, key = open_store(root, settings), posixpath.normpath(image)
        return _open_small(store.read(key, MAX_SOURCE_BYTES), settings)
    except Exception:  # whatever is wrong with it, the job's own message has told
        return None


def _read_result(job: RowMapping, settings: Settings) -> Image.Image | None:
    if job["result"] is None:
        return None
    try:
        store, key = open_object(job["result"], settings)
        return _open_small(store.read(key, MAX_SOURCE_BYTES), settings)
    except Exception:  # the sheet shows what can be seen; `kontext export` says what cannot be read
        return None


def _open_small(data: bytes, settings: Settings) -> Image.Image | None:
    with Image.open(io.BytesIO(data)) as opened:
        if opened.width * opened.height > settings.max_image_px:
            return None
        opened.draft("RGB", (2 * FRAME_PX, 2 * FRAME_PX))  # JPEG decodes to about this size, much faster
        picture = ImageOps.exif_transpose(opened)
        picture.thumbnail((2 * FRAME_PX, 2 * FRAME_PX))
        if picture.mode == "RGB":
            return picture
        opaque = Image.new("RGBA", picture.size, PAPER)
        opaque.alpha_composite(picture.convert("RGBA"))
        return opaque.convert("RGB")
