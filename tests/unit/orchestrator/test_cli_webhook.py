"""`kontext webhook`: what a call prints and stores, and what it refuses."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from orchestrator import control
from orchestrator.cli import app
from orchestrator.state.database import open_database
from tests.integration.seeding import Seeder

URL = "https://shop.example.com/hook"


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to be in, its own database, no server anywhere."""
    for name in [name for name in os.environ if name.startswith("KONTEXT_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KONTEXT_DATABASE_URL", f"sqlite:///{tmp_path / 'state.db'}")
    return tmp_path


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, ("webhook", *arguments))


def read(*arguments: str) -> Any:
    answer = call(*arguments, "--json")
    assert answer.exit_code == 0, answer.output
    return json.loads(answer.stdout)


def test_a_secret_is_shown_once(place: Path) -> None:
    made = read("add", URL, "--events", "job.failed, batch.completed")
    assert made["secret"].startswith("whsec_") and made["events"] == ["batch.completed", "job.failed"]
    for shown in (call("list").stdout, json.dumps(read("list"))):
        assert made["id"] in shown and URL in shown and made["secret"] not in shown
    rotated = read("rotate", made["id"])
    assert rotated["secret"] not in ("", made["secret"]) and rotated["rotated_at"]
    assert "shown this once" in call("rotate", made["id"]).stdout


def test_deliveries_are_listed_shown_and_replayed(place: Path) -> None:
    webhook_id = read("add", URL, "--events", "batch.paused")["id"]
    engine = open_database(f"sqlite:///{place / 'state.db'}")
    Seeder(engine).batch(jobs=1)
    control.pause(engine, "b")
    engine.dispose()
    (listed,) = read("deliveries", webhook_id)
    assert (listed["event"], listed["state"], listed["attempts"]) == ("batch.paused", "pending", 0)
    assert "not tried yet" in call("deliveries").stdout
    shown = read("deliveries", "--show", str(listed["delivery"]))
    assert json.loads(shown["body"])["data"]["batch"] == "b" and shown["log"] == []
    assert shown["message"] in call("deliveries", "--show", str(listed["delivery"])).stdout
    assert read("replay", str(listed["delivery"]))["state"] == "pending"
    assert read("deliveries", "--state", "failed") == []
    assert "removed" in call("remove", webhook_id).stdout
    assert read("list") == []


def test_a_test_that_nobody_sends_says_so() -> None:
    webhook_id = read("add", URL, "--events", "batch.paused")["id"]
    asked = call("test", webhook_id, "--wait", "0.1")
    assert asked.exit_code == 1 and "does a dispatcher run?" in asked.stdout


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["add", "http://shop.example.com/", "--events", "job.failed"], "only https"),
        (["add", URL, "--events", "job.finished"], "events: batch.completed"),
        (["add", URL, "--events", " , "], "no event is named"),
        (["remove", "wh_none"], "kontext webhook list"),
        (["replay", "7"], "no delivery 7"),
        (["deliveries", "wh_none"], "no webhook"),
    ],
)
def test_what_cannot_work_is_refused(arguments: list[str], told: str) -> None:
    read("add", URL, "--events", "batch.paused")
    refused = call(*arguments)
    assert refused.exit_code == 2 and told in refused.stderr, refused.output
    assert len(read("list")) == 1
