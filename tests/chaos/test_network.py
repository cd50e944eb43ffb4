"""What lies between us and our servers breaks: the clients of broker, S3 and database, each through the proxy."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Timer
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis
from celery import Celery
from sqlalchemy import Engine, event, make_url, text
from sqlalchemy.exc import DBAPIError

from orchestrator import dispatcher
from orchestrator.cli.locations import open_state
from orchestrator.settings import Settings
from orchestrator.state import patience
from orchestrator.state.database import open_database, reading
from orchestrator.state.messages import Bell, broker_options, ring
from orchestrator.state.tables import metadata
from orchestrator.state.transitions import Stage
from orchestrator.storage import Store, Unavailable, open_store
from tests.chaos.model import EchoEditor
from tests.chaos.proxy import HOST, Mode, Proxy
from tests.integration.seeding import Seeder
from tests.waiting import PATIENCE_S, wait_until
from workers.app import serve

BELL = Bell(Stage.ENCODE, "a" * 40, "recipe")


def address(url: str | None) -> tuple[str, int]:
    parts = urlsplit(url or "")
    assert parts.hostname is not None and parts.port is not None
    return parts.hostname, parts.port


@pytest.fixture
def broker(valkey_url: str) -> Iterator[Proxy]:
    with Proxy(address(valkey_url)) as proxy:
        yield proxy


@pytest.fixture
def app(valkey_url: str, broker: Proxy) -> Iterator[Celery]:
    options = broker_options(valkey_url.replace(f":{address(valkey_url)[1]}", f":{broker.port}"))
    options["broker_transport_options"] |= {"socket_timeout": 0.5, "socket_connect_timeout": 0.5}
    app = Celery("kontext", set_as_current=False)
    app.conf.update(options, task_publish_retry_policy={"max_retries": 1, "interval_start": 0})
    ring_again(app)
    yield app
    app.close()


def ring_again(app: Celery) -> None:
    """Ring as soon as that works: on a busy machine a good answer may take longer than these short timeouts, too."""

    def ring_once() -> bool:
        try:
            ring(app, [BELL])
        except ConnectionError:
            return False
        return True

    wait_until(ring_once, "the bell rings")


def bells(valkey_url: str) -> int:
    with redis.Redis.from_url(valkey_url) as client:
        return int(client.llen(BELL.queue))


class TestBroker:
    def test_a_silent_connection_is_given_up_and_the_next_bell_rings(
        self, app: Celery, broker: Proxy, valkey_url: str
    ) -> None:
        broker.silence()
        began_s = time.monotonic()
        for _ in range(2):  # the first may go out by a new connection, or be lost: SQL holds the work
            try:
                ring(app, [BELL])
            except ConnectionError:
                continue
        assert time.monotonic() - began_s < 20
        before = bells(valkey_url)
        ring_again(app)
        assert bells(valkey_url) > before

    @pytest.mark.parametrize("mode", [Mode.REFUSE, Mode.HALF_OPEN])
    def test_bells_ring_again_once_the_broker_is_back(
        self, app: Celery, broker: Proxy, valkey_url: str, mode: Mode
    ) -> None:
        broker.turn(mode)
        for _ in range(3):
            with pytest.raises(ConnectionError):
                ring(app, [BELL])
        broker.turn(Mode.PASS)
        broker.reset()
        before = bells(valkey_url)
        ring_again(app)
        assert bells(valkey_url) > before


@pytest.fixture
def s3_proxy(s3: Settings) -> Iterator[Proxy]:
    with Proxy(address(s3.local_s3_url)) as proxy:
        yield proxy


@pytest.fixture
def store(s3: Settings, s3_proxy: Proxy) -> Store:
    assert s3.local_s3_url is not None and s3.results_uri is not None
    through = s3.local_s3_url.replace(f":{address(s3.local_s3_url)[1]}", f":{s3_proxy.port}")
    return open_store(s3.results_uri, s3.model_copy(update={"local_s3_url": through}))


class TestS3:
    def test_a_storm_of_5xx_is_outlived_by_trying_again(
        self, store: Store, s3_proxy: Proxy, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("orchestrator.storage.s3.ATTEMPTS", 2)  # each waits longer than the one before
        assert store.put("before.png", b"picture")
        s3_proxy.turn(Mode.STORM)
        with pytest.raises(Unavailable, match="SlowDown"):
            store.put("storm.png", b"picture")
        s3_proxy.turn(Mode.PASS)
        assert store.put("storm.png", b"picture") and store.get("storm.png") == b"picture"

    def test_a_write_whose_answer_was_stalled_is_found_written_once(
        self, store: Store, s3_proxy: Proxy, s3: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # The first try may have arrived: the second then meets its own object, which the worker adopts.
        monkeypatch.setattr("orchestrator.storage.s3.READ_TIMEOUT_S", 1)
        store.put("before.png", b"picture")
        s3_proxy.turn(Mode.STALL)
        before = s3_proxy.accepted
        with ThreadPoolExecutor(1) as pool:
            writing = pool.submit(store.put, "stalled.png", b"picture")
            wait_until(lambda: s3_proxy.accepted > before, "a second try begins")
            s3_proxy.turn(Mode.PASS)
            writing.result()
        direct = open_store(str(s3.results_uri), s3)
        assert direct.get("stalled.png") == b"picture"
        assert not direct.put("stalled.png", b"another")

    def test_a_reset_connection_is_replaced(self, store: Store, s3_proxy: Proxy) -> None:
        assert store.put("before.png", b"picture")
        assert s3_proxy.reset() >= 1
        assert store.get("before.png") == b"picture"


@pytest.fixture
def database(fresh_database_url: str) -> Iterator[tuple[Engine, Proxy]]:
    url = make_url(fresh_database_url)
    with Proxy(f"{url.query['host']}/.s.PGSQL.{url.port or 5432}") as proxy:
        through = url.set(host=HOST, port=proxy.port, query={})
        engine = open_database(through.render_as_string(hide_password=False), relaxed=True)
        yield engine, proxy
        engine.dispose()


class TestDatabase:
    def one(self, engine: Engine) -> Any:
        with reading(engine).connect() as connection:
            return connection.execute(text("SELECT 1")).scalar_one()

    def answers(self, engine: Engine) -> bool:
        """Whether it does at the moment: a busy machine may keep a good answer longer than a short patience."""
        with suppress(DBAPIError):
            return bool(self.one(engine) == 1)
        return False

    def test_a_reset_costs_one_statement_and_no_more(self, database: tuple[Engine, Proxy]) -> None:
        engine, proxy = database
        assert self.one(engine) == 1
        assert proxy.reset() == 1
        with pytest.raises(DBAPIError) as raised:
            self.one(engine)
        assert raised.value.connection_invalidated
        assert self.one(engine) == 1

    @pytest.mark.parametrize("moment", ["statement", "commit", "first"])
    def test_a_server_that_says_nothing_is_given_up(self, database: tuple[Engine, Proxy], moment: str) -> None:
        """Every byte is taken and acknowledged, none is answered: TCP sees nothing wrong."""
        engine, proxy = database
        if moment == "first":
            proxy.silencing = (b"pg_catalog.version",)
        else:
            assert self.one(engine) == 1
        patience.watch(engine, 0.6)
        if moment == "statement":
            proxy.silence()
        proxy.silencing += (b"COMMIT",) if moment == "commit" else ()
        began_s = time.monotonic()
        with pytest.raises(DBAPIError) as raised, engine.begin() as connection:
            connection.execute(text("SELECT 1"))
        assert raised.value.connection_invalidated or moment == "first"
        assert 0.5 < time.monotonic() - began_s < 30
        proxy.silencing = ()
        wait_until(lambda: self.answers(engine), "the next one is answered")

    def test_a_pooled_connection_that_fell_silent_is_replaced_before_it_is_used(
        self, database: tuple[Engine, Proxy]
    ) -> None:
        engine, proxy = database
        pinging = open_database(engine.url.render_as_string(hide_password=False))
        assert self.one(pinging) == 1
        patience.watch(pinging, 2.0)
        proxy.silence()
        began_s = time.monotonic()
        assert self.one(pinging) == 1 and time.monotonic() - began_s < 30
        pinging.dispose()

    def test_who_is_slow_but_answers_is_waited_for(
        self, database: tuple[Engine, Proxy], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        engine, _ = database
        clock, looks = [0.0], [0]

        def look(_: float) -> None:
            looks[0] += threading.current_thread() is watch._thread
            time.sleep(0.02)

        def pass_time(seconds: float) -> None:
            """Let the watch see that so much time has passed."""
            clock[0] += seconds
            seen = looks[0]
            wait_until(lambda: looks[0] > seen + 1 or watch._thread is None, "the watch looks")

        monkeypatch.setattr(patience, "time", SimpleNamespace(monotonic=lambda: clock[0], sleep=look))
        watch = patience._Watch(engine, 50.0)
        event.listen(engine, "before_cursor_execute", lambda *_: pass_time(35))
        with engine.begin() as connection:
            for _ in range(4):
                connection.execute(text("SELECT 1"))
            pass_time(1000)  # nobody waits for the server meanwhile
            assert connection.execute(text("SELECT 1")).scalar_one() == 1

    def test_a_forgotten_connection_may_be_closed_in_the_midst_of_another(
        self, database: tuple[Engine, Proxy], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As a collection of garbage does, at any moment and in any thread."""
        engine, _ = database
        patience.watch(engine, PATIENCE_S)
        forgotten = [engine.connect() for _ in range(2)]

        def monotonic() -> float:
            if forgotten:
                forgotten.pop().close()
            return time.monotonic()

        monkeypatch.setattr(patience, "time", SimpleNamespace(monotonic=monotonic, sleep=time.sleep))
        asking = threading.Thread(target=self.one, args=(engine,), daemon=True)
        asking.start()
        asking.join(PATIENCE_S)
        assert not asking.is_alive() and not forgotten

    def test_a_dispatcher_recovers_from_a_silent_database(
        self, database: tuple[Engine, Proxy], valkey_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        engine, proxy = database
        metadata.create_all(engine)
        seed = Seeder(engine)
        monkeypatch.setattr(patience.watch, "__defaults__", (1.0,))
        url = engine.url.render_as_string(hide_password=False)
        settings = Settings(home=tmp_path, database_url=url, broker_url=valkey_url, cache_url=valkey_url)
        stop = threading.Event()
        serving = threading.Thread(target=dispatcher.serve, args=(settings, stop))
        serving.start()
        try:
            for batch_id in ("before", "after"):
                seed.batch(batch_id, jobs=1)
                queued = lambda name=batch_id: seed.rows(name)[0]["state"] == "queued"  # noqa: E731
                wait_until(queued, f"{batch_id}: the dispatcher goes on", pause_s=0.05)
                engine.dispose()  # ours are not the ones that go silent
                wait_until(lambda: proxy.silence() >= 1, "a connection goes silent")
        finally:
            stop.set()
            serving.join(PATIENCE_S)
        assert not serving.is_alive()

    @pytest.mark.parametrize("who", ["command", "worker"])
    def test_whoever_starts_gives_a_silent_database_up(
        self, database: tuple[Engine, Proxy], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, who: str
    ) -> None:
        """Else a supervisor would wait for ever to report a death, and a worker to register, with no heart to beat."""
        engine, proxy = database
        monkeypatch.setattr(patience.watch, "__defaults__", (1.0,))
        proxy.silencing = (b"pg_catalog.version",)
        url = engine.url.render_as_string(hide_password=False)
        settings = Settings(home=tmp_path, database_url=url, cache_url="redis://127.0.0.1:1")
        told: list[BaseException] = []

        def start() -> None:
            try:
                if who == "worker":
                    serve(settings, [Stage.ENCODE], "w", lambda *_: EchoEditor())
                with open_state(settings):
                    pass
            except DBAPIError as error:
                told.append(error)

        starting = threading.Thread(target=start, daemon=True)
        starting.start()
        wait_until(lambda: told, "it gives up", 30.0)

    def test_a_stall_is_waited_for(self, database: tuple[Engine, Proxy]) -> None:
        engine, proxy = database
        assert self.one(engine) == 1
        began_s = time.monotonic()
        proxy.turn(Mode.STALL)
        Timer(0.5, proxy.turn, (Mode.PASS,)).start()
        assert self.one(engine) == 1 and time.monotonic() - began_s > 0.4
