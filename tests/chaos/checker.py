"""What a chaos run must not have done: SQL, S3 and the workers' own record held against each other.

Owns the figures. Refuses to excuse more than the issue does; what it excuses, it says.
"""

import hashlib
import io
import statistics
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image
from torch import stack

from kontext_model.canvas import Canvas, choose
from orchestrator.presets import PRESETS
from orchestrator.state import queries
from orchestrator.state.database import open_database
from orchestrator.state.transitions import JobState, Stage
from orchestrator.storage import open_object, open_store
from tests.chaos.drill import SETTLING_S, Run
from tests.chaos.faults import Struck
from tests.chaos.model import EchoEditor
from tests.chaos.record import START, WRITES, Event, read_record
from tests.chaos.work import draw_photo
from workers.finishing import finish

# A PostgreSQL that dies on the spot forgets what fleets committed last, at most so long ago (synchronous_commit off).
FORGOTTEN_S = 1.0
ENDINGS = frozenset({"succeed", "fail"})
LOSES_HANDOFFS = frozenset({"FLUSHALL"})


@dataclass(frozen=True)
class Figure:
    """One line of the table. `bar` is the most that is allowed; None only tells."""

    name: str
    value: float
    bar: float | None
    unit: str = ""
    note: str = ""

    @property
    def holds(self) -> bool:
        return self.bar is None or self.value <= self.bar


def check(run: Run, bars_s: Mapping[str, float]) -> list[Figure]:
    """Every figure of a run; `bars_s`: who sees a death → the most seconds until its jobs run again."""
    assert run.settings.database_url is not None
    engine = open_database(run.settings.database_url)
    rows = [dict(row) for batch in run.batches for row in queries.stream_jobs(engine, batch)]
    engine.dispose()
    events = read_record(run.record)
    crashes = [struck.at_s for struck in run.struck if struck.name == "PostgreSQL crashed"]
    repeated, excused = repeated_samples(events, run.struck)
    return [
        *_check_jobs(run, rows),
        *_check_objects(run, rows),
        Figure("stale writes that changed a row", len(stale_writes(events, crashes)), 0),
        *_check_times(run, events, rows, bars_s),
        Figure("samplings repeated for jobs not in their sample stage when a fault struck", repeated, 0),
        Figure("samplings repeated otherwise", excused, None, note="in sample as a fault struck, or after FLUSHALL"),
        Figure("pictures unequal to those of an undisturbed run", unequal_pictures(run, rows), 0),
        _check_ends(run),
    ]


def _check_ends(run: Run) -> Figure:
    bad = {member: status for member, status in run.statuses.items() if status}
    note = ", ".join(f"{member}: {status}" for member, status in bad.items())
    return Figure("members that did not end in good order", len(bad), 0, note=note)


def _check_jobs(run: Run, rows: Sequence[Mapping[str, Any]]) -> Iterator[Figure]:
    ended = {JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED}
    unended = sum(row["state"] not in ended for row in rows)
    codes = sorted({str(row["code"]) for row in rows if row["state"] == JobState.FAILED})
    yield Figure("jobs lost", unended + len(run.unfinished), 0)
    yield Figure("jobs failed", sum(row["state"] == JobState.FAILED for row in rows), 0, note=", ".join(codes))
    yield Figure("looks at which counts did not sum", run.wrong_sums, 0)
    yield Figure("jobs", len(rows), None)
    yield Figure("attempts above the first", sum(row["attempt"] for row in rows), None)


def _check_objects(run: Run, rows: Sequence[Mapping[str, Any]]) -> Iterator[Figure]:
    """Every row has one object, every object one row."""
    named = [row["result"] for row in rows if row["result"] is not None]
    assert run.settings.results_uri is not None
    lying = set[str]()
    for batch in run.batches:
        store = open_store(f"{run.settings.results_uri}/{batch}", run.settings)
        lying |= {store.locate(found.key) for found in store.list() if found.key.endswith(".png")}
    yield Figure("jobs with two results", len(named) - len(set(named)), 0)
    yield Figure("results without a row", len(lying - set(named)), 0)
    yield Figure("rows without their object", len(set(named) - lying), 0)


def stale_writes(events: Sequence[Event], crashes: Sequence[float]) -> list[Event]:
    """Writes that changed a row though their attempt was over: a later one had begun, or the job had ended, before.

    What was noted just before PostgreSQL died on the spot proves nothing: SQL may have forgotten it.
    """
    begun: dict[int, list[tuple[float, int]]] = defaultdict(list)
    ended: dict[int, list[float]] = defaultdict(list)
    for event in events:
        if any(crash - FORGOTTEN_S <= event.at_s <= crash for crash in crashes):
            continue
        for job, attempt in event.jobs:
            if event.kind == START:
                begun[job].append((event.at_s, attempt))
            elif event.kind in ENDINGS:
                ended[job].append(event.at_s)
    return [
        event
        for event in events
        if event.kind in WRITES
        and any(
            any(at_s < event.asked_s and later > attempt for at_s, later in begun[job])
            or any(at_s < event.asked_s for at_s in ended[job])
            for job, attempt in event.jobs
        )
    ]


