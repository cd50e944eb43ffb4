"""How numbers, times and places are written for people. Pure.

Owns the spelling of every figure on the pages, so that the same figure looks the same everywhere.
"""

from datetime import UTC, datetime

_UNITS = ("B", "kB", "MB", "GB", "TB")
DASH = "–"


def number(value: float | None, digits: int = 0) -> str:
    """1,234 or 1,234.5; a dash for None."""
    return DASH if value is None else f"{value:,.{digits}f}"


def rate(per_min: float | None) -> str:
    """Images a minute: three figures, none of them noise."""
    if per_min is None:
        return DASH
    return number(per_min, 0 if per_min >= 99.5 else 1)


def axis(value: float) -> str:
    """A round number at the edge of a chart: 20, 2.5, 0.5."""
    return f"{value:,.2f}".rstrip("0").rstrip(".")


def size(value_bytes: float | None) -> str:
    """A size in decimal units: 1.2 GB."""
    if value_bytes is None:
        return DASH
    amount, unit = float(value_bytes), 0
    while amount >= 999.5 and unit < len(_UNITS) - 1:
        amount, unit = amount / 1000, unit + 1
    return f"{amount:.0f} {_UNITS[unit]}" if amount >= 99.5 or unit == 0 else f"{amount:.1f} {_UNITS[unit]}"


def share(part: float, whole: float) -> str:
    """A percentage that says 100 % only when all are done, and 0 % only when none is."""
    if not whole:
        return "0 %"
    percent = 100 * part / whole
    if 0 < percent < 1:
        return "<1 %"
    return f"{int(percent)} %"


def duration(seconds: float | None) -> str:
    """0.42 s, 8.3 s, 2 min 05 s, 3 h 20 min, 2 d 4 h."""
    if seconds is None:
        return DASH
    seconds = max(0.0, seconds)
    if seconds < 1:
        return f"{seconds:.2f} s"
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours < 24 else f"{hours // 24} d {hours % 24} h"


def ago(then_s: float | None, now_s: float) -> str:
    """How long ago a moment was: just now, 40 s ago, 3 min ago, 5 h ago, 2 d ago."""
    if then_s is None:
        return DASH
    passed = now_s - then_s
    if passed < 0:
        return "in " + _rough(-passed)
    return "just now" if passed < 2 else f"{_rough(passed)} ago"


def _rough(seconds: float) -> str:
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= length * (2 if unit == "d" else 1):
            return f"{int(seconds // length)} {unit}"
    return f"{int(seconds)} s"


def moment(seconds: float | None) -> str:
    """A moment as every page writes it: 2026-11-25 02:00:13 UTC; pages turn it into local time where scripts run."""
    return DASH if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def iso(seconds: float | None) -> str:
    """A moment for machines, in the attribute `datetime`."""
    return "" if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def last_part(uri: str) -> str:
    """The name at the end of a path or URI, which is what people know it by."""
    return uri.rstrip("/").rpartition("/")[2].removeprefix("sent:") or uri


def plural(count: int, one: str, many: str | None = None) -> str:
    """1 job, 2 jobs, 1,000 jobs."""
    return f"{count:,} {one if count == 1 else (many or one + 's')}"
