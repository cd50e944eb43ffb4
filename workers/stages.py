"""What each stage does to a unit of jobs: encode, sample, decode.

Owns the work between a claim and its commit; no transaction is open here. One job's error never reaches its neighbours:
whatever fails for a unit together is tried for each job alone. Refuses to write job state: it gives an Outcome.
"""

import hashlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import structlog
from PIL import Image
from sqlalchemy.exc import DBAPIError
from torch import Tensor, stack

from kontext_model.canvas import Canvas, choose
from kontext_model.lora_file import LoraError
from orchestrator.state import queries
from orchestrator.state.fingerprint import fingerprint
from orchestrator.state.queries import Advanced, Claimed, Ended, Finished, Source
from orchestrator.state.transitions import ErrorClass, Stage
from orchestrator.storage import StorageError
from workers import source
from workers.bench import Bench, Recipe, lanes_to
from workers.failures import Failure, classify
from workers.previews import record
from workers.results import adopt, find_again, store_picture
from workers.sights import keep_sights

TOKEN_CHANNELS = 64
WATCH_INTERVAL_S = 1.0
log = structlog.get_logger("stages")


@dataclass
class Outcome:
    """What became of each job of a unit. A job in none of the lists was abandoned: others hold it."""

    advanced: list[Advanced] = field(default_factory=list)
    finished: list[Finished] = field(default_factory=list)
    failed: list[Failure] = field(default_factory=list)
    lost: list[Ended] = field(default_factory=list)

    @property
    def is_single(self) -> bool:
        """Whether one statement writes it all: it needs no transaction, hence two round trips less."""
        return not self.failed and not self.lost and not (self.advanced and self.finished)


def encode(bench: Bench, recipe: Recipe, unit: Sequence[Claimed]) -> Outcome:
    """Fetch and check the photos, reuse what exists, encode the rest as condition latents and the prompts as embeds."""
    outcome, clock = Outcome(), _Clock(unit)
    photos: dict[Claimed, Image.Image] = {}
    uris = _locate(bench, unit)
    images = _read(bench, unit, uris, _recall(bench, unit[0].batch_id, uris), outcome, clock)
    _reuse(bench, images, outcome, clock)
    # What is unchanged and has no picture yet is read after all.
    images |= _read(bench, [job for job in images if images[job].data is None], uris, {}, outcome, clock)
    whole = {job: image.data for job, image in images.items() if image.data is not None}
    opened = bench.each(lambda job: bench.decoders.open(whole[job]), list(whole), bench.decoders.count)
    by_canvas: dict[Canvas, list[Claimed]] = defaultdict(list)
    for job, photo in zip(whole, opened, strict=True):
        try:
            if isinstance(photo, Exception):
                raise photo
            canvas = _choose_canvas(bench, recipe, photo)
        except Exception as error:
            outcome.failed.append(_failure(job, clock, error))
        else:
            photos[job] = photo
            by_canvas[canvas].append(job)
    keep_sights(bench, photos, {job: images[job].sha256 for job in photos})
    if photos:
        texts = [text for text in (recipe["prompt"], _negative_text(recipe)) if text is not None]
        bench.keep_embeds(texts, surely=any(job.attempt for job in photos))
    for canvas, jobs in by_canvas.items():

        def run(together: Sequence[Claimed], canvas: Canvas = canvas) -> None:
            latents = bench.editor.encode_images([photos[job] for job in together], canvas, recipe["fit"])
            bench.handoffs.put(Stage.ENCODE, dict(zip(together, latents, strict=True)))

        for job in _together_or_alone(run, jobs, outcome, clock):
            told = images[job]
            outcome.advanced.append(
                Advanced(job.id, job.attempt, clock.share(), str(canvas), told.sha256, told.fingerprint)
            )
    return outcome


def sample(bench: Bench, recipe: Recipe, unit: Sequence[Claimed]) -> Outcome:
    """Denoise the unit's latents together, seeded job by job."""
    outcome, clock = Outcome(), _Clock(unit)
    canvas = Canvas.parse(unit[0].canvas or "")
    conditions = bench.handoffs.take(Stage.ENCODE, unit, (canvas.tokens, TOKEN_CHANNELS))
    text = bench.embeds(recipe["prompt"])
    wanted = _negative_text(recipe)
    negative = None if wanted is None else bench.embeds(wanted)
    if text is None or (wanted is not None and negative is None):
        conditions = {}
    outcome.lost = [Ended(job.id, job.attempt, 0.0) for job in unit if job.id not in conditions]
    watched = _Watch(bench, unit)

    def run(together: Sequence[Claimed]) -> None:
        assert text is not None
        recorder = record(bench, together)
        latents = bench.editor.sample(
            stack([conditions[job.id] for job in together]),
            text,
            canvas,
            [job.seed for job in together],
            recipe["steps"],
            recipe["guidance"],
            recipe["true_cfg"],
            negative,
            recipe["sampler"],
            watched.still_wanted,
            lora=bench.lora(recipe),
            on_preview=None if recorder is None else recorder.note,
            preview_every=bench.settings.preview_every or 1,
        )
        if recorder is not None:
            recorder.store()
        bench.handoffs.put(Stage.SAMPLE, dict(zip(together, latents, strict=True)))

    held = [job for job in unit if job.id in conditions]
    for job in _together_or_alone(run, held, outcome, clock, abandoned=watched.abandoned):
        outcome.advanced.append(Advanced(job.id, job.attempt, clock.share(), str(canvas)))
    return outcome


