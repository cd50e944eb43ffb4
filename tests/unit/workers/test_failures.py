"""What becomes of a job whose stage failed: tried again later, in a smaller unit, or ended."""

import random

import pytest
import torch
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError

from orchestrator.state.queries import Claimed, Failed, Retried
from orchestrator.state.transitions import ErrorClass
from workers.failures import POLICIES, Failure, classify, judge


def failure(error_class: ErrorClass, failures: int = 0, together: int = 1) -> Failure:
    job = Claimed(7, "b", 1, 1, "photo", "photo.jpg", "recipe", 0, "256x256", 3, failures, 0, None)
    return Failure(job, 0.5, "code", error_class, "message", together)


def test_every_class_but_crash_which_no_worker_can_report_has_a_policy() -> None:
    assert set(POLICIES) == set(ErrorClass) - {ErrorClass.CRASH}


def test_bad_input_is_never_tried_again() -> None:
    assert judge(failure(ErrorClass.INPUT)) == Failed(7, 3, 0.5, "code", "message")


@pytest.mark.parametrize("error_class", [ErrorClass.TRANSIENT, ErrorClass.CAPACITY, ErrorClass.INTERNAL])
def test_the_back_off_doubles_with_jitter_up_to_a_ceiling_and_an_end(error_class: ErrorClass) -> None:
    policy = POLICIES[error_class]
    for failures in range(policy.tries - 1):
        due_s = min(policy.ceiling_s, policy.base_s * 2**failures)
        ends = [judge(failure(error_class, failures)) for _ in range(50)]
        delays = [end.delay_s for end in ends if isinstance(end, Retried)]
        assert len(delays) == 50 and {end.counted for end in ends if isinstance(end, Retried)} == {1}
        assert due_s * 0.5 <= min(delays) < due_s < max(delays) <= due_s * 1.5
    assert isinstance(judge(failure(error_class, policy.tries - 1)), Failed)


def test_an_outage_of_a_quarter_of_an_hour_ends_no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random, "uniform", min)  # the shortest that jitter makes of it
    waited_s, failures = 0.0, 0
    while isinstance(end := judge(failure(ErrorClass.TRANSIENT, failures)), Retried):
        waited_s, failures = waited_s + end.delay_s, failures + 1
    assert 900 < waited_s < 3600


def test_too_little_memory_halves_the_unit_and_counts_only_against_a_job_alone() -> None:
    together, limits = 16, []
    while together > 1:
        end = judge(failure(ErrorClass.CAPACITY, failures=2, together=together))
        assert isinstance(end, Retried) and end.counted == 0 and end.unit_limit is not None
        limits.append(together := end.unit_limit)
    assert limits == [8, 4, 2, 1]
    assert isinstance(judge(failure(ErrorClass.CAPACITY, failures=2)), Failed)


@pytest.mark.parametrize("kind", [OperationalError, InterfaceError])
def test_a_database_that_is_away_is_waited_for_and_its_statement_not_shown(kind: type[DBAPIError]) -> None:
    code, error_class, message = classify(kind("SELECT jobs.id FROM jobs", {}, Exception("server closed")))
    assert (code, error_class) == ("unavailable", ErrorClass.TRANSIENT) and "SELECT" not in message


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_too_little_memory_is_known_by_its_exception(error: Exception) -> None:
    assert classify(error)[:2] == ("out_of_memory", ErrorClass.CAPACITY)
