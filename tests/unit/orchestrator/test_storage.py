"""What is particular to one store: the folder's links and disks, S3's answers, the spelling of locations."""

import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from botocore.exceptions import (
    ClientError,
    ConnectTimeoutError,
    EndpointConnectionError,
    NoCredentialsError,
    ResponseStreamingError,
)

from orchestrator.settings import Settings
from orchestrator.storage import (
    AccessDenied,
    ObjectMissing,
    StorageError,
    StorageFull,
    Store,
    Unavailable,
    open_store,
    s3,
    split_uri,
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"), Settings())


@contextmanager
def file_size_limit(size_bytes: int) -> Iterator[None]:
    """The kernel refuses to let a file grow beyond this, as a full disk would."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_link_out_of_the_root_is_refused_and_not_listed(store: Store, tmp_path: Path) -> None:
    store.put("inside/a.png", b"x")
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "s.png").write_bytes(b"secret")
    root = tmp_path / "store"
    (root / "file.png").symlink_to(tmp_path / "secret" / "s.png")
    (root / "folder").symlink_to(tmp_path / "secret")
    (root / "good.png").symlink_to(root / "inside" / "a.png")
    (root / "loop").symlink_to(root)
    for key in ("file.png", "folder/s.png"):
        with pytest.raises(StorageError, match="leaves") as caught:
            store.get(key)
        assert caught.value.code == "key_outside"
    with pytest.raises(StorageError, match="leaves"):
        store.put("folder/new.png", b"x")
    assert not (tmp_path / "secret" / "new.png").exists()
    assert [info.key for info in store.list()] == ["good.png", "inside/a.png"]
    assert store.get("good.png") == b"x"


def test_what_is_no_file_is_missing_and_never_blocks(store: Store, tmp_path: Path) -> None:
    store.put("a/b", b"x")
    os.mkfifo(tmp_path / "store" / "pipe")
    for key in ("a", "pipe"):
        with pytest.raises(ObjectMissing):
            store.get(key)
        assert store.head(key) is None
    assert [info.key for info in store.list()] == ["a/b"]


def test_a_full_disk_is_said_and_leaves_no_half_file(store: Store, tmp_path: Path) -> None:
    with file_size_limit(100_000), pytest.raises(StorageFull, match=r"big\.png.*free some space") as caught:
        store.put("big.png", b"x" * 200_000)
    assert caught.value.code == "storage_full"
    assert not caught.value.transient
    assert os.listdir(tmp_path / "store") == []
    assert store.put("big.png", b"x" * 200_000) is True


def test_a_full_disk_leaves_the_old_manifest(store: Store, tmp_path: Path) -> None:
    store.replace("manifest.csv", b"old")
    with file_size_limit(100_000), pytest.raises(StorageFull):
        store.replace("manifest.csv", b"x" * 200_000)
    assert store.get("manifest.csv") == b"old"
    assert os.listdir(tmp_path / "store") == ["manifest.csv"]


@pytest.mark.parametrize(
    ("number", "kind", "code"),
    [
        (errno.ENOSPC, StorageFull, "storage_full"),
        (errno.EDQUOT, StorageFull, "storage_full"),
        (errno.EACCES, AccessDenied, "access_denied"),
        (errno.EROFS, AccessDenied, "access_denied"),
        (errno.EIO, Unavailable, "storage_unavailable"),
        (errno.EXDEV, StorageError, "no_links"),
        (errno.ENAMETOOLONG, StorageError, "storage_failed"),
    ],
)
def test_a_folder_says_why_it_is_not_writable(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[StorageError], code: str
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refuse)
    for write in (store.check_writable, lambda: store.put("a", b"x")):
        with pytest.raises(kind, match="store") as caught:
            write()
        assert caught.value.code == code
        assert os.listdir(tmp_path / "store") == []


def test_a_root_below_a_file_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for root in ("file", "file/below", "file/far/below"):
        with pytest.raises(StorageError, match="in the way") as caught:
            open_store(str(tmp_path / root), Settings()).check_writable()
        assert caught.value.code == "key_blocked"


@pytest.mark.parametrize(("first", "second"), [("a", "a/b"), ("a/b", "a"), ("a", "a/b/c")])
def test_a_file_and_a_folder_of_one_name_are_said(store: Store, first: str, second: str) -> None:
    assert store.put(first, b"x")
    with pytest.raises(StorageError, match="in the way") as caught:
        store.put(second, b"y")
    assert caught.value.code == "key_blocked"
    assert store.get(first) == b"x"


def test_a_file_is_known_again_only_when_it_has_settled(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two writes within one tick of a file system's clock leave the same times: nothing would tell them apart."""
    monkeypatch.setattr("orchestrator.storage.folder.SETTLED_S", 3600.0)
    store.put("a", b"one")
    fresh = store.read_unless("a", 10, None)
    assert fresh is not None and fresh.validator is None
    monkeypatch.setattr("orchestrator.storage.folder.SETTLED_S", 0.0)
    known = store.read_unless("a", 10, None)
    assert known is not None and store.read_unless("a", 10, known.validator) is None
    path = tmp_path / "store" / "a"
    times = path.stat()
    path.write_bytes(b"two")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    changed = store.read_unless("a", 10, known.validator)
    assert changed is not None and changed.data == b"two"


def test_part_files_are_hidden_and_the_forgotten_ones_swept(store: Store, tmp_path: Path) -> None:
    store.put("a", b"x")
    old, new = tmp_path / "store" / ".part-old", tmp_path / "store" / ".part-new"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    assert [info.key for info in store.list()] == ["a"]
    with pytest.raises(StorageError, match="names no file"):
        store.get(".part-new")
    store.check_writable()
    assert not old.exists()
    assert new.exists()


def test_the_error_of_who_reads_is_left_alone(store: Store) -> None:
    store.put("a", b"x")
    with pytest.raises(OSError, match="mine"), store.open("a"):
        raise OSError(errno.ENOSPC, "mine")


def test_the_case_of_names_is_probed(store: Store, tmp_path: Path) -> None:
    (tmp_path / "Probe").touch()
    assert store.ignores_case is (tmp_path / "pROBE").exists()


def answer(code: str, status: int) -> ClientError:
    return ClientError({"Error": {"Code": code, "Message": "m"}, "ResponseMetadata": {"HTTPStatusCode": status}}, "Op")


@pytest.mark.parametrize(
    ("error", "kind", "code", "transient"),
    [
        (answer("NoSuchKey", 404), ObjectMissing, "object_missing", False),
        (answer("404", 404), ObjectMissing, "object_missing", False),
        (answer("NoSuchBucket", 404), StorageError, "bucket_missing", False),
        (answer("AccessDenied", 403), AccessDenied, "access_denied", False),
        (answer("SignatureDoesNotMatch", 403), AccessDenied, "access_denied", False),
        (answer("SlowDown", 503), Unavailable, "storage_unavailable", True),
        (answer("InternalError", 500), Unavailable, "storage_unavailable", True),
        (answer("", 502), Unavailable, "storage_unavailable", True),
        (answer("TooManyRequests", 429), Unavailable, "storage_unavailable", True),
        (answer("RequestTimeout", 400), Unavailable, "storage_unavailable", True),
        (answer("ConditionalRequestConflict", 409), Unavailable, "storage_unavailable", True),
        (answer("XMinioStorageFull", 507), StorageFull, "storage_full", False),
        (answer("InvalidRequest", 400), StorageError, "storage_failed", False),
        (EndpointConnectionError(endpoint_url="u"), Unavailable, "storage_unavailable", True),
        (ConnectTimeoutError(endpoint_url="u"), Unavailable, "storage_unavailable", True),
        (ResponseStreamingError(error="cut"), Unavailable, "storage_unavailable", True),
        (ConnectionResetError("reset"), Unavailable, "storage_unavailable", True),
        (NoCredentialsError(), AccessDenied, "access_denied", False),
    ],
)
def test_what_s3_answers_is_put_in_our_words(
    error: Exception, kind: type[StorageError], code: str, transient: bool
) -> None:
    store = s3.S3Store("bucket", "prefix")
    with pytest.raises(StorageError, match="s3://bucket/prefix/key") as caught, store._explain("key"):
        raise error
    assert type(caught.value) is kind
    assert (caught.value.code, caught.value.transient) == (code, transient)


def test_an_s3_server_that_is_gone_is_transient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "ATTEMPTS", 1)
    store = open_store("s3://kontext-local/results", Settings(local_s3_url="http://key:secret@127.0.0.1:9"))
    for use in (store.check_writable, lambda: store.get("a"), lambda: list(store.list())):
        with pytest.raises(Unavailable, match="does not answer"):
            use()


