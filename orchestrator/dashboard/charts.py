"""The geometry of what is drawn on the server as SVG: bars of states, throughput over time, the way of a job. Pure.

Owns positions in percent, which need no inline styles. Refuses colours: those are the style sheet's, by class.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from orchestrator.state.transitions import JobState

# Finished work first, so that a bar fills from the left.
ORDER = (
    JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED, JobState.RUNNING, JobState.QUEUED, JobState.PENDING,
)  # fmt: skip
# Less than this is not to be seen; what exists at all is shown.
LEAST_PERCENT = 0.6
NICE = (1, 2, 2.5, 5, 10)


@dataclass(frozen=True)
class Segment:
    """A part of a bar, from `x` and `width` per cent wide."""

    name: str
    count: int
    x: float
    width: float


def segments(counts: Mapping[str, int]) -> list[Segment]:
    """A bar of six states in their order; widths sum to 100 where there is anything."""
    present = [(state, counts.get(state, 0)) for state in ORDER if counts.get(state, 0)]
    total = sum(count for _, count in present)
    widths = [max(LEAST_PERCENT, 100 * count / total) for _, count in present]
    scale, x = 100 / sum(widths) if widths else 1.0, 0.0
    found = []
    for (state, count), width in zip(present, widths, strict=True):
        found.append(Segment(state, count, round(x, 3), round(width * scale, 3)))
        x += width * scale
    return found


@dataclass(frozen=True)
class Column:
    """One interval of a throughput chart: where it stands and how high its two parts are, in per cent of the plot."""

    at_s: float
    succeeded: int
    failed: int
    x: float
    width: float
    ok_y: float
    ok_height: float
    bad_y: float
    bad_height: float


@dataclass(frozen=True)
class Throughput:
    """Jobs that ended over time. `top` is the value at the upper edge, in jobs an interval of `step_s`."""

    columns: list[Column]
    from_s: float
    to_s: float
    step_s: float
    top: float

    @property
    def middle_s(self) -> float:
        """The moment in the middle."""
        return (self.from_s + self.to_s) / 2

    @property
    def top_per_min(self) -> float:
        """The value at the upper edge, in images a minute."""
        return self.top * 60 / self.step_s


def throughput(buckets: Sequence[tuple[float, int, int]], from_s: float, to_s: float, step_s: float) -> Throughput:
    """Columns of (start, succeeded, failed), between two moments; intervals without an end stay empty."""
    span = max(step_s, to_s - from_s)
    top_per_min = nice(max((ok + bad for _, ok, bad in buckets), default=0) * 60 / step_s)
    top = top_per_min * step_s / 60
    columns = []
    for at_s, ok, bad in buckets:
        x, width = 100 * (at_s - from_s) / span, 100 * step_s / span
        ok_height, bad_height = 100 * ok / top, 100 * bad / top
        columns.append(
            Column(
                at_s, ok, bad, round(x + width * 0.1, 3), round(width * 0.8, 3), round(100 - ok_height, 3),
                round(ok_height, 3), round(100 - ok_height - bad_height, 3), round(bad_height, 3),
            )
        )  # fmt: skip
    return Throughput(columns, from_s, from_s + span, step_s, top)


def nice(value: float) -> float:
    """The next round number from a value up: 1, 2, 2.5 or 5 times a power of ten."""
    if value <= 0:
        return 1.0
    power = 1.0
    while power * 10 <= value:
        power *= 10
    while power > value:
        power /= 10
    return next(power * step for step in NICE if power * step >= value * 0.999999)


def choose_step(span_s: float, most: int = 60) -> float:
    """The shortest usual interval that cuts a span into at most so many parts."""
    usual = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14_400, 43_200, 86_400)
    return float(next((step for step in usual if span_s / step <= most), span_s / most))


@dataclass(frozen=True)
class Span:
    """A stretch of a job's way: `kind` is a stage, `wait`, or an outcome; x and width in per cent of the whole way."""

    stage: str
    kind: str
    worker_id: str | None
    attempt: int | None
    from_s: float
    to_s: float
    x: float = 0.0
    width: float = 0.0
    note: str = ""

    @property
    def seconds(self) -> float:
        """How long it took."""
        return max(0.0, self.to_s - self.from_s)


def place(spans: Sequence[Span]) -> list[Span]:
    """Give spans their place on one common axis, from the first beginning to the last end."""
    if not spans:
        return []
    begin, end = min(span.from_s for span in spans), max(span.to_s for span in spans)
    whole = max(end - begin, 1e-9)
    return [
        Span(
            span.stage, span.kind, span.worker_id, span.attempt, span.from_s, span.to_s,
            round(min(99.4, 100 * (span.from_s - begin) / whole), 3),
            round(max(LEAST_PERCENT, 100 * span.seconds / whole), 3), span.note,
        )
        for span in sorted(spans, key=lambda span: (span.from_s, span.to_s))
    ]  # fmt: skip
