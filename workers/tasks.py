"""The way of a unit: claim → stage → hand on.

Owns what happens to a bell. Refuses work that SQL does not hold: a bell without rows is dropped.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import structlog
from sqlalchemy import Connection

from orchestrator.state import queries
from orchestrator.state.messages import Bell, bells_needed
from orchestrator.state.queries import Claimed, Failed, Group
from orchestrator.state.transitions import Stage
from workers.failures import Failure, classify, delay_s
from workers.stages import STAGES, Bench, Outcome

CONSUMES: Mapping[Stage, Stage] = {Stage.SAMPLE: Stage.ENCODE, Stage.DECODE: Stage.SAMPLE}
"""Whose handoff a stage uses up."""
log = structlog.get_logger("tasks")


@dataclass(frozen=True)
class Worker:
    """One process: its bench, its name in SQL, the stages it serves and how it rings for the others."""

    id: str
    bench: Bench
    stages: frozenset[Stage]
    ring: Callable[[Sequence[Bell]], None]
    stopping: Callable[[], bool] = lambda: False

    def serve(self, bell: Bell) -> int:
        """Answer a bell: claim one unit, do its stage, hand its jobs on. Gives the number of jobs claimed.

        A worker that serves the next stage too answers its own bell in the transaction that would ring it: the same
        unit it would be called to next, without a message.
        """
        with self.bench.engine.begin() as connection:
            unit = self._claim(connection, bell)
        claimed = len(unit)
        while unit:
            outcome = self._work(bell.stage, unit)
            bell, unit = self._hand_on(bell, unit, outcome)
        return claimed

    def _claim(self, connection: Connection, bell: Bell) -> list[Claimed]:
        settings = self.bench.settings
        group = Group(bell.stage, bell.recipe_id, bell.canvas, bell.revision)
        return queries.claim(connection, group, numerics=settings.numerics, worker_id=self.id, limit=settings.unit_size)

    def _work(self, stage: Stage, unit: Sequence[Claimed]) -> Outcome:
        try:
            return STAGES[stage](self.bench, self.bench.recipe(unit[0].recipe_id), unit)
        except Exception as error:  # what no stage could pin on one job: Redis or SQL away, a recipe missing
            log.error("stage failed", stage=stage, jobs=len(unit), exc_info=error)
            return Outcome(failed=[Failure(job, 0.0, *classify(error)) for job in unit])

    def _hand_on(self, bell: Bell, unit: Sequence[Claimed], outcome: Outcome) -> tuple[Bell, list[Claimed]]:
        """Commit what became of the unit, ring for what others do next; gives what this worker goes on with."""
        stage, following = bell.stage, bell.stage.following
        own, carried = bell, list[Claimed]()
        with self.bench.engine.begin() as connection:
            moved = _settle(connection, stage, outcome)
            rows = Counter(end.canvas for end in outcome.advanced if end.id in moved)
            if following in self.stages and rows and not self.stopping():
                own = replace(bell, stage=following, canvas=rows.most_common(1)[0][0])
                carried = self._claim(connection, own)
                rows[own.canvas] -= len(carried)
        bells = [
            replace(bell, stage=following, canvas=canvas)
            for canvas, count in rows.items()
            if following is not None
            for _ in range(bells_needed(max(count, 0), self.bench.settings.unit_size))
        ]
        if outcome.lost:
            bells.append(replace(bell, stage=Stage.ENCODE, canvas=""))
        self.ring(bells)
        if stage in CONSUMES:
            self.bench.handoffs.delete(CONSUMES[stage], [job for job in unit if job.id in moved])
        return own, carried


def _settle(connection: Connection, stage: Stage, outcome: Outcome) -> set[int]:
    """Write each job's end of the stage; gives the ids that went on or ended, whose handoffs are used up."""
    moved = queries.advance(connection, stage, outcome.advanced) if outcome.advanced else set()
    moved |= queries.succeed(connection, stage, outcome.finished)
    queries.lose_handoffs(connection, stage, outcome.lost)
    for failure in outcome.failed:
        end = Failed(failure.job.id, failure.job.attempt, failure.seconds, failure.code, failure.message)
        delay = delay_s(failure)
        if delay is None:
            moved |= queries.fail(connection, stage, [end])
        else:
            queries.retry(connection, stage, [end], delay_s=delay)
    return moved
