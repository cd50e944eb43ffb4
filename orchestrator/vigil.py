"""The vigil: how long signs of life have stood still, by this process's own clock.

Owns the judgement whose time has run out. Pure; refuses to believe that a sign is old because a clock says so: a laptop
that slept, a clock that was set, a database that was away make every sign old at once, and nobody dies of it. Our clock
is monotonic and stands still while the machine sleeps.
"""

from collections.abc import Iterable
from dataclasses import dataclass

# Of a time in which we did not look, so much of the limit counts at most: nobody could be seen in it.
UNSEEN_SHARE = 0.5


@dataclass(frozen=True)
class Sign:
    """When, by the database's clock, something was last heard of, and how long ago by that same clock, in seconds."""

    of: str
    at: float
    age_s: float


@dataclass(frozen=True)
class _Stand:
    at: float
    since_s: float


class Vigil:
    """Judges what stands still longer than `limit_s`.

    A sign that changes between two looks came between them. Of what lies before the first look the database's clock is
    believed, but for `notice_s`: so long everything is looked at before it is judged.
    """

    def __init__(self, limit_s: float, notice_s: float) -> None:
        self._limit_s, self._notice_s = limit_s, min(notice_s, limit_s)
        self._stands: dict[str, _Stand] = {}
        self._looked_s: float | None = None

    def look(self, signs: Iterable[Sign], now_s: float) -> list[str]:
        """Take note of the signs as they are now, and name those that have stood still too long.

        `now_s` is `time.monotonic()`, read before the signs were. A sign that is not among them is forgotten.
        """
        gap_s = None if self._looked_s is None else now_s - self._looked_s
        unseen_s = 0.0 if gap_s is None else max(0.0, gap_s - UNSEEN_SHARE * self._limit_s)
        most_s = self._limit_s - self._notice_s if gap_s is None else gap_s - unseen_s
        before, self._stands, self._looked_s = self._stands, {}, now_s
        for sign in signs:
            stand = before.get(sign.of)
            if stand is not None and stand.at == sign.at:
                self._stands[sign.of] = _Stand(sign.at, stand.since_s + unseen_s)
            else:
                self._stands[sign.of] = _Stand(sign.at, now_s - min(max(0.0, sign.age_s), most_s))
        return [name for name, stand in self._stands.items() if now_s - stand.since_s >= self._limit_s]
