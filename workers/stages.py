"""What each stage does to a unit of jobs: encode, sample, decode.

Owns the work between a claim and its commit; no transaction is open here. One job's error never reaches its neighbours:
whatever fails for a unit together is tried for each job alone. Refuses to write job state: it gives an Outcome.
"""

import hashlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import structlog
from PIL import Image
from torch import Tensor, stack

from kontext_model.canvas import Canvas, choose
from kontext_model.lora_file import LoraError
from orchestrator.state import queries
from orchestrator.state.fingerprint import fingerprint
from orchestrator.state.queries import Advanced, Claimed, Ended, Finished
from orchestrator.state.transitions import ErrorClass, Stage
from orchestrator.storage import Store, open_object, result_name
from workers import source
from workers.bench import Bench, Recipe
from workers.failures import Failure, classify
from workers.finishing import finish, identify

TOKEN_CHANNELS = 64
WATCH_INTERVAL_S = 1.0
PNG = "image/png"
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
    hashed: dict[Claimed, tuple[str, str, bytes]] = {}
    for job, data in zip(unit, bench.each(lambda job: _fetch(bench, job), unit), strict=True):
        if isinstance(data, Exception):
            outcome.failed.append(_failure(job, clock, data))
        else:
            sha256 = hashlib.sha256(data).hexdigest()
            print_ = fingerprint(sha256, job.recipe_id, job.seed, bench.editor.revision, bench.settings.numerics)
            hashed[job] = (sha256, print_, data)
    _reuse(bench, hashed, outcome, clock)
    opened = bench.each(lambda job: source.open_photo(hashed[job][2], bench.settings), list(hashed))
    by_canvas: dict[Canvas, list[Claimed]] = defaultdict(list)
    for job, photo in zip(list(hashed), opened, strict=True):
        try:
            if isinstance(photo, Exception):
                raise photo
            canvas = _choose_canvas(bench, recipe, photo)
        except Exception as error:
            outcome.failed.append(_failure(job, clock, error))
        else:
            photos[job] = photo
            by_canvas[canvas].append(job)
    if photos:
        texts = [text for text in (recipe["prompt"], _negative_text(recipe)) if text is not None]
        bench.keep_embeds(texts, surely=any(job.attempt for job in photos))
    for canvas, jobs in by_canvas.items():

        def run(together: Sequence[Claimed], canvas: Canvas = canvas) -> None:
            latents = bench.editor.encode_images([photos[job] for job in together], canvas, recipe["fit"])
            bench.handoffs.put(Stage.ENCODE, dict(zip(together, latents, strict=True)))

        for job in _together_or_alone(run, jobs, outcome, clock):
            sha256, print_, _ = hashed[job]
            outcome.advanced.append(Advanced(job.id, job.attempt, clock.share(), str(canvas), sha256, print_))
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
        )
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
    looked = bench.each(lambda job: _adopt(bench, job), again) if again else []
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
    stored = bench.each(lambda job: _store(bench, job, pictures[job], clock), decoded) if decoded else []
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
            with self._bench.direct.connect() as connection:
                self._wanted = queries.any_held(connection, {job.id: job.attempt for job in self._unit})
        return self._wanted

    def abandoned(self) -> bool:
        return not self._wanted


def _fetch(bench: Bench, job: Claimed) -> bytes:
    return source.fetch(job.image, bench.batch(job.batch_id).image_root, bench.settings)


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


def _reuse(bench: Bench, hashed: dict[Claimed, tuple[str, str, bytes]], outcome: Outcome, clock: _Clock) -> None:
    """Close the jobs whose fingerprint has a picture already, and take them out of `hashed`."""
    if not hashed:
        return
    with bench.direct.connect() as connection:
        known = queries.find_reusable(connection, [print_ for _, print_, _ in hashed.values()])
    candidates = [job for job, (_, print_, _) in hashed.items() if print_ in known]
    if not candidates:
        return
    found = bench.each(lambda job: _reference(bench, job, *known[hashed[job][1]]), candidates)
    for job, result in zip(candidates, found, strict=True):
        if isinstance(result, str):
            sha256, print_, _ = hashed.pop(job)
            outcome.finished.append(
                Finished(job.id, job.attempt, clock.share(), result, known[print_][1], None, sha256, print_, reused=1)
            )


def _reference(bench: Bench, job: Claimed, result: str, sha256: str) -> str | None:
    """Where the job finds a picture that exists: by reference, or copied when results go elsewhere this time."""
    store, key = open_object(result, bench.settings)
    batch = bench.batch(job.batch_id)
    base = batch.results_uri.rpartition("/")[0]
    if result.startswith(f"{base}/"):
        return result if store.head(key) is not None else None
    data = store.get(key)
    if hashlib.sha256(data).hexdigest() != sha256:
        return None
    own = bench.store(batch.results_uri)
    name = _result_key(job, own)
    if not own.put(name, data, content_type=PNG) and own.get(name) != data:
        return None
    return own.locate(name)


def _result_key(job: Claimed, store: Store) -> str:
    name = job.custom_id if job.take == 1 else f"{job.custom_id}.take{job.take}"
    return result_name(name, ignore_case=store.ignores_case)


def _adopt(bench: Bench, job: Claimed) -> Finished | None:
    """The end of a job whose picture an earlier attempt has stored already."""
    store = bench.store(bench.batch(job.batch_id).results_uri)
    key = _result_key(job, store)
    if store.head(key) is None:
        return None
    data = store.get(key)
    if identify(data) != job.fingerprint:
        return None
    return Finished(job.id, job.attempt, 0.0, store.locate(key), hashlib.sha256(data).hexdigest())


def _store(bench: Bench, job: Claimed, picture: Image.Image, clock: _Clock) -> Finished:
    data = finish(picture, fingerprint=job.fingerprint or "")
    sha256 = hashlib.sha256(data).hexdigest()
    store = bench.store(bench.batch(job.batch_id).results_uri)
    key = _result_key(job, store)
    metadata = {"fingerprint": job.fingerprint or "", "sha256": sha256}
    if not store.put(key, data, content_type=PNG, metadata=metadata):
        adopted = _adopt(bench, job)
        if adopted is None:
            raise FileExistsError(f"{store.locate(key)} holds another picture; results are never overwritten")
        return adopted
    return Finished(job.id, job.attempt, clock.share(), store.locate(key), sha256)


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
