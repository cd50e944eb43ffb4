"""A failing job whose image's URL holds a password or a signature: neither is told to anybody."""

import io
import json
import logging
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import structlog
from sqlalchemy import Engine, text

from orchestrator.batches import create_batch, ingest
from orchestrator.catalogs import open_catalogue
from orchestrator.manifest import describe_jobs, write_manifest
from orchestrator.settings import Settings, configure_logs
from tests.integration.shop import Shop
from tests.integration.test_batches import REQUEST

SECRET = "S3cretS1gnature"
URLS = (
    f"https://bucket.s3.amazonaws.com/a.jpg?X-Amz-Credential={SECRET}&X-Amz-Signature={SECRET}",
    f"https://anna:{SECRET}@photos.example.com/b.jpg",
    f"https://photos.example.com/c.jpg?token={SECRET}",
    f"http://photos.example.com/d.jpg?sig={SECRET}",
    f"https://photos.example.com/e.jpg?access_token={SECRET}\x01",
)


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What is logged, as it is shown."""
    shown = io.StringIO()
    root = logging.getLogger()
    monkeypatch.setattr(sys, "stderr", shown)
    monkeypatch.setattr(root, "handlers", [])
    level = root.level
    configure_logs(Settings())
    yield shown
    structlog.reset_defaults()
    root.setLevel(level)


def test_a_failed_job_tells_no_secret(
    engine: Engine, s3: Settings, valkey_url: str, tmp_path: Path, lines: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = s3.model_copy(update={"home": tmp_path, "allowed_hosts": ("photos.example.com",)})
    shop = Shop(engine, settings, valkey_url)
    shop.submit("b", URLS, "s3://kontext-local/photos")

    def fail(*_: Any) -> None:
        raise RuntimeError(f"a library's own words: /c.jpg?token={SECRET}")

    monkeypatch.setattr("orchestrator.storage.outward.find_addresses", fail)
    shop.work()
    rows = shop.rows("b")
    assert [row["code"] for row in rows] == [
        "host_not_allowed", "image_url_invalid", "internal_error", "unsupported_scheme", "internal_error",
    ]  # fmt: skip
    assert all(SECRET not in row["message"] for row in rows)
    assert "https://bucket.s3.amazonaws.com/a.jpg?" in rows[0]["message"]
    with engine.connect() as connection:
        history = connection.execute(text("SELECT * FROM attempts")).all()
        sources = connection.execute(text("SELECT * FROM sources")).all()
    assert len(history) >= 5 and SECRET not in repr(history) + repr(sources)
    assert "a library's own words" in lines.getvalue() and SECRET not in lines.getvalue()


def test_a_manifest_and_the_listing_of_jobs_tell_no_secret(engine: Engine, tmp_path: Path) -> None:
    rows = [f'{url},{url},"{url}",' for url in URLS] + [f"{URLS[0]},,,x"]
    (tmp_path / "rows.csv").write_text("\n".join(["image,photo_link,note,steps", *rows]))
    catalogue = open_catalogue(tmp_path / "rows.csv", Settings())
    request = replace(REQUEST, results_uri=str(tmp_path / "results"))
    batch = ingest(engine, create_batch(engine, catalogue, request), catalogue, request)
    listed = list(describe_jobs(engine, batch))
    assert len(listed) == len(rows) and SECRET not in repr(listed)
    written = Path(write_manifest(engine, batch, Settings()))
    lines, table = written.read_text(), written.with_suffix(".csv").read_text()
    assert SECRET not in lines and SECRET not in table
    assert json.loads(lines.splitlines()[0])["given"]["photo_link"].startswith("https://bucket.s3.amazonaws.com/a.jpg?")
