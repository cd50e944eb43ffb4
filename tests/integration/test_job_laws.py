"""The laws of a job under any order of claims, ends, deaths, stale writes and requests, against a model in Python."""

from dataclasses import dataclass, replace
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from sqlalchemy import Engine, update

from orchestrator.state import queries
from orchestrator.state.database import now, reading
from orchestrator.state.queries import Advanced, Claimed, Ended, Failed, Finished, Group, Retried
from orchestrator.state.tables import batches, metadata
from orchestrator.state.transitions import JOB_MOVES, BatchStatus, JobState, Stage
from tests.integration.seeding import RECIPE, REVISION, Seeder

CANVAS, CRASHES_ALLOWED = "256x256", 2
ACTIONS = st.sampled_from(
    ["claim"] * 5 + ["end"] * 6 + ["leave"] * 2 + ["dispatch"] * 2 + ["ask"] * 3 + ["restart", "expire", "close"]
)
MOVES = st.sampled_from(["retry", "advance", "carry", "lose_handoff", "succeed", "fail"])
REQUESTS = st.sampled_from(["pause", "resume", "resume", "cancel", "priority"])
WORKERS = st.sampled_from(["w1", "w2"])
PRIORITIES = [0, 5, 0, -1, 5, 0]
LEGAL = {(source, move.target) for move in JOB_MOVES.values() for source in move.source}
ENDED = ("succeeded", "failed", "cancelled")


@dataclass(frozen=True)
class Expected:
    """What SQL should say of a job."""

    state: str = "pending"
    stage: str | None = None
    attempt: int = 0
    failures: int = 0
    crashes: int = 0
    unit_limit: int | None = None
    worker_id: str | None = None


