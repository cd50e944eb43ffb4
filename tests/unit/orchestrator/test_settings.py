"""The environment: what is wrong is named, what is right goes on to child processes unchanged."""

import json
import logging
import re
from pathlib import Path

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.settings import (
    FOREIGN,
    PIPELINE_VERSION,
    PREFIX,
    Settings,
    SettingsError,
    configure_logs,
    read_settings,
)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("KONTEXT_DATABASE_URL", "mysql://host/name"),
        ("KONTEXT_DATABASE_URL", "state.db"),
        ("KONTEXT_BROKER_URL", "amqp://host"),
        ("KONTEXT_CACHE_URL", "localhost:6379"),
        ("KONTEXT_DTYPE", "float8"),
        ("KONTEXT_QUANTIZE", "int4"),
        ("KONTEXT_COMPILE", "maybe"),
        ("KONTEXT_STEP_CACHE", "teacache"),
        ("KONTEXT_THREADS", "0"),
        ("KONTEXT_THREADS", "many"),
        ("KONTEXT_UNIT_SIZE", "0"),
        ("KONTEXT_UNIT_SIZE", "1025"),
        ("KONTEXT_UNIT_SIZE", "2.5"),
        ("KONTEXT_WINDOW_JOBS", "0"),
        ("KONTEXT_WINDOW_BYTES", "1000"),
        ("KONTEXT_HANDOFF_TTL_S", "1"),
        ("KONTEXT_HEARTBEAT_S", "0"),
        ("KONTEXT_HEARTBEAT_S", "nan"),
        ("KONTEXT_LEASE_S", "-1"),
        ("KONTEXT_LEASE_S", "2"),  # shorter than a heartbeat: every worker would count as dead
        ("KONTEXT_MAX_IMAGE_BYTES", "1"),
        ("KONTEXT_MAX_IMAGE_PX", "ten"),
        ("KONTEXT_LOG_FORMAT", "xml"),
    ],
)
def test_a_wrong_value_is_an_error_that_names_the_variable_and_the_value(variable: str, value: str) -> None:
    with pytest.raises(SettingsError, match=f"^{variable}='{re.escape(value)}': "):
        read_settings({variable: value})


def test_a_password_in_a_wrong_url_is_not_told() -> None:
    with pytest.raises(SettingsError, match="KONTEXT_DATABASE_URL='mysql://…@host/name'"):
        read_settings({"KONTEXT_DATABASE_URL": "mysql://me:s3cr@t@host/name"})


def test_every_mistake_is_told_at_once() -> None:
    with pytest.raises(SettingsError) as caught:
        read_settings({"KONTEXT_UNIT_SIZE": "x", "KONTEXT_DTYPE": "y", "KONTEXT_DEVISE": "cpu"})
    assert all(name in str(caught.value) for name in ("KONTEXT_UNIT_SIZE", "KONTEXT_DTYPE", "KONTEXT_DEVISE"))


@pytest.mark.parametrize(
    ("variable", "near"),
    [
        ("KONTEXT_DATABSE_URL", "KONTEXT_DATABASE_URL"),
        ("KONTEXT_UNITSIZE", "KONTEXT_UNIT_SIZE"),
        ("KONTEXT_DEVICES", "KONTEXT_DEVICE"),
    ],
)
def test_an_unknown_variable_is_an_error_that_suggests_the_nearest(variable: str, near: str) -> None:
    with pytest.raises(SettingsError, match=f"{variable} is no setting; did you mean {near}[?]"):
        read_settings({variable: "1"})


def test_what_is_not_ours_is_left_alone() -> None:
    assert read_settings({"PATH": "/bin", "KONTEXTUAL": "1", **dict.fromkeys(FOREIGN, "x")}) == Settings()


@pytest.mark.parametrize("name", sorted(Settings.model_fields))
def test_an_empty_variable_is_an_unset_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Compose files pass `${KONTEXT_THREADS:-}` on.
    variable = f"{PREFIX}{name.upper()}"
    monkeypatch.setenv(variable, "")
    assert getattr(read_settings({variable: ""}), name) == Settings.model_fields[name].default


