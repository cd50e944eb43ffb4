"""Waiting for what must come: it ends as soon as that is there, so that its patience costs nothing.

Patience is for machines that do other things beside; only a product that is broken uses it up.
"""

import time
from collections.abc import Callable

PATIENCE_S = 90.0


def wait_until(
    holds: Callable[[], object], what: str = "what must come", patience_s: float = PATIENCE_S, pause_s: float = 0.01
) -> float:
    """Wait for a condition; gives the seconds that it took. Raises AssertionError when it never holds."""
    began_s = time.monotonic()
    while not holds():
        assert time.monotonic() - began_s < patience_s, f"waited in vain: {what}"
        time.sleep(pause_s)
    return time.monotonic() - began_s
