"""Where a reference may point, and how its bytes are fetched."""

import os
import time
from pathlib import Path

import pytest

from orchestrator.settings import Settings
from orchestrator.storage import open_store
from workers import source
from workers.source import SourceError, locate, resolve

SETTINGS = Settings(max_image_bytes=1024)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A catalogue's folder, with a secret beside it."""
    folder = tmp_path / "catalogue"
    (folder / "photos").mkdir(parents=True)
    (folder / "photos" / "a b.jpg").write_bytes(b"photo")
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    (tmp_path / "catalogue-2").mkdir()
    (tmp_path / "catalogue-2" / "x.jpg").write_bytes(b"neighbour")
    return folder


def fetch(reference: str, image_root: str, settings: Settings) -> bytes:
    content = source.fetch(reference, image_root, settings)
    assert content is not None
    return content.data


def refuse(reference: str, image_root: str | Path, settings: Settings = SETTINGS) -> SourceError:
    with pytest.raises(SourceError) as caught:
        fetch(reference, str(image_root), settings)
    return caught.value


@pytest.mark.parametrize("reference", ["photos/a b.jpg", "./photos//a b.jpg", "photos/./a b.jpg"])
def test_a_relative_path_is_read_from_the_catalogues_folder(root: Path, reference: str) -> None:
    assert fetch(reference, str(root), SETTINGS) == b"photo"
    assert resolve(reference, str(root)) == (str(root), "photos/a b.jpg")


@pytest.mark.parametrize(
    "reference",
    ["../secret.jpg", "photos/../../secret.jpg", "photos/..", "../catalogue-2/x.jpg", "~/x.jpg", "/etc/passwd"],
)
def test_a_path_that_climbs_out_is_refused(root: Path, reference: str) -> None:
    for image_root in (str(root), "s3://bucket/prefix"):
        error = refuse(reference, image_root)
        assert (error.code, error.error_class) == ("path_outside_catalogue", "input")
        assert reference in str(error)
        assert image_root in str(error)


def test_an_absolute_path_is_refused_even_inside(root: Path) -> None:
    assert refuse(str(root / "photos" / "a b.jpg"), root).code == "path_outside_catalogue"


def test_a_link_that_leaves_is_refused_and_one_that_stays_is_followed(root: Path) -> None:
    (root / "file.jpg").symlink_to(root.parent / "secret.jpg")
    (root / "folder").symlink_to(root.parent)
    (root / "near").symlink_to(root.parent / "catalogue-2")
    (root / "good.jpg").symlink_to(root / "photos" / "a b.jpg")
    for reference in ("file.jpg", "folder/secret.jpg", "near/x.jpg"):
        assert refuse(reference, root).code == "path_outside_catalogue"
    assert fetch("good.jpg", str(root), SETTINGS) == b"photo"


def test_a_catalogue_folder_that_is_a_link_is_a_folder(root: Path) -> None:
    link = root.parent / "link"
    link.symlink_to(root)
    assert fetch("photos/a b.jpg", str(link), SETTINGS) == b"photo"


@pytest.mark.parametrize(
    "reference", ["http://example.com/a.jpg", "file:///etc/passwd", "ftp://host/a.jpg", "data://x", "gs://bucket/a.jpg"]
)
def test_other_schemes_are_refused(root: Path, reference: str) -> None:
    error = refuse(reference, root)
    assert (error.code, error.error_class) == ("unsupported_scheme", "input")
    assert f"{reference.partition('://')[0]}:// is not supported; use a path, s3:// or https://" in str(error)


@pytest.mark.parametrize(
    "reference", ["photos/none.jpg", "none/a.jpg", "photos/a b.jpg/x", "photos", ".", "./", "a\0b"]
)
def test_a_missing_image_is_said(root: Path, reference: str) -> None:
    error = refuse(reference, root)
    assert (error.code, error.error_class) == ("image_missing", "input")
    assert reference in str(error) or "\0" in reference


def test_a_pipe_is_no_image_and_blocks_nobody(root: Path) -> None:
    os.mkfifo(root / "pipe.jpg")
    start_s = time.monotonic()
    assert refuse("pipe.jpg", root).code == "image_missing"
    assert time.monotonic() - start_s < 30


def test_a_file_beyond_the_limit_is_refused(root: Path) -> None:
    (root / "limit.jpg").write_bytes(b"x" * 1024)
    (root / "large.jpg").write_bytes(b"x" * 1025)
    assert len(fetch("limit.jpg", str(root), SETTINGS)) == 1024
    error = refuse("large.jpg", root)
    assert (error.code, error.error_class) == ("image_too_large", "input")
    assert "KONTEXT_MAX_IMAGE_BYTES" in str(error)


@pytest.mark.parametrize(
    ("reference", "image_root", "uri"),
    [
        ("a/./b.jpg", "/photos", "/photos/a/b.jpg"),
        ("a//b.jpg", "s3://bucket/shop/", "s3://bucket/shop/a/b.jpg"),
        ("S3://bucket/shop/a/b.jpg", "/photos", "s3://bucket/shop/a/b.jpg"),
        ("HTTPS://h.example/a.jpg?w=1", "/photos", "https://h.example/a.jpg?w=1"),
    ],
)
def test_an_image_has_one_absolute_uri(reference: str, image_root: str, uri: str) -> None:
    assert locate(reference, image_root) == uri


def test_a_relative_path_below_a_prefix_is_an_s3_uri() -> None:
    assert resolve("a/./b c.jpg", "s3://bucket/prefix/") == ("s3://bucket/prefix/", "a/b c.jpg")
    assert resolve("a.jpg", "s3://bucket") == ("s3://bucket", "a.jpg")
    assert resolve("s3://other/a.jpg", "/folder") == ("s3://other", "a.jpg")


def test_images_are_read_from_s3(s3: Settings) -> None:
    assert s3.results_uri is not None
    store = open_store(s3.results_uri, s3)
    store.put("photos/ü b.jpg", b"photo")
    settings = s3.model_copy(update={"max_image_bytes": 5})
    assert fetch("photos/ü b.jpg", s3.results_uri, settings) == b"photo"
    assert fetch(store.locate("photos/ü b.jpg"), "/folder", settings) == b"photo"
    assert refuse("photos/none.jpg", s3.results_uri, settings).code == "image_missing"
    assert refuse("s3://kontext-local/", "/folder", settings).code == "location_invalid"
    store.put("large.jpg", b"x" * 6)
    assert refuse("large.jpg", s3.results_uri, settings).code == "image_too_large"


def test_an_s3_server_that_is_gone_is_transient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.storage.s3.ATTEMPTS", 1)
    gone = Settings(local_s3_url="http://key:secret@127.0.0.1:9")
    error = refuse("a.jpg", "s3://kontext-local/photos", gone)
    assert (error.code, error.error_class) == ("storage_unavailable", "transient")