def decode(bench: Bench, recipe: Recipe, unit: Sequence[Claimed]) -> Outcome:
    """Decode the latents, finish the pictures and store each once."""
    outcome, clock = Outcome(), _Clock(unit)
    canvas = Canvas.parse(unit[0].canvas or "")
    pictures: dict[Claimed, Image.Image] = {}
    # A later attempt looks first: the one before it may have stored the picture and died before its commit.
    again = [job for job in unit if job.attempt > 0]
    lanes = lanes_to(*(bench.batch(job.batch_id).results_uri for job in unit))
    looked = bench.each(lambda job: adopt(bench, job), again, lanes)
    outcome.finished += [found for found in looked if isinstance(found, Finished)]
    adopted = {end.id for end in outcome.finished}
    rest = [job for job in unit if job.id not in adopted]
    latents = bench.handoffs.take(Stage.SAMPLE, rest, (canvas.tokens, TOKEN_CHANNELS)) if rest else {}
    outcome.lost = [Ended(job.id, job.attempt, 0.0) for job in rest if job.id not in latents]

    def run(together: Sequence[Claimed]) -> None:
        made = bench.editor.decode(stack([latents[job.id] for job in together]), canvas)
        pictures.update(zip(together, made, strict=True))

    held = [job for job in rest if job.id in latents]
    decoded = list(_together_or_alone(run, held, outcome, clock))
    stored = bench.each(lambda job: store_picture(bench, job, pictures[job], clock.share()), decoded, lanes)
    for job, end in zip(decoded, stored, strict=True):
        if isinstance(end, Exception):
            outcome.failed.append(_failure(job, clock, end))
        else:
            outcome.finished.append(end)
    return outcome


STAGES: Mapping[Stage, Callable[[Bench, Recipe, Sequence[Claimed]], Outcome]] = {
    Stage.ENCODE: encode,
    Stage.SAMPLE: sample,
    Stage.DECODE: decode,
}


class _Clock:
    """Shares the unit's time among its jobs."""

    def __init__(self, unit: Sequence[Claimed]) -> None:
        self._start, self._jobs = time.perf_counter(), len(unit)

    def share(self) -> float:
        return (time.perf_counter() - self._start) / self._jobs


class _Watch:
    """Asks now and then whether anybody still wants the unit; sampling stops at the next step when nobody does."""

    def __init__(self, bench: Bench, unit: Sequence[Claimed]) -> None:
        self._bench, self._unit = bench, unit
        self._next = time.monotonic() + WATCH_INTERVAL_S
        self._wanted = True

    def still_wanted(self, step: int, latents: Tensor) -> bool:
        if self._wanted and time.monotonic() >= self._next:
            self._next = time.monotonic() + WATCH_INTERVAL_S
            # Who cannot be asked wants it still; what nobody wanted, the commit drops.
            with suppress(DBAPIError), self._bench.direct.connect() as connection:
                self._wanted = queries.any_held(connection, {job.id: job.attempt for job in self._unit})
        return self._wanted

    def abandoned(self) -> bool:
        return not self._wanted


@dataclass(frozen=True)
class _Image:
    """A source image, read or known to be unchanged."""

    sha256: str
    fingerprint: str
    data: bytes | None


def _locate(bench: Bench, unit: Sequence[Claimed]) -> dict[Claimed, str]:
    """Where the unit's images lie. A reference that leads nowhere is left out: it is for `_read` to refuse."""
    uris: dict[Claimed, str] = {}
    for job in unit:
        with suppress(source.SourceError, StorageError):
            uris[job] = source.locate(job.image, bench.batch(job.batch_id).image_root)
    return uris


def _recall(bench: Bench, batch_id: str, uris: Mapping[Claimed, str]) -> Mapping[Claimed, Source]:
    """What is remembered of images, by where they lie."""
    known = bench.ledger.recall(batch_id, list(uris.values()))
    return {job: known[uri] for job, uri in uris.items() if uri in known}


