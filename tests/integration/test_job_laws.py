"""The laws of a job under any order of claims, ends, deaths and stale writes, against a model in plain Python."""

from dataclasses import dataclass, replace
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from sqlalchemy import Engine

from orchestrator.state import queries
from orchestrator.state.database import reading
from orchestrator.state.queries import Advanced, Claimed, Ended, Failed, Finished, Group
from orchestrator.state.tables import metadata
from orchestrator.state.transitions import JOB_MOVES, BatchStatus, JobState, Stage
from tests.integration.seeding import RECIPE, REVISION, Seeder

CANVAS, CRASHES_ALLOWED = "256x256", 2
ACTIONS = st.sampled_from(["claim"] * 4 + ["end"] * 5 + ["leave"] * 2 + ["dispatch"])
MOVES = st.sampled_from(["retry", "advance", "lose_handoff", "succeed", "fail"])
WORKERS, SELDOM = st.sampled_from(["w1", "w2"]), st.sampled_from([False] * 5 + [True])
PRIORITIES = [0, 5, 0, -1, 5, 0]
LEGAL = {(source, move.target) for move in JOB_MOVES.values() for source in move.source}


@dataclass(frozen=True)
class Expected:
    """What SQL should say of a job."""

    state: str = "pending"
    stage: str | None = None
    attempt: int = 0
    failures: int = 0
    crashes: int = 0
    worker_id: str | None = None


