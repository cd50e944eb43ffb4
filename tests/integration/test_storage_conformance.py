"""One suite for every store: whatever runs on the one runs on the other."""

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from orchestrator.settings import Settings
from orchestrator.storage import ObjectMissing, StorageError, Store, TooLarge, open_object, open_store


@pytest.fixture(params=["folder", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Settings]:
    """The URI of an empty store, and the settings that open it."""
    if request.param == "folder":
        return str(tmp_path / "a store, with ünïcode"), Settings(home=tmp_path / "home")
    settings: Settings = request.getfixturevalue("s3")
    assert settings.results_uri is not None
    return settings.results_uri, settings


@pytest.fixture
def store(place: tuple[str, Settings]) -> Iterator[Store]:
    yield open_store(*place)


def keys(store: Store, prefix: str = "") -> list[str]:
    return [info.key for info in store.list(prefix)]


def test_a_put_is_read_back_byte_for_byte(store: Store) -> None:
    data = bytes(range(256)) * 1000
    assert store.put("batch/picture.png", data, content_type="image/png", metadata={"fingerprint": "é\n"}) is True
    assert store.get("batch/picture.png") == data
    with store.open("batch/picture.png") as stream:
        assert stream.read(3) == data[:3]
        assert stream.read() == data[3:]
    with store.open("batch/picture.png", start=len(data) - 2) as stream:
        assert stream.read() == data[-2:]


def test_the_first_writer_wins(store: Store) -> None:
    assert store.put("a", b"first") is True
    assert store.put("a", b"second") is False
    assert store.get("a") == b"first"


def test_of_many_writers_at_once_exactly_one_wins(store: Store) -> None:
    start = threading.Barrier(8)

    def write(number: int) -> bool:
        start.wait()
        return store.put("contested", b"%d" % number * 50_000)

    with ThreadPoolExecutor(8) as threads:
        won = list(threads.map(write, range(8)))
    assert won.count(True) == 1
    assert store.get("contested") == b"%d" % won.index(True) * 50_000


def test_an_empty_object_is_an_object(store: Store) -> None:
    assert store.put("empty", b"")
    assert store.get("empty") == b""
    assert store.read("empty", 0) == b""
    assert store.head("empty") is not None


def test_replace_overwrites_from_memory_and_from_a_file(store: Store, tmp_path: Path) -> None:
    store.replace("manifest.csv", b"old")
    store.replace("manifest.csv", b"new", content_type="text/csv")
    assert store.get("manifest.csv") == b"new"
    large = tmp_path / "large"
    large.write_bytes(os.urandom(1 << 20) * 9)  # beyond one part of an upload in parts
    store.replace("manifest.csv", large)
    assert store.get("manifest.csv") == large.read_bytes()


def test_a_bounded_read_refuses_one_byte_too_many(store: Store) -> None:
    store.put("ten", b"0123456789")
    assert store.read("ten", 10) == b"0123456789"
    with pytest.raises(TooLarge, match="ten is larger than the 9 bytes") as caught:
        store.read("ten", 9)
    assert caught.value.code == "object_too_large"


def test_a_read_tells_whether_the_object_changed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.storage.folder.SETTLED_S", 0.0)
    store.replace("photo", b"0123456789")
    first = store.read_unless("photo", 10, None)
    assert first is not None and first.data == b"0123456789" and first.validator
    assert store.read_unless("photo", 10, first.validator) is None
    assert store.read_unless("photo", 10, '"another"') == first
    store.replace("photo", b"9876543210")
    second = store.read_unless("photo", 10, first.validator)
    assert second is not None and second.data == b"9876543210" and second.validator != first.validator
    with pytest.raises(TooLarge):
        store.read_unless("photo", 9, first.validator)
    store.delete("photo")
    with pytest.raises(ObjectMissing):
        store.read_unless("photo", 10, second.validator)


def test_a_large_object_in_parts_is_known_again(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.storage.folder.SETTLED_S", 0.0)
    (tmp_path / "large").write_bytes(os.urandom(1 << 20) * 9)
    store.replace("large", tmp_path / "large")
    found = store.read_unless("large", 16 << 20, None)
    assert found is not None and len(found.data) == 9 << 20
    assert store.read_unless("large", 16 << 20, found.validator) is None


def test_what_is_missing_is_said_with_its_uri(store: Store) -> None:
    for read in (store.get, lambda key: store.read(key, 10), lambda key: store.open(key).__enter__()):
        with pytest.raises(ObjectMissing) as caught:
            read("no/such.png")
        assert caught.value.code == "object_missing"
        assert not caught.value.transient
        assert store.locate("no/such.png") in str(caught.value)
    assert store.head("no/such.png") is None
    assert store.head("no") is None


def test_head_tells_size_time_and_change(store: Store) -> None:
    store.replace("a/b", b"12345")
    before = store.head("a/b")
    assert before is not None
    assert (before.key, before.size_bytes) == ("a/b", 5)
    assert 1.6e9 < before.modified_s < 5e9
    store.replace("a/b", b"54321")
    after = store.head("a/b")
    assert after is not None
    assert after.etag != before.etag


def test_list_gives_every_key_below_a_prefix_in_order(store: Store) -> None:
    names = ["a/b/c.png", "a/b.png", "a-b.png", "a.png", "ab/x", "a/é.png", "a/z.png", "b"]
    for name in names:
        store.put(name, b"x")
    # SeaweedFS takes a folder's keys together; AWS and the folder go by bytes. Each the same every time.
    order = next(o for o in (str.encode, lambda key: key.split("/")) if keys(store) == sorted(names, key=o))
    expected = sorted(names, key=order)
    assert keys(store) == expected
    assert keys(store, "a/") == [name for name in expected if name.startswith("a/")]
    assert keys(store, "a") == [name for name in expected if name.startswith("a")]
    assert keys(store, "a/b") == [name for name in expected if name.startswith("a/b")]
    assert keys(store, "none/here") == []
    assert [info.size_bytes for info in store.list("b")] == [1]


def test_an_empty_store_lists_nothing(store: Store) -> None:
    assert keys(store) == []


def test_a_listing_of_several_pages_is_whole(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.storage.s3.PAGE_OBJECTS", 7)
    monkeypatch.setattr("orchestrator.storage.folder.SORTED_NAMES", 7)
    names = [f"p/{number:05d}" for number in range(0, 21)]  # three full pages: the end is not told by a short one
    for name in names:
        store.replace(name, b"")
    assert keys(store, "p/") == names


def test_delete_frees_the_key_and_may_be_repeated(store: Store) -> None:
    store.put("a/b", b"x")
    store.delete("a/b")
    store.delete("a/b")
    assert store.head("a/b") is None
    assert store.put("a/b", b"again") is True


@pytest.mark.parametrize("key", ["", "/a", "../a", "a/../../b", "a/..", "./a", "a\nb", "a\0b", "k" * 2000])
def test_a_key_that_leaves_the_root_or_names_nothing_is_refused(store: Store, key: str) -> None:
    for use in (store.get, store.locate, lambda key: store.put(key, b"x"), lambda key: store.replace(key, b"x")):
        with pytest.raises(StorageError) as caught:
            use(key)
        assert caught.value.code == "key_invalid"
    assert keys(store) == []


@pytest.mark.parametrize("key", ["a b/ü %20+&=?#~'.png", "~/x", "日本/服.png", "%2e%2e/x"])
def test_odd_keys_come_back_as_they_went(store: Store, place: tuple[str, Settings], key: str) -> None:
    assert store.put(key, b"odd") is True
    assert keys(store) == [key]
    elsewhere, found = open_object(store.locate(key), place[1])
    assert elsewhere.get(found) == b"odd"


def test_the_root_is_spelt_one_way(store: Store, place: tuple[str, Settings]) -> None:
    uri, settings = place
    assert not store.uri.endswith("/")
    assert open_store(f"{uri}/", settings).uri == store.uri
    assert store.locate("k") == f"{store.uri}/k"


def test_check_writable_leaves_nothing_behind(store: Store) -> None:
    store.check_writable()
    store.check_writable()
    assert keys(store) == []
