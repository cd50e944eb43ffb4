"""The audit log, as routes and pages write it: who asked for a change."""

from typing import Any

from orchestrator.access.audit import AuditLine
from orchestrator.api.access import Caller
from orchestrator.api.resources import Resources


def line(caller: Caller, action: str, **detail: Any) -> AuditLine:
    """The line of a change that somebody asks for: `action` is `batch.pause` or its like.

    Every route and page that changes something hands one to whoever makes the change. `detail` is JSON without secrets.
    """
    return AuditLine(caller.id, action, **detail)


def note(resources: Resources, caller: Caller, action: str, target: str, **detail: Any) -> None:
    """Note a change that no transaction makes: called before it, so that there is none without its line."""
    with resources.engine.begin() as connection:
        line(caller, action, **detail)(connection, target)
