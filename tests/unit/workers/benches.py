"""Jobs as a worker holds them, and a store that is full."""

from typing import Any

from orchestrator.state.queries import Claimed
from orchestrator.storage import StorageError


def claim(job_id: int, custom_id: str, image: str = "a.jpg") -> Claimed:
    """A job of batch b."""
    return Claimed(job_id, "b", 1, 1, custom_id, image, "r", 0, "16x16", 0, 0, 0, "f" * 64)


class Full:
    """A store that answers, and has no room."""

    ignores_case = False

    def head(self, key: str) -> None:
        """Nothing lies here."""

    def put(self, *_: Any, **__: Any) -> bool:
        """Refuse."""
        raise StorageError("no room is left")
