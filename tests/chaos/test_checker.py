"""The checker sees what it is there to see: records of runs that went wrong, made by hand."""

from tests.chaos.checker import repeated_samples, stale_writes, times_to_run_again
from tests.chaos.faults import FAULTS, Struck
from tests.chaos.plans import FULL, LAPTOP, SHORT
from tests.chaos.record import START, Event


def event(at_s: float, kind: str, stage: str, job: int = 1, attempt: int = 0, worker: str = "w") -> Event:
    return Event(at_s, 1, worker, kind, stage, ((job, attempt),), at_s - 0.01)


SAMPLED = [event(1, START, "sample"), event(2, "advance", "sample"), event(3, START, "decode")]


class TestStaleWrites:
    def test_a_write_after_a_later_attempt_began_is_stale(self) -> None:
        late = event(5, "advance", "sample", attempt=0)
        assert stale_writes([event(1, START, "sample"), event(4, START, "sample", attempt=1), late], []) == [late]

    def test_a_write_after_the_end_is_stale(self) -> None:
        late = event(5, "succeed", "decode")
        assert stale_writes([event(4, "succeed", "decode"), late], []) == [late]

    def test_writes_of_the_attempt_at_hand_are_not(self) -> None:
        assert stale_writes([*SAMPLED, event(4, "succeed", "decode")], []) == []

    def test_what_a_dying_database_forgot_proves_nothing(self) -> None:
        again = event(6, "succeed", "decode")
        assert stale_writes([event(4, "succeed", "decode"), again], [4.5]) == []
        assert stale_writes([event(4, "succeed", "decode"), again], [5.5]) == [again]


class TestRepeatedSamples:
    AGAIN = (*SAMPLED, event(5, START, "sample", attempt=1), event(6, "advance", "sample", attempt=1))

    def count(self, *struck: Struck) -> tuple[int, int]:
        return repeated_samples(list(self.AGAIN), struck)

    def test_a_repetition_that_nothing_excuses_counts(self) -> None:
        assert self.count() == (1, 0)
        assert self.count(Struck("worker killed in decode", 3.5, 3.5)) == (1, 0)

    def test_a_fault_during_the_sampling_excuses_it(self) -> None:
        assert self.count(Struck("worker killed in sample", 1.5, 1.5)) == (0, 1)

    def test_a_flush_excuses_what_was_on_its_way(self) -> None:
        assert self.count(Struck("FLUSHALL", 4, 4)) == (0, 1)
        assert self.count(Struck("FLUSHALL", 7, 7)) == (1, 0)

    def test_a_stage_that_found_its_handoff_gone_sampled_nothing(self) -> None:
        lost = [event(1, START, "sample"), event(2, "lose_handoffs", "sample"), event(3, START, "encode", attempt=1)]
        assert repeated_samples([*lost, event(5, START, "sample", attempt=1)], []) == (0, 0)

    def test_sampling_once_is_no_repetition(self) -> None:
        assert repeated_samples(SAMPLED, [Struck("worker killed in sample", 1.5, 1.5)]) == (0, 0)


class TestTimes:
    DEATH = Struck("worker killed in sample", 1.5, 1.5, (1,), "supervisor")

    def test_it_runs_to_the_next_beginning(self) -> None:
        assert times_to_run_again(self.DEATH, [*SAMPLED[:1], event(4, START, "sample")], {1}) == [2.5]

    def test_a_job_that_never_runs_again_has_no_end(self) -> None:
        assert times_to_run_again(self.DEATH, SAMPLED[:1], set()) == [float("inf")]

    def test_a_job_that_was_done_as_its_worker_died_has_no_time(self) -> None:
        assert times_to_run_again(self.DEATH, SAMPLED[:1], {1}) == []


def test_the_plans_name_real_faults_and_the_whole_one_is_as_large_as_promised() -> None:
    for plan in (FULL, LAPTOP, SHORT):
        assert set(plan.faults) <= set(FAULTS)
    assert sum(FULL.faults.values()) >= 60 and FULL.jobs >= 2000
