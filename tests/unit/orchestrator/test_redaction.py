"""Secrets stay out of what people read."""

import io
import logging
import sys

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.redaction import HIDDEN, RedactingFormatter, redact, redact_cell
from orchestrator.settings import Settings, configure_logs
from orchestrator.state.database import TEXT_MAX_CHARACTERS, storable

SECRET = "hV3ry+S3cret/0aB"
PRESIGNED = (
    "https://bucket.s3.amazonaws.com/look%201.jpg?X-Amz-Algorithm=AWS4-HMAC-SHA256"
    f"&X-Amz-Credential=AKIAIOSFODNN7EXAMPLE%2F20261125&X-Amz-Security-Token={SECRET}&X-Amz-Signature={SECRET}&w=800"
)


@pytest.mark.parametrize(
    "text",
    [
        PRESIGNED,
        f"https://account.blob.core.windows.net/c/a.jpg?sv=2024&sig={SECRET}",
        f"https://storage.googleapis.com/b/a.jpg?GoogleAccessId=x&Signature={SECRET}",
        f"https://cdn.example.com/a.jpg?Policy={SECRET}&Key-Pair-Id={SECRET}",
        f"https://shop.example.com/a.jpg?q={SECRET}{SECRET}{SECRET}",
        f"https://anna:{SECRET}@shop.example.com/a.jpg".replace("/0aB", "0aB"),
        f"redis://:{SECRET}@10.0.0.1:6379/0".replace("/0aB", "0aB"),
        f"postgresql+psycopg://kontext:p@{SECRET}@db/kontext".replace("/0aB", "0aB"),
        f"connection failed: host=db user=kontext password={SECRET} dbname=x",
        f'{{"api_key": "{SECRET}"}}',
        f"Max retries exceeded with url: /a.jpg?access_token={SECRET} (Caused by …)",
        f"Authorization: Bearer {SECRET}",
    ],
)
def test_a_secret_is_hidden_wherever_it_stands(text: str) -> None:
    shown = redact(text)
    assert HIDDEN in shown
    assert SECRET not in shown and SECRET.replace("/0aB", "0aB") not in shown
    assert "AKIA" not in shown
    assert redact(shown) == shown


@pytest.mark.parametrize(
    "text",
    [
        "photos/summer/look 1.jpg: the image ends too early (120 bytes); upload it again",
        "s3://bucket/photos/a@2x.jpg does not exist",
        "https://cdn.example.com/a@2x.jpg?w=800&v=3",
        "catalogue.csv, line 3, column seed: 'x' is no whole number",
        "the certificate or TLS of photos.example.com is not accepted",
        "write to anna@example.com",
    ],
)
def test_what_holds_no_secret_is_left_alone(text: str) -> None:
    assert redact(text) == text


def test_what_helps_to_find_the_image_stays() -> None:
    shown = redact(PRESIGNED)
    assert shown.startswith("https://bucket.s3.amazonaws.com/look%201.jpg?")
    assert shown.endswith("&w=800")


@pytest.mark.parametrize(
    "cell",
    [
        "photos/token=5/auth=1/look.jpg",
        "s3://bucket/token=5/look.jpg?sig=x",
        "https://h.example/token=5/look.jpg?w=1",
        "",
    ],
)
def test_a_cell_that_only_looks_odd_is_told_as_it_was_given(cell: str) -> None:
    assert redact_cell(cell) == cell


def test_a_url_in_a_cell_is_told_without_its_secret() -> None:
    assert redact_cell(PRESIGNED) == redact(PRESIGNED)
    assert SECRET not in redact_cell(f"https://anna:{SECRET[:5]}@h.example/a.jpg?token={SECRET}")


@given(st.text(alphabet="abcdXYZ019", min_size=12, max_size=40), st.sampled_from(["sig", "X-Amz-Signature", "token"]))
def test_any_value_of_a_secret_parameter_is_hidden(value: str, name: str) -> None:
    assert value not in redact(f"no: https://h.example/p?a=1&{name}={value}#f, and more")


def test_a_hostile_text_costs_no_time() -> None:
    for unit in ("sig", "?a=", "://", "Bearer ", "x@", "token%"):
        assert len(storable(unit * 1_000_000)) <= TEXT_MAX_CHARACTERS


def test_no_secret_reaches_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(sys, "stderr", shown)
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    level = root.level
    configure_logs(Settings())
    try:
        try:
            raise RuntimeError(f"cannot read {PRESIGNED}")
        except RuntimeError as error:
            structlog.get_logger("test").error("job failed", url=PRESIGNED, exc_info=error)
            logging.getLogger("library").warning("retrying %s", PRESIGNED, exc_info=error)
    finally:
        structlog.reset_defaults()
        root.setLevel(level)
    lines = shown.getvalue()
    assert lines.count("cannot read https://bucket.s3") == 2 and "retrying https://bucket.s3" in lines
    assert SECRET not in lines


def test_a_library_line_is_formatted_before_it_is_redacted() -> None:
    record = logging.LogRecord("x", logging.WARNING, "f", 1, "sig=%s", (SECRET,), None)
    assert RedactingFormatter("%(message)s").format(record) == f"sig={HIDDEN}"
