"""`kontext schedule`: what a call prints and stores, and what it refuses."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from orchestrator.cli import app


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to be in, its own database, no server anywhere."""
    for name in [name for name in os.environ if name.startswith("KONTEXT_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KONTEXT_DATABASE_URL", f"sqlite:///{tmp_path / 'state.db'}")
    (tmp_path / "rows.csv").write_text("image\na.jpg\n")
    return tmp_path


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, ("schedule", *arguments))


def add(*more: str, name: str = "nightly", cron: str = "0 2 * * *") -> Result:
    return call("add", name, "--cron", cron, "--catalogue", "rows.csv", "--preset", "flat-lay", *more)


def read(*arguments: str) -> Any:
    answer = call(*arguments, "--json")
    assert answer.exit_code == 0, answer.output
    return json.loads(answer.stdout)


def test_a_schedule_is_added_shown_and_listed(place: Path) -> None:
    added = add("--tz", "Asia/Shanghai", "--set", "steps=8", "--deadline", "8h", "--overlap", "queue", "--all")
    assert added.exit_code == 0 and "fires first at" in added.stdout and "02:00 CST" in added.stdout
    (listed,) = read("list")
    assert (listed["name"], listed["time_zone"], listed["last_run"]) == ("nightly", "Asia/Shanghai", None)
    assert listed["catalogue"] == str(place / "rows.csv")  # absolute: another process opens it
    assert listed["asked"] == {"preset": "flat-lay", "steps": 8, "deadline": "8h"}
    assert (listed["overlap"], listed["missed"], listed["only_changed"]) == ("queue", "once", False)
    shown = read("show", "nightly")
    assert shown["next_fires"][0] == shown["next_fire_at"] and shown["next_fires"][0].endswith("T18:00:00.000Z")
    assert len(shown["next_fires"]) == 5 and shown["runs"] == []
    table = call("list").stdout
    assert "nightly" in table and "0 2 * * *" in table and "none yet" in table


def test_it_is_paused_resumed_fired_and_removed() -> None:
    add()
    assert read("pause", "nightly")["paused"] is True
    assert "paused" in call("list").stdout and "(paused)" in call("show", "nightly").stdout
    assert read("resume", "nightly")["next_fire_at"]
    run = read("fire", "nightly")
    assert (run["state"], run["by_request"], run["batch"]) == ("due", True, None)
    assert read("show", "nightly")["runs"] == [run]
    assert "due" in call("show", "nightly").stdout
    assert "removed" in call("remove", "nightly").stdout
    assert read("list") == []


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--tz", "Asia/Shanghia"], "did you mean Asia/Shanghai"),
        (["--deadline", "2026-11-26T06:00+08:00"], "give a duration"),
        (["--set", "only_changed=false"], "--all"),
        (["--prompt", "x"], "keep one"),
        (["--set", "stepz=8"], "did you mean steps"),
        (["--out", "ftp://x"], "is not supported"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_stored(arguments: list[str], told: str) -> None:
    refused = add(*arguments)
    assert refused.exit_code == 2 and told in refused.stderr, refused.output
    assert read("list") == []


def test_a_name_is_taken_once_and_has_a_form() -> None:
    add()
    assert "already" in add().stderr
    assert "is no name" in add(name="a/b").stderr
    assert add(name="x", cron="0 2 30 2 *").exit_code == 2
    assert call("show", "none").exit_code == 2 and "kontext schedule list" in call("show", "none").stderr


def test_a_catalogue_that_does_not_exist_yet_is_warned_of(place: Path) -> None:
    (place / "rows.csv").unlink()
    added = add()
    assert added.exit_code == 0 and "does not exist yet" in added.stderr
