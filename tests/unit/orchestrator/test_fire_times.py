"""When a cron expression fires: each day once, also on the days when clocks jump."""

import os
import subprocess
import sys
import time
from datetime import datetime
from itertools import islice
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.fire_times import FireTimeError, check, due_fires, fire_times, next_fire

DAY_S = 86_400.0


def seconds(text: str, zone: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp()


def shown(cron: str, zone: str, after: str, number: int) -> list[str]:
    times = islice(fire_times(cron, zone, seconds(after, zone)), number)
    return [datetime.fromtimestamp(at_s, ZoneInfo(zone)).strftime("%m-%d %H:%M %z") for at_s in times]


@pytest.mark.parametrize(
    ("cron", "zone", "after", "expected"),
    [
        # 02:30 does not exist in the night when the clocks go forward: it fires as soon as they have.
        (
            "30 2 * * *", "Europe/Berlin", "2026-03-28T00:00",
            ["03-28 02:30 +0100", "03-29 03:00 +0200", "03-30 02:30 +0200"],
        ),
        (
            "30 2 * * *", "America/New_York", "2026-03-07T00:00",
            ["03-07 02:30 -0500", "03-08 03:00 -0400", "03-09 02:30 -0400"],
        ),
        # 02:30 comes twice in Berlin, 01:30 in New York: it fires at the first.
        (
            "30 2 * * *", "Europe/Berlin", "2026-10-24T00:00",
            ["10-24 02:30 +0200", "10-25 02:30 +0200", "10-26 02:30 +0100"],
        ),
        (
            "30 1 * * *", "America/New_York", "2026-10-31T00:00",
            ["10-31 01:30 -0400", "11-01 01:30 -0400", "11-02 01:30 -0500"],
        ),
        (
            "30 2 * * *", "America/New_York", "2026-10-31T00:00",
            ["10-31 02:30 -0400", "11-01 02:30 -0500", "11-02 02:30 -0500"],
        ),
        ("0 2 * * *", "Asia/Shanghai", "2026-03-28T12:00", ["03-29 02:00 +0800", "03-30 02:00 +0800"]),
        # What fires every hour goes on by the hour, whatever the clocks show.
        (
            "0 * * * *", "Europe/Berlin", "2026-10-25T01:30",
            ["10-25 02:00 +0200", "10-25 02:00 +0100", "10-25 03:00 +0100"],
        ),
    ],
)  # fmt: skip
def test_a_day_on_which_the_clocks_jump(cron: str, zone: str, after: str, expected: list[str]) -> None:
    assert shown(cron, zone, after, len(expected)) == expected


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York"])
def test_over_a_year_a_night_job_fires_once_a_day(zone: str) -> None:
    first = seconds("2026-01-01T00:00", zone)
    fired = [at_s for at_s in islice(fire_times("30 2 * * *", zone, first), 365)]
    assert fired == sorted(set(fired))
    days = [datetime.fromtimestamp(at_s, ZoneInfo(zone)).date() for at_s in fired]
    assert len(set(days)) == 365 and days[-1].isoformat() == "2026-12-31"


def test_within_the_repeated_hour_what_has_fired_does_not_fire_again() -> None:
    at = datetime(2026, 10, 25, 2, 10, fold=1, tzinfo=ZoneInfo("Europe/Berlin")).timestamp()
    fires = next_fire("30 2 * * *", "Europe/Berlin", at)
    assert fires == seconds("2026-10-26T02:30", "Europe/Berlin")


def test_of_what_was_missed_the_latest_is_told_and_the_rest_counted() -> None:
    first = seconds("2026-03-27T02:30", "Europe/Berlin")
    due = due_fires("30 2 * * *", "Europe/Berlin", first, seconds("2026-03-30T02:00", "Europe/Berlin"))
    assert (due.latest_at, due.earlier) == (seconds("2026-03-29T03:00", "Europe/Berlin"), 2)
    assert due_fires("30 2 * * *", "Europe/Berlin", first, first).earlier == 0


def test_a_year_of_minutes_is_counted_in_no_time() -> None:
    now_s = seconds("2026-11-25T12:00", "UTC")
    began_s = time.thread_time()
    due = due_fires("* * * * *", "UTC", now_s - 365 * DAY_S, now_s + 30)
    assert due.latest_at == now_s and due.earlier >= 10_000
    assert time.thread_time() - began_s < 5


@pytest.mark.parametrize(
    ("cron", "zone", "told"),
    [
        ("0 2 * *", "UTC", "expected five fields"),
        ("*/5 * * * * *", "UTC", "expected five fields"),
        ("0 25 * * *", "UTC", "cannot be read: hour"),
        ("0 2 31 2 *", "UTC", "day-of-month"),
        ("0 2 * * *", "Europe/Belin", "did you mean Europe/Berlin"),
        ("0 2 * * *", "../../etc/passwd", "is not known"),
        ("0 2 * * *", "America", "is not known"),
        ("0 2 * * *", "", "is not known"),
    ],
)
def test_what_cannot_be_read_is_told(cron: str, zone: str, told: str) -> None:
    with pytest.raises(FireTimeError, match=told):
        check(cron, zone, 0.0)


FIELDS = st.text("0123456789*/,-#LWMONJAN ", min_size=1, max_size=8)


@settings(max_examples=300, deadline=None)
@given(st.lists(FIELDS, min_size=5, max_size=5), st.sampled_from(["UTC", "Europe/Berlin", "Australia/Lord_Howe"]))
def test_whatever_is_written_fires_later_or_is_refused(fields: list[str], zone: str) -> None:
    cron, after_s = " ".join(fields), seconds("2026-10-24T12:00", "UTC")
    try:
        fires_at = next_fire(cron, zone, after_s)
    except FireTimeError:
        return
    assert fires_at is None or fires_at > after_s


def test_time_zones_come_with_the_package_where_the_system_has_none() -> None:
    code = "from orchestrator.fire_times import read_zone; print(read_zone('Asia/Shanghai').key)"
    bare = {**os.environ, "PYTHONTZPATH": "/nowhere"}
    told = subprocess.run([sys.executable, "-c", code], env=bare, capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "Asia/Shanghai"