def test_the_embedded_bucket_needs_its_server() -> None:
    with pytest.raises(StorageError, match="KONTEXT_LOCAL_S3_URL"):
        open_store("s3://kontext-local/results", Settings())


@pytest.mark.parametrize("uri", ["", "s4://bucket/x", "http://host/x", "s3://", "s3://AB/x", "file://host/x", "a\0b"])
def test_a_location_that_is_none_is_refused(uri: str) -> None:
    with pytest.raises(StorageError, match="is no location") as caught:
        open_store(uri, Settings())
    assert caught.value.code == "location_invalid"


def test_locations_are_spelt_in_several_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    root = os.path.realpath(tmp_path)
    for uri, expected in {
        "results": f"{root}/results",
        "./results/": f"{root}/results",
        f"file://{root}/a%20b": f"{root}/a b",
        "~/out": f"{root}/me/out",
        "s3://bucket": "s3://bucket",
        "s3://bucket/a/b/": "s3://bucket/a/b",
    }.items():
        assert open_store(uri, Settings()).uri == expected


def test_an_object_uri_is_split_into_root_and_key() -> None:
    assert split_uri("s3://bucket/a/b.png") == ("s3://bucket", "a/b.png")
    assert split_uri("/data/a/b.png") == ("/data/a", "b.png")
    for uri in ("s3://bucket", "s3://bucket/", "/"):
        with pytest.raises(StorageError, match="names no object"):
            split_uri(uri)
