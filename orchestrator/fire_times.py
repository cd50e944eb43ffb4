"""Fire times: a cron expression read in a time zone, daylight saving included. Pure.

Owns what a cron expression may be and when it fires, as Debian's cron does: a time that the clocks skip fires right
after they moved, one that they pass twice fires once, the first time. Refuses seconds: a minute is the finest step.
"""

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from zoneinfo import ZoneInfo, available_timezones

from cronsim import CronSim, CronSimError

# So many missed fire times are counted one by one; of more, those of the last week.
MOST_COUNTED = 10_000
WEEK_S = 7 * 86_400.0


class FireTimeError(ValueError):
    """A cron expression or a time zone cannot be read; the message says what was expected."""


@dataclass(frozen=True)
class Missed:
    """The fire times that have come: the latest of them, and how many came before it."""

    latest_at: float
    earlier: int


def check(cron: str, time_zone: str, now_s: float) -> None:
    """Raise FireTimeError for an expression or zone that cannot be read, or that never fires."""
    if next_fire(cron, time_zone, now_s) is None:
        raise FireTimeError(f"cron {cron!r} never fires: there is no such day")


def next_fire(cron: str, time_zone: str, after_s: float) -> float | None:
    """The first fire time later than `after_s`; None when there is none. Seconds since the epoch.

    Raises FireTimeError.
    """
    return next(fire_times(cron, time_zone, after_s), None)


def due_fires(cron: str, time_zone: str, first_s: float, now_s: float) -> Missed:
    """Of the fire times from `first_s`, itself one, until `now_s`: the latest, and how many are earlier."""
    latest_s, earlier = first_s, 0
    for fire_s in fire_times(cron, time_zone, first_s):
        if fire_s > now_s:
            return Missed(latest_s, earlier)
        latest_s, earlier = fire_s, earlier + 1
        if earlier >= MOST_COUNTED:
            break
    if earlier < MOST_COUNTED:
        return Missed(latest_s, earlier)
    for fire_s in fire_times(cron, time_zone, max(latest_s, now_s - WEEK_S)):
        if fire_s > now_s:
            break
        latest_s, earlier = fire_s, earlier + 1
    return Missed(latest_s, earlier)


def fire_times(cron: str, time_zone: str, after_s: float) -> Iterator[float]:
    """All fire times later than `after_s`, in order. Raises FireTimeError at the first one."""
    zone = read_zone(time_zone)
    if len(cron.split()) != 5:
        raise FireTimeError(f"cron {cron[:80]!r}: expected five fields, minute hour day month weekday, as 0 2 * * *")
    try:
        times = CronSim(cron, datetime.fromtimestamp(after_s, zone))
    except CronSimError as error:
        problem = str(error).replace("Bad ", "the field cannot be read: ")
        raise FireTimeError(f"cron {cron[:80]!r}: {problem}; expected minute hour day month weekday") from None
    for time in times:
        seconds = time.timestamp()
        # Within the hour that the clocks repeat, the time of its first passing is over.
        if seconds > after_s:
            yield seconds


def read_zone(name: str) -> ZoneInfo:
    """The time zone of an IANA name. Raises FireTimeError, naming the nearest ones."""
    try:
        return ZoneInfo(name)
    except (ValueError, OSError, KeyError):  # no such file, a folder, a path that leads out
        near = difflib.get_close_matches(name, available_timezones(), n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise FireTimeError(f"time zone {name[:80]!r} is not known{hint}; names are as Asia/Shanghai") from None