def test_only_the_environment_given_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KONTEXT_UNIT_SIZE", "3")
    assert read_settings({}).unit_size == 8 and read_settings().unit_size == 3


def test_unset_locations_are_embedded() -> None:
    assert read_settings({}).embedded == {"database_url", "broker_url", "cache_url", "results_uri"}
    given = read_settings({"KONTEXT_DATABASE_URL": "sqlite:///x.db", "KONTEXT_RESULTS_URI": "s3://bucket/out"})
    assert given.embedded == {"broker_url", "cache_url"}


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_any_spelling_of_postgresql_takes_the_driver_that_is_installed(scheme: str) -> None:
    settings = read_settings({"KONTEXT_DATABASE_URL": f"{scheme}://me:p%40ss@host:5432/name?sslmode=require"})
    assert settings.database_url == "postgresql+psycopg://me:p%40ss@host:5432/name?sslmode=require"


def test_hosts_are_split_at_commas() -> None:
    hosts = read_settings({"KONTEXT_ALLOWED_HOSTS": " Images.Example.com,cdn.example.com , "}).allowed_hosts
    assert hosts == ("images.example.com", "cdn.example.com")


TEXTS = st.text(st.characters(exclude_categories=("C",)), min_size=1, max_size=20)


@given(
    home=TEXTS.filter(lambda text: "/" not in text).map(lambda text: f"/data/{text}/x"),
    checkpoint=st.none() | TEXTS,
    results_uri=st.none() | TEXTS,
    threads=st.none() | st.integers(1, 64),
    unit_size=st.integers(1, 1024),
    heartbeat_s=st.floats(0.01, 4),
    compile=st.booleans(),
    offload=st.sampled_from(["none", "model", "group"]),
    window_bytes=st.integers(1 << 20, 1 << 40),
    allowed_hosts=st.lists(st.from_regex(r"[a-z0-9.]{1,10}", fullmatch=True)).map(tuple),
)
def test_a_child_process_gets_the_very_same_settings(**values: object) -> None:
    settings = Settings(**values)  # type: ignore[arg-type]
    again = read_settings({"PATH": "/bin", **settings.environment()})
    assert again == settings


@pytest.mark.parametrize(
    ("variable", "value", "part"),
    [
        ("KONTEXT_QUANTIZE", "int8", "int8"),
        ("KONTEXT_ATTENTION", "sage", "sage"),
        ("KONTEXT_STEP_CACHE", "taylorseer", "taylorseer"),
        ("KONTEXT_COMPILE", "1", ""),
        ("KONTEXT_OFFLOAD", "group", ""),
    ],
)
def test_numerics_hold_what_trades_exactness_for_speed(variable: str, value: str, part: str) -> None:
    plain, chosen = read_settings({}).numerics, read_settings({variable: value}).numerics
    version = f"v{PIPELINE_VERSION}"
    assert plain == f"float32/{version}" and chosen == (f"float32/{part}/{version}" if part else plain)


def test_numerics_tell_what_changes_pixels() -> None:
    first, second = (read_settings({"KONTEXT_DTYPE": dtype}).numerics for dtype in ("float32", "bfloat16"))
    assert first != second and read_settings({"KONTEXT_UNIT_SIZE": "1"}).numerics == first


def test_every_setting_is_described() -> None:
    assert not [name for name, field in Settings.model_fields.items() if not field.description]


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings().home = Path("/")  # type: ignore[misc]


@pytest.fixture
def restore_logs() -> object:
    root = logging.getLogger()
    before = root.handlers[:], root.level
    root.handlers.clear()
    yield
    for handler in root.handlers[:]:
        root.removeHandler(handler)
    root.handlers[:], root.level = before
    structlog.reset_defaults()


@pytest.mark.usefixtures("restore_logs")
def test_log_lines_are_json_when_asked(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs(read_settings({"KONTEXT_LOG_FORMAT": "json"}))
    structlog.get_logger("x").info("batch completed", batch="20260101-abc")
    line = json.loads(capsys.readouterr().err)
    assert (line["event"], line["batch"], line["level"]) == ("batch completed", "20260101-abc", "info")