def _read(
    bench: Bench,
    unit: Sequence[Claimed],
    uris: Mapping[Claimed, str],
    known: Mapping[Claimed, Source],
    outcome: Outcome,
    clock: _Clock,
) -> dict[Claimed, _Image]:
    """Fetch the images of a unit, but for the bytes of those that are known and unchanged; notes the failures."""

    def fetch(job: Claimed) -> _Image:
        image_root, before = bench.batch(job.batch_id).image_root, known.get(job)
        content = source.fetch(job.image, image_root, bench.settings, before.validator if before else None)
        if content is None:
            assert before is not None
            sha256, data = before.image_sha256, None
        else:
            sha256, data = hashlib.sha256(content.data).hexdigest(), content.data
            if content.validator is not None:
                bench.ledger.learn(uris[job], content.validator, sha256)
        source.check_digest(job.image, image_root, sha256)
        print_ = fingerprint(sha256, job.recipe_id, job.seed, bench.editor.revision, bench.settings.numerics)
        return _Image(sha256, print_, data)

    images = {}
    lanes = lanes_to(*(bench.batch(job.batch_id).image_root for job in unit), *(job.image for job in unit))
    for job, image in zip(unit, bench.each(fetch, unit, lanes), strict=True):
        if isinstance(image, Exception):
            outcome.failed.append(_failure(job, clock, image))
        else:
            images[job] = image
    return images


def _choose_canvas(bench: Bench, recipe: Recipe, photo: Image.Image) -> Canvas:
    try:
        return choose(photo.width, photo.height, bench.editor.defaults.area_px, recipe["width"], recipe["height"])
    except ValueError as error:
        raise source.SourceError("bad_canvas", "input", str(error)) from error


def _negative_text(recipe: Recipe) -> str | None:
    """The negative prompt where true CFG uses one."""
    if recipe["true_cfg"] <= 1 or recipe["negative_prompt"] is None:
        return None
    return str(recipe["negative_prompt"])


def _reuse(bench: Bench, images: dict[Claimed, _Image], outcome: Outcome, clock: _Clock) -> None:
    """Close the jobs whose fingerprint has a picture already, and take them out of `images`."""
    asked = [job for job in images if bench.batch(job.batch_id).options.get("only_changed", True)]
    if not asked:
        return
    with bench.direct.connect() as connection:
        known = queries.find_reusable(connection, [images[job].fingerprint for job in asked])
    candidates = [job for job in asked if images[job].fingerprint in known]
    lanes = lanes_to(*(bench.batch(job.batch_id).results_uri for job in candidates))
    found = bench.each(lambda job: find_again(bench, job, *known[images[job].fingerprint]), candidates, lanes)
    for job, result in zip(candidates, found, strict=True):
        if result is None:
            continue
        image = images.pop(job)
        if isinstance(result, Exception):
            outcome.failed.append(_failure(job, clock, result))
        else:
            outcome.finished.append(
                Finished(
                    job.id, job.attempt, clock.share(), result, known[image.fingerprint][1], None, image.sha256,
                    image.fingerprint, reused=1,
                )
            )  # fmt: skip


def _failure(job: Claimed, clock: _Clock, error: Exception, together: int = 1) -> Failure:
    code, error_class, message = classify(error)
    if error_class is ErrorClass.INTERNAL:
        log.error("job failed", job=job.id, exc_info=error)
    return Failure(job, clock.share(), code, error_class, message, together)


def _together_or_alone(
    run: Callable[[Sequence[Claimed]], None],
    jobs: Sequence[Claimed],
    outcome: Outcome,
    clock: _Clock,
    abandoned: Callable[[], bool] = lambda: False,
) -> Iterator[Claimed]:
    """Run jobs together; if that fails, each alone. Gives those that went well, notes the failures.

    A LoRA that cannot be used is every job's failure at once: a unit has one recipe. So is too little memory: the jobs
    are claimed again in smaller units.
    """
    if not jobs:
        return
    try:
        run(jobs)
    except LoraError as error:
        outcome.failed += [_failure(job, clock, error) for job in jobs]
    except Exception as error:
        if abandoned():
            return
        if len(jobs) == 1:
            outcome.failed.append(_failure(jobs[0], clock, error))
            return
        if classify(error)[1] is ErrorClass.CAPACITY:
            outcome.failed += [_failure(job, clock, error, len(jobs)) for job in jobs]
            return
        log.warning("unit failed together, trying each job alone", jobs=len(jobs), error=repr(error)[:300])
        for job in jobs:
            yield from _together_or_alone(run, [job], outcome, clock, abandoned)
    else:
        yield from jobs
