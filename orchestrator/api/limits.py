"""How much a caller may ask: a token bucket each, in this process's memory.

Owns the buckets. Refuses precision: with several processes behind one address a caller has as many buckets.
"""

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable

from orchestrator.api.problems import Problem

# Buckets kept; the longest unused is forgotten, which is to its owner's advantage.
CALLERS = 10_000


class Buckets:
    """`rate` calls a second for each caller, and `burst` at once."""

    def __init__(self, rate: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._burst, self._clock = rate, burst, clock
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, caller: str) -> None:
        """Take one call from a caller's bucket. Raises Problem 429, which says when to come back, when it is empty."""
        with self._lock:
            now_s = self._clock()
            left, at_s = self._left.pop(caller, (self._burst, now_s))
            left = min(self._burst, left + (now_s - at_s) * self._rate)
            allowed = left >= 1
            self._left[caller] = (left - 1 if allowed else left, now_s)
            if len(self._left) > CALLERS:
                self._left.popitem(last=False)
        if not allowed:
            wait_s = math.ceil((1 - left) / self._rate)
            detail = f"more than {self._rate:g} requests a second; try again in {wait_s} s"
            raise Problem(429, "too_many_requests", detail, headers={"retry-after": str(wait_s)})