class Jobs(RuleBasedStateMachine):
    """Workers that claim, work, die and come back with what they were not to touch any more, while people ask."""

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self.seed = Seeder(engine)
        self.hands: list[tuple[Stage, Claimed]] = []  # all that was ever claimed: the older, the more stale
        self.holders: set[tuple[int, int, Stage]] = set()
        self.done: dict[int, dict[str, Any]] = {}
        self.urgency: dict[int, float] = {}
        self.status, self.overdue, self.priority = "running", False, 0

    @initialize(limit=st.integers(0, 6))
    def start(self, limit: int) -> None:
        with self.seed.engine.begin() as connection:
            for table in reversed(metadata.sorted_tables):
                connection.execute(table.delete())
        self.seed.batch(priorities=PRIORITIES)
        self.expected = {row["id"]: Expected() for row in self.seed.rows()}
        self.own_priority = {row["id"]: row["priority"] for row in self.seed.rows()}
        self.dispatch(limit)

    def choose(self, **like: Any) -> list[int]:
        """The jobs that are like that, the most urgent first."""
        found = [i for i, job in self.expected.items() if all(getattr(job, k) == v for k, v in like.items())]
        return sorted(found, key=lambda i: (-self.urgency.get(i, self.own_priority[i]), i))

    # One rule that chooses, not ten: hypothesis would leave whole rules out of most runs.
    @rule(action=ACTIONS, data=st.data())
    def act(self, action: str, data: st.DataObject) -> None:
        draw = data.draw
        if action == "dispatch":
            self.dispatch(draw(st.integers(0, 7)))
        elif action == "claim":
            self.claim(draw(WORKERS), draw(st.integers(0, 5)), draw(st.integers(1, 3)))
        elif action == "leave":
            self.leave(draw(WORKERS), draw(st.booleans()))
        elif action == "ask":
            self.ask(draw(REQUESTS), draw(st.integers(0, 7)))
        elif action == "restart":
            self.restart(draw(st.sampled_from(["failed", "cancelled"])), draw(st.integers(1, 6)))
        elif action == "expire":
            self.expire(draw(st.booleans()), draw(st.integers(1, 6)))
        elif action == "close":
            self.close(draw(st.integers(0, 1)))
        elif self.hands:
            latest = min(len(self.hands), 10)
            picks = st.lists(st.integers(1, latest), min_size=1, max_size=3, unique=True)
            self.end(draw(MOVES), draw(picks), draw(st.sampled_from([None] * 5 + list(Stage))))

    def dispatch(self, limit: int) -> None:
        pending = sorted(self.choose(state="pending"), key=lambda i: (-self.own_priority[i], i))
        chosen = pending[:limit] if self.status == "running" else []
        assert sum(self.seed.do(queries.dispatch, "b", limit).values()) == len(chosen)
        self.move(chosen, state="queued", stage="encode")
        for i in chosen:
            self.urgency[i] = self.seed.row(i)["urgency"]

    def claim(self, worker: str, pick: int, limit: int) -> None:
        waiting = self.choose(state="queued")
        stage = Stage(self.expected[waiting[pick % len(waiting)]].stage or "") if waiting else Stage.SAMPLE
        queued = self.choose(state="queued", stage=stage) if self.works else []
        if queued:
            limited = self.expected[queued[0]].unit_limit
            queued = [i for i in queued if self.expected[i].unit_limit == limited][: min(limit, limited or limit)]
        unit = self.seed.claim(Group(stage, RECIPE, "", REVISION), limit, worker)
        assert sorted(job.id for job in unit) == sorted(queued)
        self.move(queued, state="running", worker_id=worker)
        self.hold(stage, unit)

    def hold(self, stage: Stage, unit: list[Claimed]) -> None:
        for job in unit:
            assert job.attempt == self.expected[job.id].attempt
            # No two workers ever hold a stage of a job under the same token.
            assert (job.id, job.attempt, stage) not in self.holders
            self.holders.add((job.id, job.attempt, stage))
        self.hands += [(stage, job) for job in unit]

    @property
    def works(self) -> bool:
        return self.status == "running" and not self.overdue

    def end(self, move: str, picks: list[int], stage: Stage | None) -> None:
        # Counted from the latest claim; a stage that differs from the claim's is stale too.
        given = [self.hands[-pick] for pick in picks]
        at = stage or given[0][0]
        if move in ("advance", "carry") and at == Stage.DECODE:
            return
        unit = {job.id: job for _, job in given}
        held = {
            i
            for i, job in unit.items()
            if self.expected[i].state == "running" and self.expected[i].stage == at
            if self.expected[i].attempt == job.attempt
        }
        if move == "carry" and not self.works:
            held = set()
        assert self.write(move, at, list(unit.values())) == held
        after = {
            "advance": lambda _: {"state": "queued", "stage": at.following, "unit_limit": None, "failures": 0},
            "carry": lambda _: {"state": "running", "stage": at.following, "unit_limit": None, "failures": 0},
            "succeed": lambda _: {"state": "succeeded"},
            "fail": lambda job: {"state": "failed", "failures": job.failures + 1},
            "retry": lambda job: {
                "state": "queued", "attempt": job.attempt + 1, "failures": job.failures + at.value.count("m"),
                "unit_limit": len(unit),
            },
            "lose_handoff": lambda job: {"state": "queued", "stage": "encode", "attempt": job.attempt + 1},
        }[move]  # fmt: skip
        for i in held:
            self.move([i], **after(self.expected[i]))
        if move == "carry":
            self.holders |= {(i, self.expected[i].attempt, at.following) for i in held if at.following}
            self.hands += [(at.following, unit[i]) for i in held if at.following]

    def write(self, move: str, stage: Stage, unit: list[Claimed]) -> set[int]:
        if move in ("advance", "carry"):
            ends = [Advanced(j.id, j.attempt, 0.1, CANVAS) for j in unit]
            if move == "advance":
                return self.seed.do(queries.advance, stage, ends)
            return {job.id for job in self.seed.do(queries.carry, stage, ends)}
        if move == "succeed":
            finished = [Finished(j.id, j.attempt, 0.1, f"/results/{j.id}-{j.attempt}.png", "sha") for j in unit]
            return self.seed.do(queries.succeed, stage, finished)
        if move == "lose_handoff":
            return self.seed.do(queries.lose_handoffs, stage, [Ended(j.id, j.attempt, 0.1) for j in unit])
        failed = [Failed(j.id, j.attempt, 0.1, "code", "message") for j in unit]
        if move == "fail":
            return self.seed.do(queries.fail, stage, failed)
        counted = stage.value.count("m")  # at sample it was the job's own failure, elsewhere not
        retried = [Retried(**vars(end), counted=counted, unit_limit=len(unit)) for end in failed]
        return self.seed.do(queries.retry, stage, retried)

    def leave(self, worker: str, dies: bool) -> None:
        held = self.choose(state="running", worker_id=worker)
        if dies:
            groups = self.seed.do(queries.take_back, worker, crashes_allowed=CRASHES_ALLOWED)
        else:
            groups = self.seed.do(queries.hand_back, worker)
        for i in held:
            job = self.expected[i]
            self.move([i], state="queued", attempt=job.attempt + 1, crashes=job.crashes + dies)
            if dies:
                self.move([i], unit_limit=1)
            if dies and job.crashes == CRASHES_ALLOWED:
                self.move([i], state="failed")
        queued = sorted(str(self.expected[i].stage) for i in held if self.expected[i].state == "queued")
        assert sorted(group.stage for group in groups) == queued

    def ask(self, request: str, number: int) -> None:
        moves = {
            "pause": ({"running"}, BatchStatus.PAUSED),
            "resume": ({"paused"}, BatchStatus.RUNNING),
            "cancel": ({"running", "paused"}, BatchStatus.CANCELLING),
        }
        if request == "priority":
            self.seed.do(queries.set_priority, "b", number)
            for i in self.choose(state="queued") + self.choose(state="running"):
                self.urgency[i] += (number - self.priority) * queries.AGING_S
                assert abs(self.seed.row(i)["urgency"] - self.urgency[i]) < 1e-3
                self.urgency[i] = self.seed.row(i)["urgency"]
            self.priority = number
            return
        sources, target = moves[request]
        if request == "resume":
            moved = self.seed.do(queries.resume_batch, "b")
        else:
            moved = self.seed.do(queries.move_batch, "b", target, reason="asked")
        assert moved == (self.status in sources)
        self.status = target.value if moved else self.status
        if self.status == "cancelling":
            active = [i for state in ("running", "queued", "pending") for i in self.choose(state=state)]
            limit = max(1, number)
            assert self.seed.do(queries.cancel_jobs, "b", limit) == min(limit, len(active))
            rows = {row["id"]: row["state"] for row in self.seed.rows()}
            chosen = [i for i in active if rows[i] == "cancelled"]
            # Running ones first.
            assert [self.expected[i].state for i in chosen] == [self.expected[i].state for i in active[: len(chosen)]]
            for i in chosen:
                job = self.expected[i]
                self.move([i], state="cancelled", attempt=job.attempt + (job.state == "running"))

    def restart(self, state: str, limit: int) -> None:
        chosen = sorted(self.choose(state=state))[:limit]
        with self.seed.engine.begin() as connection:
            reopened = queries.reopen_batch(connection, "b")
            assert reopened == (self.status != "cancelling")
            if not reopened:
                return
            assert queries.restart_jobs(connection, chosen) == len(chosen)
        self.status = "paused" if self.status == "paused" else "running"
        self.overdue = False
        for i in chosen:
            job = self.expected[i]
            suspect = 1 if job.crashes else 0
            self.move([i], state="pending", stage=None, attempt=job.attempt + 1, failures=0, worker_id=None)
            self.expected[i] = replace(self.expected[i], crashes=suspect, unit_limit=suspect or None)
            self.urgency.pop(i, None)

    def expire(self, passes: bool, limit: int) -> None:
        if passes and not self.overdue:
            with self.seed.engine.begin() as connection:
                connection.execute(update(batches).values(deadline_at=now() - 1))
            self.overdue = True
        waiting = self.choose(state="queued") + self.choose(state="pending") if self.overdue else []
        assert self.seed.do(queries.expire_jobs, "b", limit) == min(limit, len(waiting))
        rows = {row["id"]: row["code"] for row in self.seed.rows()}
        self.move([i for i in waiting if rows[i] == "expired"], state="failed")

    def close(self, seen: int) -> None:
        with reading(self.seed.engine).connect() as connection:
            batch = queries.read_batch(connection, "b")
        assert batch is not None
        over = all(job.state in ENDED for job in self.expected.values())
        ends = {"running": "completed", "cancelling": "cancelled"}
        closed = self.seed.do(queries.close_batch, "b", reopened=batch.reopened - seen)
        assert closed == (over and self.status in ends and seen == 0)
        self.status = ends[self.status] if closed else self.status

    def move(self, ids: list[int], **values: Any) -> None:
        for i in ids:
            before = self.expected[i]
            self.expected[i] = replace(before, **values)
            if values.get("state") == "queued":
                self.expected[i] = replace(self.expected[i], worker_id=None)
            assert self.expected[i].attempt >= before.attempt
            if self.expected[i].state != before.state:
                assert (JobState(before.state), JobState(self.expected[i].state)) in LEGAL | {
                    (JobState.QUEUED, JobState.FAILED)  # set aside as poison, in the transaction that took it back
                }

    @invariant()
    def sql_says_what_the_model_says(self) -> None:
        rows = {row["id"]: row for row in self.seed.rows()}
        names = ("state", "stage", "attempt", "failures", "crashes", "unit_limit")
        for i, job in self.expected.items():
            shown = {name: rows[i][name] for name in names}
            assert shown == {name: getattr(job, name) for name in shown}
            if job.state in ("queued", "running"):
                assert rows[i]["worker_id"] == job.worker_id
                assert rows[i]["urgency"] == self.urgency[i]
            if job.state == "succeeded":
                assert self.done.setdefault(i, rows[i]) == rows[i]  # a result is written once
            assert (rows[i]["ended_at"] is not None) == (job.state in ENDED)

    @invariant()
    def counts_sum_to_the_total(self) -> None:
        with reading(self.seed.engine).connect() as connection:
            counts = queries.count_by_state(connection, "b")
            in_flight = queries.in_flight(connection).get("b", 0)
            unfinished = queries.unfinished(connection, "b")
            batch = queries.read_batch(connection, "b")
        states = [job.state for job in self.expected.values()]
        assert counts.total == len(PRIORITIES)
        assert {state: getattr(counts, state) for state in JobState} == {
            state: states.count(state) for state in JobState
        }
        assert in_flight == counts.queued + counts.running
        assert unfinished == (counts.ended < counts.total)
        assert batch is not None and batch.status == self.status
        assert (batch.ended_at is not None) == (self.status in ("completed", "cancelled"))
        assert batch.ended_at is None or not unfinished  # a batch that has ended has no job that has not


@pytest.mark.parametrize("engine", ["sqlite", "postgresql"], indirect=True)
def test_the_laws_of_a_job_hold_in_any_order(engine: Engine) -> None:
    examples = {"sqlite": 30, "postgresql": 12}[engine.dialect.name]
    run_state_machine_as_test(
        lambda: Jobs(engine),
        settings=settings(
            max_examples=examples,
            stateful_step_count=40,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