class Jobs(RuleBasedStateMachine):
    """Workers that claim, work, die and come back with what they were not to touch any more."""

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self.seed = Seeder(engine)
        self.hands: list[tuple[Stage, Claimed]] = []  # all that was ever claimed: the older, the more stale
        self.done: dict[int, dict[str, Any]] = {}

    @initialize(limit=st.integers(0, 6))
    def start(self, limit: int) -> None:
        with self.seed.engine.begin() as connection:
            for table in reversed(metadata.sorted_tables):
                connection.execute(table.delete())
        self.seed.batch(priorities=PRIORITIES)
        self.expected = {row["id"]: Expected() for row in self.seed.rows()}
        self.priority = {row["id"]: row["priority"] for row in self.seed.rows()}
        self.dispatch(limit)

    def choose(self, limit: int, **like: Any) -> list[int]:
        """The jobs that are like that, the most urgent first."""
        found = [i for i, job in self.expected.items() if all(getattr(job, k) == v for k, v in like.items())]
        return sorted(found, key=lambda i: (-self.priority[i], i))[:limit]

    # One rule that chooses, not four: hypothesis would leave whole rules out of most runs.
    @rule(action=ACTIONS, data=st.data())
    def act(self, action: str, data: st.DataObject) -> None:
        draw = data.draw
        if action == "dispatch":
            self.dispatch(draw(st.integers(0, 7)))
        elif action == "claim":
            self.claim(draw(WORKERS), draw(st.integers(0, 5)), draw(st.integers(1, 3)), draw(SELDOM))
        elif action == "leave":
            self.leave(draw(WORKERS), draw(st.booleans()))
        elif self.hands:
            latest = min(len(self.hands), 10)
            picks = st.lists(st.integers(1, latest), min_size=1, max_size=3, unique=True)
            self.end(draw(MOVES), draw(picks), draw(st.sampled_from([None] * 5 + list(Stage))))

    def dispatch(self, limit: int) -> None:
        chosen = self.choose(limit, state="pending")
        assert sum(self.seed.do(queries.dispatch, "b", limit).values()) == len(chosen)
        self.move(chosen, state="queued", stage="encode")

    def claim(self, worker: str, pick: int, limit: int, paused: bool) -> None:
        waiting = self.choose(99, state="queued")
        stage = Stage(self.expected[waiting[pick % len(waiting)]].stage or "") if waiting else Stage.SAMPLE
        group = Group(stage, RECIPE, "" if stage == Stage.ENCODE else CANVAS, REVISION)
        if paused:
            self.seed.do(queries.move_batch, "b", BatchStatus.PAUSED)
            assert self.seed.claim(group, limit, worker) == []
            self.seed.do(queries.move_batch, "b", BatchStatus.RUNNING)
            return
        queued = self.choose(99, state="queued", stage=stage)
        sound = [i for i in queued if self.expected[i].crashes == 0]
        chosen = sound[:limit] or queued[:1]
        unit = self.seed.claim(group, limit, worker)
        assert sorted(job.id for job in unit) == sorted(chosen)
        self.move(chosen, state="running", worker_id=worker)
        assert all(job.attempt == self.expected[job.id].attempt for job in unit)
        self.hands += [(stage, job) for job in unit]

    def end(self, move: str, picks: list[int], stage: Stage | None) -> None:
        # Counted from the latest claim; a stage that differs from the claim's is stale too.
        given = [self.hands[-pick] for pick in picks]
        at = stage or given[0][0]
        if move == "advance" and at == Stage.DECODE:
            return
        unit = {job.id: job for _, job in given}
        held = {
            i
            for i, job in unit.items()
            if self.expected[i].state == "running" and self.expected[i].stage == at
            if self.expected[i].attempt == job.attempt
        }
        assert self.write(move, at, list(unit.values())) == held
        after = {
            "advance": lambda _: {"state": "queued", "stage": at.following},
            "succeed": lambda _: {"state": "succeeded"},
            "fail": lambda job: {"state": "failed", "failures": job.failures + 1},
            "retry": lambda job: {"state": "queued", "attempt": job.attempt + 1, "failures": job.failures + 1},
            "lose_handoff": lambda job: {"state": "queued", "stage": "encode", "attempt": job.attempt + 1},
        }[move]
        for i in held:
            self.move([i], **after(self.expected[i]))

    def write(self, move: str, stage: Stage, unit: list[Claimed]) -> set[int]:
        if move == "advance":
            return self.seed.do(queries.advance, stage, [Advanced(j.id, j.attempt, 0.1, CANVAS) for j in unit])
        if move == "succeed":
            ends = [Finished(j.id, j.attempt, 0.1, f"/results/{j.id}-{j.attempt}.png", "sha") for j in unit]
            return self.seed.do(queries.succeed, stage, ends)
        if move == "lose_handoff":
            return self.seed.do(queries.lose_handoffs, stage, [Ended(j.id, j.attempt, 0.1) for j in unit])
        failed = [Failed(j.id, j.attempt, 0.1, "code", "message") for j in unit]
        if move == "fail":
            return self.seed.do(queries.fail, stage, failed)
        return self.seed.do(queries.retry, stage, failed, delay_s=0)

    def leave(self, worker: str, dies: bool) -> None:
        held = self.choose(99, state="running", worker_id=worker)
        if dies:
            groups = self.seed.do(queries.take_back, worker, crashes_allowed=CRASHES_ALLOWED)
        else:
            groups = self.seed.do(queries.hand_back, worker)
        for i in held:
            job = self.expected[i]
            self.move([i], state="queued", attempt=job.attempt + 1, crashes=job.crashes + dies)
            if dies and job.crashes == CRASHES_ALLOWED:
                self.move([i], state="failed")
        queued = sorted(str(self.expected[i].stage) for i in held if self.expected[i].state == "queued")
        assert sorted(group.stage for group in groups) == queued

    def move(self, ids: list[int], **values: Any) -> None:
        for i in ids:
            before = self.expected[i]
            self.expected[i] = replace(before, **values)
            if values.get("state") == "queued":
                self.expected[i] = replace(self.expected[i], worker_id=None)
            if before.state == "running":
                # Set aside as poison: from the worker's hands to failed, in one transaction.
                assert (JobState.RUNNING, JobState(self.expected[i].state)) in LEGAL

    @invariant()
    def sql_says_what_the_model_says(self) -> None:
        rows = {row["id"]: row for row in self.seed.rows()}
        for i, job in self.expected.items():
            shown = {name: rows[i][name] for name in ("state", "stage", "attempt", "failures", "crashes")}
            assert shown == {name: getattr(job, name) for name in shown}
            if job.state in ("queued", "running"):
                assert rows[i]["worker_id"] == job.worker_id
            if job.state == "succeeded":
                assert self.done.setdefault(i, rows[i]) == rows[i]  # a result is written once
            assert (rows[i]["ended_at"] is not None) == (job.state in ("succeeded", "failed"))

    @invariant()
    def counts_sum_to_the_total(self) -> None:
        with reading(self.seed.engine).connect() as connection:
            counts = queries.count_by_state(connection, "b")
            in_flight = queries.in_flight(connection).get("b", 0)
            unfinished = queries.unfinished(connection, "b")
        states = [job.state for job in self.expected.values()]
        assert counts.total == len(PRIORITIES)
        assert {state: getattr(counts, state) for state in JobState} == {
            state: states.count(state) for state in JobState
        }
        assert in_flight == counts.queued + counts.running
        assert unfinished == (counts.ended < counts.total)


@pytest.mark.parametrize("engine", ["sqlite", "postgresql"], indirect=True)
def test_the_laws_of_a_job_hold_in_any_order(engine: Engine) -> None:
    examples = {"sqlite": 20, "postgresql": 6}[engine.dialect.name]
    run_state_machine_as_test(
        lambda: Jobs(engine),
        settings=settings(
            max_examples=examples,
            stateful_step_count=30,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
