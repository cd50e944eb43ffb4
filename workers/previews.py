"""Previews: how a picture came to be, one strip a job, stored beside the results where that was asked for.

Owns the strip and its place. Refuses to matter: a strip that cannot be stored costs a line in the log and never a job.
What is drawn needs the VAE, so that a worker of `sample` alone records none.
"""

from collections import defaultdict
from collections.abc import Sequence

import structlog
from PIL import Image

from orchestrator.state.queries import Claimed
from orchestrator.storage import previews_key
from workers.bench import Bench, lanes_to
from workers.finishing import finish

log = structlog.get_logger("previews")


class Recorder:
    """Takes the previews of jobs that are sampled together, and stores a strip for each."""

    def __init__(self, bench: Bench, jobs: Sequence[Claimed]) -> None:
        self._bench, self._jobs = bench, jobs
        self._frames: dict[int, list[Image.Image]] = defaultdict(list)

    def note(self, step: int, pictures: Sequence[Image.Image]) -> None:
        """Keep the pictures of a step, one for each job; what `on_preview` calls."""
        for job, picture in zip(self._jobs, pictures, strict=True):
            self._frames[job.id].append(picture)

    def store(self) -> None:
        """Store what was noted, where an earlier attempt has not."""
        noted = [job for job in self._jobs if job.id in self._frames]
        lanes = lanes_to(*(self._bench.batch(job.batch_id).results_uri for job in noted))
        for job, end in zip(noted, self._bench.each(self._store_one, noted, lanes), strict=True):
            if isinstance(end, Exception):
                log.warning("previews not stored", job=job.id, error=str(end))

    def _store_one(self, job: Claimed) -> bool:
        store = self._bench.store(self._bench.batch(job.batch_id).results_uri)
        key = previews_key(job.custom_id, job.take, ignore_case=store.ignores_case)
        strip = finish(join(self._frames[job.id]), fingerprint=job.fingerprint or "")
        return store.put(key, strip, content_type="image/png")


def record(bench: Bench, jobs: Sequence[Claimed]) -> Recorder | None:
    """A recorder where previews are asked for and can be drawn; else None."""
    return Recorder(bench, jobs) if bench.settings.preview_every and bench.editor.draws_previews else None


def join(frames: Sequence[Image.Image]) -> Image.Image:
    """Pictures of one size side by side."""
    width, height = frames[0].size
    strip = Image.new("RGB", (width * len(frames), height))
    for number, frame in enumerate(frames):
        strip.paste(frame, (number * width, 0))
    return strip
