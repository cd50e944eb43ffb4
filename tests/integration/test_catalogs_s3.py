"""Catalogues that lie in S3: the same rows as on a disk."""

import gc
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from orchestrator.catalogs import CatalogueError, open_catalogue
from orchestrator.settings import Settings
from orchestrator.storage import Store, open_store


@pytest.fixture
def store(s3: Settings) -> Store:
    assert s3.results_uri is not None
    return open_store(s3.results_uri, s3)


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_file_in_s3_is_read_and_its_copy_removed(
    store: Store, s3: Settings, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    rows = [{"image": f"{number}.jpg", "prompt": "é"} for number in range(3)]
    if kind == "parquet":
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(rows), sink)
        data = sink.getvalue().to_pybytes()
    elif kind == "csv":
        data = b"image,prompt\n" + "".join(f"{row['image']},{row['prompt']}\n" for row in rows).encode()
    else:
        data = "".join(f'{{"image": "{row["image"]}", "prompt": "é"}}\n' for row in rows).encode()
    store.put(f"in/c.{kind}", data)
    catalogue = open_catalogue(store.locate(f"in/c.{kind}"), s3)
    assert catalogue.uri == store.locate(f"in/c.{kind}")
    assert catalogue.image_root == f"{store.uri}/in"
    assert [row.values for row in catalogue.rows()] == rows
    assert [row.values for row in catalogue.rows()] == rows
    assert list(tmp_path.iterdir())
    del catalogue
    gc.collect()
    assert list(tmp_path.iterdir()) == []


def test_a_prefix_gives_its_images(store: Store, s3: Settings) -> None:
    for key in ("photos/b.JPG", "photos/a/ü c.png", "photos/notes.txt", "photos/.x.jpg", "photosets/d.jpg"):
        store.put(key, b"x")
    catalogue = open_catalogue(f"{store.uri}/photos/", s3)
    assert [(row.line, row.values["image"]) for row in catalogue.rows()] == [(1, "a/ü c.png"), (2, "b.JPG")]
    assert catalogue.image_root == catalogue.uri == f"{store.uri}/photos"
    assert [row.line for row in catalogue.rows(after_line=1)] == [2]
    assert open_catalogue(f"{store.uri}/none/", s3).is_empty()


def test_what_is_wrong_is_said(store: Store, s3: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(
        CatalogueError, match=r"none\.csv does not exist; for all images below it, end the prefix in a slash"
    ):
        open_catalogue(f"{store.uri}/none.csv", s3)
    with pytest.raises(
        CatalogueError, match=r"photos: unknown kind of catalogue; .* an S3 prefix that ends in a slash"
    ):
        open_catalogue(f"{store.uri}/photos", s3)
    store.put("bad.csv", b"prompt\nx\n")
    with pytest.raises(CatalogueError, match=r"s3://.*/bad\.csv, line 1: no column 'image'"):
        open_catalogue(store.locate("bad.csv"), s3)
    with pytest.raises(CatalogueError, match="refused by the S3 server"):
        list(open_catalogue("s3://kontext-local/x/", s3.model_copy(update={"local_s3_url": _wrong_key(s3)})).rows())
    assert list(tmp_path.iterdir()) == []


def _wrong_key(settings: Settings) -> str:
    return (settings.local_s3_url or "").replace("//", "//wrong", 1)
