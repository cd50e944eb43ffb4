"""When the watchdog acts, by a clock that the test moves; that it truly ends a process is shown with real ones."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.settings import Settings
from workers import watchdog as module
from workers.shift import Shift
from workers.watchdog import STUCK, Watchdog


class Case:
    """A watchdog whose acts are noted in `acts`; `at` moves the clock there and lets it look."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.acts: list[Any] = []
        self.now_s = 100.0
        self.backlog, self.answers, self.stopping = True, True, False
        self.heartbeat = SimpleNamespace(unanswered_s=0.0)
        monkeypatch.setattr("time.monotonic", lambda: self.now_s)
        monkeypatch.setattr(module, "leave", self.acts.append)
        monkeypatch.setattr(module, "stop_process", lambda: self.acts.append("stop"))
        monkeypatch.setattr(module, "is_stopping", lambda: self.stopping)
        monkeypatch.setattr("faulthandler.dump_traceback", lambda **_: None)
        self.shift = Shift()
        note: Callable[[str], Callable[[], None]] = lambda act: lambda: self.acts.append(act)  # noqa: E731
        self.dog = Watchdog(
            Settings(stage_deadline_s=60, lease_s=15, stop_s=5, watchdog_s=10),
            self.shift,
            self.heartbeat,  # type: ignore[arg-type]
            has_backlog=lambda: self.backlog,
            broker_answers=lambda: self.answers,
            reconnect=note("reconnect"),
            let_go=note("let go"),
        )

    def at(self, now_s: float) -> list[Any]:
        self.now_s = now_s
        self.acts.clear()
        self.dog.look()
        return list(self.acts)


@pytest.fixture
def case(monkeypatch: pytest.MonkeyPatch) -> Case:
    return Case(monkeypatch)


def test_a_step_beyond_its_deadline_ends_the_process(case: Case) -> None:
    case.shift.begin("sample")
    assert case.at(159) == []
    assert case.at(161) == [STUCK]


def test_each_step_has_the_whole_time(case: Case) -> None:
    case.shift.begin("encode")
    case.now_s = 150
    case.shift.begin("sample")
    assert case.at(205) == []


def test_a_database_that_does_not_answer_for_a_lease_ends_the_process(case: Case) -> None:
    case.backlog, case.heartbeat.unanswered_s = False, 14
    assert case.at(101) == []
    case.heartbeat.unanswered_s = 16
    assert case.at(102) == [STUCK]


def test_a_good_end_is_bounded(case: Case) -> None:
    case.shift.begin("sample")
    case.stopping = True
    assert case.at(101) == [] and case.at(105) == []
    assert case.at(107) == ["let go", 0]


def test_unheard_work_makes_a_new_connection_then_a_new_process(case: Case) -> None:
    assert case.at(109) == []
    assert case.at(111) == ["reconnect"]
    assert case.at(119) == []
    assert case.at(122) == ["stop", "reconnect"]


def test_a_bell_after_the_new_connection_begins_anew(case: Case) -> None:
    assert case.at(111) == ["reconnect"]
    case.now_s = 112
    with case.shift.answering():
        assert case.at(113) == []
    assert case.at(122) == []
    assert case.at(124) == ["reconnect"]


def test_idling_without_work_is_no_fault(case: Case) -> None:
    case.backlog = False
    assert [case.at(100 + 15 * turn) for turn in range(1, 6)] == [[]] * 5


def test_a_silent_broker_is_waited_for(case: Case) -> None:
    case.answers = False
    assert [case.at(100 + 15 * turn) for turn in range(1, 6)] == [[]] * 5
    case.answers = True
    assert case.at(200) == ["reconnect"]
