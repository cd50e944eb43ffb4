"""A nightly run over an unchanged catalogue: no image is downloaded, no model step made, nothing wrong reused."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import OperationalError

from orchestrator.settings import Settings
from orchestrator.state import queries
from orchestrator.state.queries import Source
from orchestrator.storage import Content, Store, Unavailable, open_object, open_store
from orchestrator.storage.s3 import S3Store
from tests.integration.shop import Shop, photo
from workers import ledger, source

NAMES = [f"look {number}.jpg" for number in range(6)]
COLOURS = ("red", "green", "blue", "orange", "purple", "brown")
NOTHING = {"encode": 0, "sample": 0, "decode": 0}


@pytest.fixture
def shop(engine: Engine, s3: Settings, valkey_url: str, tmp_path: Path) -> Shop:
    settings = s3.model_copy(update={"home": tmp_path / "home", "unit_size": 4})
    return Shop(engine, settings, valkey_url)


@pytest.fixture
def photos(shop: Shop) -> Store:
    """Six photos in S3."""
    store = open_store(f"{shop.settings.results_uri}-photos", shop.settings)
    for name, colour in zip(NAMES, COLOURS, strict=True):
        store.put(name, photo(colour))
    return store


@pytest.fixture
def asked(photos: Store) -> Iterator[Counter[str]]:
    """What S3 was asked for photos: GETs by status, and the bytes they brought."""
    assert isinstance(photos, S3Store)
    found: Counter[str] = Counter()

    def count(http_response: Any, parsed: Any, **_: Any) -> None:
        if photos.prefix in http_response.url:
            found[str(http_response.status_code)] += 1
            if http_response.status_code == 200:
                found["bytes"] += parsed["ContentLength"]

    events = photos._client.meta.events
    events.register("after-call.s3.GetObject", count, unique_id="count-photos")
    yield found
    events.unregister("after-call.s3.GetObject", unique_id="count-photos")


def succeeded(shop: Shop, batch_id: str) -> list[int]:
    """Whether each job reused its picture; all have succeeded."""
    rows = shop.rows(batch_id)
    assert [row["state"] for row in rows] == ["succeeded"] * len(rows), [row["message"] for row in rows]
    for row in rows:
        store, key = open_object(row["result"], shop.settings)
        assert store.head(key) is not None
    return [row["reused"] for row in rows]


def test_an_unchanged_catalogue_costs_no_byte_and_no_model_step(shop: Shop, photos: Store, asked: Counter[str]) -> None:
    shop.submit("one", NAMES, photos.uri)
    assert shop.work() == {"encode": 6, "sample": 6, "decode": 6}
    assert asked == {"200": 6, "bytes": sum(len(photo(colour)) for colour in COLOURS)}
    asked.clear()
    shop.submit("two", NAMES, photos.uri)
    assert shop.work() == NOTHING
    assert succeeded(shop, "two") == [1] * 6
    assert asked == {"304": 6}
    first, second = shop.rows("one"), shop.rows("two")
    for name in ("result", "sha256", "image_sha256", "fingerprint"):
        assert [row[name] for row in first] == [row[name] for row in second]


def test_a_photo_that_changed_is_done_again(shop: Shop, photos: Store, asked: Counter[str]) -> None:
    shop.submit("one", NAMES, photos.uri)
    shop.work()
    photos.replace(NAMES[2], photo("white"))
    asked.clear()
    shop.submit("two", NAMES, photos.uri)
    assert shop.work() == {"encode": 1, "sample": 1, "decode": 1}
    assert succeeded(shop, "two") == [1, 1, 0, 1, 1, 1]
    assert (asked["200"], asked["304"]) == (1, 5)
    # And back again: the first night's picture is what it was.
    photos.replace(NAMES[2], photo(COLOURS[2]))
    shop.submit("three", NAMES, photos.uri)
    assert shop.work() == NOTHING
    assert shop.rows("three")[2]["result"] == shop.rows("one")[2]["result"]


def test_a_result_that_was_deleted_is_made_once_more(shop: Shop, photos: Store, asked: Counter[str]) -> None:
    shop.submit("one", NAMES, photos.uri)
    shop.work()
    store, key = open_object(shop.rows("one")[4]["result"], shop.settings)
    store.delete(key)
    shop.submit("two", NAMES, photos.uri)
    assert shop.work() == {"encode": 1, "sample": 1, "decode": 1}
    assert succeeded(shop, "two") == [1, 1, 1, 1, 0, 1]
    shop.submit("three", NAMES, photos.uri)
    assert shop.work() == NOTHING, "the picture made again is found from now on"
    assert succeeded(shop, "three") == [1] * 6


def test_a_batch_that_wants_all_made_anew_reuses_nothing(shop: Shop, photos: Store, asked: Counter[str]) -> None:
    shop.submit("one", NAMES, photos.uri)
    shop.work()
    shop.submit("two", NAMES, photos.uri, options='{"only_changed": false}')
    assert shop.work() == {"encode": 6, "sample": 6, "decode": 6}
    assert succeeded(shop, "two") == [0] * 6
    assert [row["sha256"] for row in shop.rows("two")] == [row["sha256"] for row in shop.rows("one")]
    shop.submit("three", NAMES, photos.uri, options='{"only_changed": true}')
    assert shop.work() == NOTHING


def test_another_prompt_downloads_and_works_as_ever(shop: Shop, photos: Store, asked: Counter[str]) -> None:
    shop.submit("one", NAMES, photos.uri)
    shop.work()
    shop.submit("two", NAMES, photos.uri, prompt="y")
    assert shop.work() == {"encode": 6, "sample": 6, "decode": 6}
    assert succeeded(shop, "two") == [0] * 6


def test_the_same_photo_under_another_name_is_reused_by_its_bytes(shop: Shop, photos: Store) -> None:
    shop.submit("one", NAMES[:1], photos.uri)
    shop.work()
    photos.put("copy.jpg", photo(COLOURS[0]))
    shop.submit("two", ["copy.jpg", photos.locate(NAMES[0])], photos.uri)
    assert shop.work() == NOTHING
    assert succeeded(shop, "two") == [1, 1]


def test_a_store_that_does_not_answer_is_waited_for_not_worked_around(
    shop: Shop, photos: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.submit("one", NAMES[:2], photos.uri)
    shop.work()

    def away(self: S3Store, key: str) -> None:
        raise Unavailable(f"{key}: away")

    shop.submit("two", NAMES[:2], photos.uri)
    with monkeypatch.context() as patch:
        patch.setattr(S3Store, "head", away)
        assert shop.work() == NOTHING, "no model step is spent on what exists"
    assert [(row["state"], row["failures"], row["code"]) for row in shop.rows("two")] == [
        ("queued", 1, "storage_unavailable")
    ] * 2


def test_files_are_known_by_identity_and_times(shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.storage.folder.SETTLED_S", 0.0)
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, colour in zip(NAMES, COLOURS, strict=True):
        (folder / name).write_bytes(photo(colour))
    read: list[bool] = []
    fetch = source.fetch

    def counting(*given: Any) -> Content | None:
        content = fetch(*given)
        read.append(content is not None)
        return content

    monkeypatch.setattr(source, "fetch", counting)
    shop.submit("one", NAMES, str(folder))
    shop.work()
    assert read == [True] * 6
    read.clear()
    before = (folder / NAMES[1]).stat()
    changed = photo("white").ljust(before.st_size, b"\0")
    assert len(changed) == before.st_size
    (folder / NAMES[1]).write_bytes(changed)
    os.utime(folder / NAMES[1], ns=(before.st_atime_ns, before.st_mtime_ns))  # as a copying tool would
    shop.submit("two", NAMES, str(folder))
    assert shop.work() == {"encode": 1, "sample": 1, "decode": 1}
    assert succeeded(shop, "two") == [1, 0, 1, 1, 1, 1]
    assert sorted(read) == [False] * 5 + [True]


def test_a_memory_that_cannot_be_written_costs_nothing_else(
    shop: Shop, photos: Store, asked: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: Any) -> None:
        raise OperationalError("INSERT", {}, Exception("away"))

    monkeypatch.setattr(queries, "learn_sources", away)
    for batch_id in ("one", "two"):
        shop.submit(batch_id, NAMES, photos.uri)
        shop.work()
    assert succeeded(shop, "two") == [1] * 6, "by their bytes"
    assert asked["304"] == 0


def test_sql_hears_of_sources_soon_and_seldom(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    class Timer:
        """Waits until the test lets its time pass."""

        def __init__(self, after_s: float, then: Callable[[], None]) -> None:
            assert after_s == ledger.TELL_AFTER_S
            self.pass_time, self.daemon = then, False

        def start(self) -> None:
            timers.append(self)

        def cancel(self) -> None:
            pass

    timers: list[Timer] = []
    monkeypatch.setattr(ledger.threading, "Timer", Timer)
    told: list[int] = []
    learn = queries.learn_sources

    def counting(connection: Connection, new: Sequence[Source]) -> None:
        told.append(len(new))
        learn(connection, new)

    monkeypatch.setattr(queries, "learn_sources", counting)
    memory = ledger.Ledger(engine)
    uris = [f"s3://bucket/{number}" for number in range(50)]
    for uri in uris:
        memory.learn(uri, '"tag"', "sha")
    assert told == []
    [timer] = timers
    timer.pass_time()
    assert ledger.Ledger(engine).recall("b", uris).keys() == set(uris)
    assert told == [50]
    memory.learn(uris[0], '"newer"', "other")
    memory.close()
    assert told == [50, 1]
    found = ledger.Ledger(engine).recall("b", uris[:2])
    assert found[uris[0]] == Source(queries.source_id(uris[0]), '"newer"', "other")


def test_no_uri_is_stored_in_the_memory(engine: Engine) -> None:
    memory = ledger.Ledger(engine)
    memory.learn("https://anna:S3cret@h.example/a.jpg", '"tag"', "sha")
    memory.close()
    with engine.connect() as connection:
        rows = connection.exec_driver_sql("SELECT * FROM sources").all()
    assert len(rows) == 1 and "h.example" not in json.dumps([list(row) for row in rows])


def test_urls_that_are_new_every_night_are_not_remembered(engine: Engine) -> None:
    memory = ledger.Ledger(engine)
    for night in range(3):
        signed = f"?X-Amz-Date=2026112{night}T020000Z&X-Amz-Signature={night}{'0' * 63}"
        memory.learn(f"https://bucket.example/a.jpg{signed}", '"tag"', "sha")
    lasting = [f"https://cdn.example/a.jpg?v={'0' * 32}", "s3://shop/1.jpg?token=a", "/photos/a.jpg"]
    for uri in lasting:
        memory.learn(uri, '"tag"', "sha")
    memory.close()
    assert ledger.Ledger(engine).recall("b", lasting).keys() == set(lasting)
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM sources").scalar_one() == len(lasting)


def test_an_image_that_was_sent_and_then_replaced_in_the_store_is_not_used(shop: Shop) -> None:
    inputs = open_store(f"{shop.settings.results_uri}/inputs", shop.settings)
    names = [f"{hashlib.sha256(photo(colour)).hexdigest()}.jpg" for colour in COLOURS[:3]]
    for name, colour in zip(names, COLOURS, strict=False):
        inputs.put(name, photo(colour))
    inputs.replace(names[1], photo("white"))
    for batch_id in ("one", "two"):  # read at first, then recalled by its ETag
        shop.submit(batch_id, names, inputs.uri)
        shop.work()
        assert [(row["state"], row["code"]) for row in shop.rows(batch_id)] == [
            ("succeeded", None), ("failed", "wrong_digest"), ("succeeded", None),
        ]  # fmt: skip
