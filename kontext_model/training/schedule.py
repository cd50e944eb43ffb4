"""Learning rates over a run."""

from math import cos, pi

SCHEDULES = ("cosine", "constant")


def learning_rate(kind: str, peak: float, step: int, steps: int, warmup: int) -> float:
    """The rate of a step (from 0): linear warm-up, then `constant`, or `cosine` down to a fiftieth of the peak.

    Raises ValueError for another kind.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    if kind == "constant":
        return peak
    if kind == "cosine":
        progress = min(1.0, (step - warmup) / max(1, steps - warmup))
        return peak * (0.02 + 0.98 * (1 + cos(pi * progress)) / 2)
    raise ValueError(f"schedule must be 'constant' or 'cosine', not {kind!r}")
