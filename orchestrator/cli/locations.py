"""Where things are: settings with every location, the database at the newest schema.

Owns which command may start the embedded servers and when they stop: with the last command that uses them, when a
command started them. Refuses to migrate a database that others share.
"""

import fcntl
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import redis
from redis.exceptions import RedisError
from sqlalchemy import Engine
from sqlalchemy.engine import make_url

from orchestrator.cli.failures import CallError, RunError
from orchestrator.local_stack import StackError, ensure_stack, stack_status, stop_stack
from orchestrator.redaction import RedactingFormatter
from orchestrator.settings import Settings
from orchestrator.state import migration, patience
from orchestrator.state.database import open_database

_STARTED = b"started"


def database_url(settings: Settings) -> str:
    """The database that is set, else the file of the home."""
    return settings.database_url or f"sqlite:///{settings.home.absolute() / 'state.db'}"


@contextmanager
def open_state(settings: Settings) -> Iterator[Engine]:
    """The database, for the length of the block.

    A SQLite file is brought to the newest schema here. Raises RunError for a database server whose schema is another.
    """
    engine = open_database(database_url(settings))
    patience.watch(engine)
    try:
        if engine.dialect.name == "sqlite":
            migration.upgrade(engine)
        elif (current := migration.current(engine)) != migration.head():
            raise RunError(
                f"the database {show_url(engine)} stands at {current or 'no schema'}, needed is {migration.head()}; "
                "run: kontext db upgrade"
            )
        yield engine
    finally:
        engine.dispose()


@contextmanager
def open_existing_state(settings: Settings) -> Iterator[Engine]:
    """As `open_state`, for commands that only look. Raises CallError where no command has made a database yet."""
    if not has_state(settings):
        raise CallError(
            f"there are no batches in {settings.home.absolute()}: go to the folder where they were made, or set "
            "KONTEXT_HOME or KONTEXT_DATABASE_URL"
        )
    with open_state(settings) as engine:
        yield engine


def has_state(settings: Settings) -> bool:
    """Whether there is a database: one is set, or a command has made the home's own."""
    return settings.database_url is not None or (settings.home.absolute() / "state.db").exists()


def show_url(engine: Engine) -> str:
    """The database's address without its password."""
    return make_url(engine.url).render_as_string(hide_password=True)


@contextmanager
def open_stack(settings: Settings, say: Callable[[str], None] = lambda text: None) -> Iterator[Settings]:
    """The settings with every location set; for the length of the block the embedded servers run.

    Servers that a command started end with the last command that uses them, whichever that is. After `kill -9` they
    stay, and the next command takes them over.
    """
    if not settings.embedded:
        yield settings
        return
    home = settings.home.absolute()
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(home / "users.lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise StackError(
            f"{home} cannot be used ({error.strerror}): set KONTEXT_HOME to a folder you may write"
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)  # waits while the last user before us stops the servers
        if any(server.pid is None for server in stack_status(settings)):
            say(f"starting the embedded servers in {home} …")
            os.pwrite(descriptor, _STARTED, 0)
        try:
            yield ensure_stack(settings)
        finally:
            _leave(settings, descriptor)
    finally:
        os.close(descriptor)


def _leave(settings: Settings, descriptor: int) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return  # others use the servers still
    if os.pread(descriptor, len(_STARTED), 0) == _STARTED:
        stop_stack(settings)
        os.ftruncate(descriptor, 0)


def check_redis(settings: Settings) -> None:
    """Raise RunError when the broker or the cache does not answer: nothing would move, and nobody would say why."""
    for variable, url in (("KONTEXT_BROKER_URL", settings.broker_url), ("KONTEXT_CACHE_URL", settings.cache_url)):
        try:
            with redis.Redis.from_url(url or "", socket_timeout=5, socket_connect_timeout=5) as client:
                client.ping()
        except (RedisError, ValueError) as error:
            raise RunError(f"the Redis of {variable} does not answer: {error}") from error


def log_to_file(settings: Settings) -> None:
    """Send what libraries log and warn to `<home>/logs/kontext.log`: the terminal belongs to the command.

    Raises CallError when the home cannot be written.
    """
    folder = settings.home.absolute() / "logs"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CallError(f"{settings.home} cannot be used ({error.strerror}): set KONTEXT_HOME to another") from error
    handler = logging.FileHandler(folder / "kontext.log", delay=True)
    handler.setFormatter(RedactingFormatter("%(asctime)s %(name)s %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.captureWarnings(True)
