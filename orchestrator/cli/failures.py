"""Errors as the command line tells them: one sentence on stderr and an exit status, never a traceback.

Owns the exit statuses. Refuses to hide the unexpected: its traceback goes to a log, whose path is said.
"""

import os
import tempfile
import traceback
from datetime import UTC, datetime
from pathlib import Path

SUCCESS, ERROR, BAD_CALL, INCOMPLETE, INTERRUPTED = 0, 1, 2, 3, 130


class CallError(Exception):
    """A call that cannot be answered as it stands; the message says what to do. Nothing was changed."""


class RunError(Exception):
    """Something that the call needs does not work; the message says what and what to do."""


def explain(error: Exception) -> tuple[int, str]:
    """The exit status and the sentence for any error."""
    # Imported here, where it no longer matters that it takes a moment.
    from redis.exceptions import RedisError
    from sqlalchemy.exc import ArgumentError, DBAPIError

    from kontext_model.revision import CheckpointError
    from orchestrator.batches import BatchError
    from orchestrator.catalogs import CatalogueError
    from orchestrator.client.errors import ApiError
    from orchestrator.control import ControlError
    from orchestrator.fire_times import FireTimeError
    from orchestrator.local_stack import StackError
    from orchestrator.recipes import OptionError
    from orchestrator.schedules import ScheduleError
    from orchestrator.settings import SettingsError
    from orchestrator.state.migration import MigrationError
    from orchestrator.storage import StorageError
    from orchestrator.webhooks import WebhookError

    asked_wrongly = (
        CallError, SettingsError, CatalogueError, CheckpointError, ControlError, FireTimeError, OptionError,
        ScheduleError, WebhookError,
    )  # fmt: skip
    if isinstance(error, asked_wrongly):
        return BAD_CALL, str(error)
    if isinstance(error, ApiError):
        return BAD_CALL if error.callers_fault else ERROR, str(error)
    if isinstance(error, (RunError, BatchError, MigrationError, StackError, StorageError)):
        return ERROR, str(error)
    if isinstance(error, ArgumentError):
        return BAD_CALL, f"KONTEXT_DATABASE_URL cannot be read: {_first_line(error)}"
    if isinstance(error, DBAPIError):
        return ERROR, f"the database failed: {_first_line(error.orig or error)}; see: kontext doctor"
    if isinstance(error, RedisError):
        return ERROR, f"Redis failed: {_first_line(error)}; see: kontext doctor"
    return ERROR, f"unexpected {type(error).__name__}: {_first_line(error)}; the traceback: {_write_traceback(error)}"


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:500]


def _write_traceback(error: Exception) -> str:
    text = f"{datetime.now(UTC).isoformat()}\n{''.join(traceback.format_exception(error))}\n"
    folder = Path(os.environ.get("KONTEXT_HOME") or ".kontext").absolute() / "logs"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "errors.log"
        with path.open("a", encoding="utf-8") as file:
            file.write(text)
    except OSError:
        handle, name = tempfile.mkstemp(prefix="kontext-", suffix=".log", text=True)
        path = Path(name)
        os.close(handle)
        path.write_text(text, encoding="utf-8")
    return str(path)