def repeated_samples(events: Sequence[Event], struck: Sequence[Struck]) -> tuple[int, int]:
    """How often sampling was repeated for jobs that were not in their sample stage when a fault struck, and otherwise.

    A job is in its sample stage from the beginning of its sampling until the write that ends it. FLUSHALL excuses all
    that lost a handoff by it: every job that was on its way.
    """
    runs = _sample_runs(events)
    first = {job: min(event.at_s for event in events if event.kind == START) for job in runs}
    unexcused = excused = 0
    for job, intervals in runs.items():
        for begin_s, end_s in intervals[:-1]:
            within = any(begin_s <= each.until_s and _reach_back(each) <= end_s for each in struck)
            next_s = intervals[bisect_left(intervals, (begin_s, end_s)) + 1][0]
            flushed = any(
                first[job] <= each.at_s <= next_s and each.at_s >= begin_s
                for each in struck
                if each.name in LOSES_HANDOFFS
            )
            excused, unexcused = (excused + 1, unexcused) if within or flushed else (excused, unexcused + 1)
    return unexcused, excused


def _reach_back(struck: Struck) -> float:
    return struck.at_s - (FORGOTTEN_S if struck.name == "PostgreSQL crashed" else 0.0)


def _sample_runs(events: Sequence[Event]) -> dict[int, list[tuple[float, float]]]:
    """Per job its samplings, each from its beginning to the write that ended it, or to the job's next beginning.

    A stage that found its handoff gone has sampled nothing.
    """
    starts: dict[int, list[float]] = defaultdict(list)
    ends: dict[int, list[float]] = defaultdict(list)
    for event in events:
        for job, _ in event.jobs:
            if event.kind == "lose_handoffs" and event.stage == Stage.SAMPLE and starts[job]:
                starts[job].pop()
            elif event.kind == START and event.stage == Stage.SAMPLE:
                starts[job].append(event.at_s)
            elif (event.kind in WRITES and event.stage == Stage.SAMPLE) or event.kind == START:
                ends[job].append(event.at_s)
    runs = {}
    for job, begun in ((job, begun) for job, begun in starts.items() if begun):
        marks = sorted(ends[job] + begun)
        runs[job] = [(at_s, next((mark for mark in marks if mark > at_s), float("inf"))) for at_s in begun]
    return runs


def _check_times(
    run: Run, events: Sequence[Event], rows: Sequence[Mapping[str, Any]], bars_s: Mapping[str, float]
) -> Iterator[Figure]:
    """The worst time from a worker's death to each of its jobs running again; where no other fault lasted meanwhile."""
    succeeded = {row["id"] for row in rows if row["state"] == JobState.SUCCEEDED}
    for seen_by, bar_s in bars_s.items():
        alone, beside = [(0.0, "none")], [0.0]
        for struck in run.struck:
            if struck.seen_by != seen_by:
                continue
            for seconds in times_to_run_again(struck, events, succeeded):
                if any(_overlaps(other, struck, seconds) for other in run.struck if other is not struck):
                    beside.append(seconds)
                else:
                    alone.append((seconds, struck.name))
        worst_s, name = max(alone)
        median_s = statistics.median(seconds for seconds, _ in alone)
        note = f"{name}; {len(alone) - 1} jobs, median {median_s:.1f} s"
        if beside[1:]:
            note += f"; beside another fault: {len(beside) - 1} jobs, {max(beside):.1f} s"
        title = f"worst time from a worker's death, seen by its {seen_by}, to its job running again"
        yield Figure(title, worst_s, bar_s, "s", note)


def _overlaps(other: Struck, death: Struck, seconds: float) -> bool:
    return other.at_s <= death.at_s + seconds and death.at_s < other.until_s + SETTLING_S


def times_to_run_again(struck: Struck, events: Iterable[Event], succeeded: Collection[int]) -> list[float]:
    """Seconds for each job of a dead worker; endless for one that never ran again.

    One that never ran again and yet succeeded had been written to SQL as the worker was killed: it had moved on.
    """
    again: dict[int, float] = {}
    for event in events:
        if event.kind == START and event.at_s > struck.at_s:
            for job, _ in event.jobs:
                again.setdefault(job, event.at_s - struck.at_s)
    return [again.get(job, float("inf")) for job in struck.jobs if job in again or job not in succeeded]


def unequal_pictures(run: Run, rows: Sequence[Mapping[str, Any]]) -> int:
    """Results whose bytes differ from what the same model gives when nothing is disturbed."""
    editor = EchoEditor()
    text = editor.encode_text([PRESETS["flat-lay"].prompt])
    return sum(
        row["result"] is not None and _read(run, row["result"], row["sha256"]) != _draw(editor, text, row)
        for row in rows
    )


def _draw(editor: EchoEditor, text: Any, row: Mapping[str, Any]) -> bytes:
    photo = draw_photo(int(row["custom_id"]))
    canvas: Canvas = choose(photo.width, photo.height, editor.defaults.area_px)
    condition = editor.encode_images([photo], canvas)
    latents = editor.sample(stack([condition[0]]), text, canvas, [row["seed"]], editor.defaults.steps, 1.0)
    [picture] = editor.decode(latents, canvas)
    return finish(picture, fingerprint=row["fingerprint"])


def _read(run: Run, result: str, sha256: str) -> bytes:
    store, key = open_object(result, run.settings)
    data = store.get(key)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ValueError(f"{result} is not what SQL says it is")
    Image.open(io.BytesIO(data)).load()
    return data


def render(figures: Sequence[Figure]) -> str:
    """The figures as a Markdown table."""
    lines = ["| figure | value | bar | |", "|---|---:|---:|---|"]
    for figure in figures:
        value = f"{figure.value:,.1f} {figure.unit}" if figure.unit else f"{figure.value:,.0f}"
        bar = "" if figure.bar is None else f"≤ {figure.bar:g} {figure.unit}".rstrip()
        verdict = "" if figure.bar is None else "reached" if figure.holds else "**missed**"
        lines.append(f"| {figure.name} | {value} | {bar} | {'; '.join(filter(None, (verdict, figure.note)))} |")
    return "\n".join(lines)
