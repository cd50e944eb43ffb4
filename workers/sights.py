"""Sights: a small picture of each photo that came from the web, stored beside the results, for people to compare with.

A page never fetches an https address: a worker has, once, behind its guard. Refuses to matter: a sight that cannot be
stored costs a line in the log and never a job.
"""

import io
from collections.abc import Mapping

import structlog
from PIL import Image

from orchestrator.state.queries import Claimed
from orchestrator.storage import sight_key
from workers.bench import Bench, lanes_to

SIDE_PX, QUALITY = 1280, 80
log = structlog.get_logger("sights")


def keep_sights(bench: Bench, photos: Mapping[Claimed, Image.Image], digests: Mapping[Claimed, str]) -> None:
    """Store a sight of each photo that lies on the web, by the SHA-256 of its bytes, unless it is there already."""
    web = [job for job in photos if job.image.lower().startswith("https://")]

    def keep(job: Claimed) -> None:
        store = bench.store(bench.batch(job.batch_id).results_uri)
        key = sight_key(digests[job])
        if store.head(key) is None:
            store.put(key, shrink(photos[job]), content_type="image/webp")

    lanes = lanes_to(*(bench.batch(job.batch_id).results_uri for job in web))
    for job, end in zip(web, bench.each(keep, web, lanes), strict=True):
        if isinstance(end, Exception):
            log.warning("sight not stored", job=job.id, error=str(end))


def shrink(photo: Image.Image) -> bytes:
    """A photo as WebP, at most SIDE_PX wide and high."""
    scale = min(1.0, SIDE_PX / max(photo.size))
    size = (max(1, round(photo.width * scale)), max(1, round(photo.height * scale)))
    small = photo.resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0)  # never a second photo of full size
    stream = io.BytesIO()
    small.save(stream, "WEBP", quality=QUALITY, method=2)
    return stream.getvalue()
