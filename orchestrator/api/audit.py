"""The audit log, as routes and pages write it: one line for every change, and who asked for it."""

from typing import Any

from orchestrator.api.access import Caller
from orchestrator.api.resources import Resources
from orchestrator.state import queries


def note(resources: Resources, caller: Caller, action: str, target: str, **detail: Any) -> None:
    """Note a change that was made: `action` is `batch.pause` or its like, `target` the id of what was changed.

    Every route and page that changes something calls this once, after it. `detail` is JSON without secrets.
    """
    with resources.engine.begin() as connection:
        queries.record_audit(connection, caller=caller.id, action=action, target=target, detail=detail)
