"""Times as people and programs outside read them. Pure; what time it is, the database says."""

import math
from datetime import UTC, datetime


def show_time(seconds: float | None) -> str | None:
    """Seconds since the epoch as ISO 8601 in UTC, to the millisecond; None for None."""
    if seconds is None:
        return None
    shown = datetime.fromtimestamp(math.floor(seconds * 1000 + 0.5) / 1000, UTC)
    return shown.isoformat(timespec="milliseconds").replace("+00:00", "Z")
