"""The way of a unit: claim → stage → hand on.

Owns what happens to a bell. Refuses work that SQL does not hold: a bell without rows is dropped.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import structlog
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from orchestrator.state import queries
from orchestrator.state.messages import Bell, bells_needed
from orchestrator.state.queries import Claimed, Retried
from orchestrator.state.transitions import Stage
from workers.bench import Bench
from workers.failures import Failure, classify, judge
from workers.heartbeat import hand_back_doubtful
from workers.shift import Shift
from workers.stages import STAGES, Outcome

CONSUMES: Mapping[Stage, Stage] = {Stage.SAMPLE: Stage.ENCODE, Stage.DECODE: Stage.SAMPLE}
"""Whose handoff a stage uses up."""
# A minute and a half in all; after that the process ends and its lease brings the jobs back.
COMMIT_BACKOFF_S = (0.5, 1, 2, 4, 8, 15, 30, 30)
log = structlog.get_logger("tasks")


@dataclass(frozen=True)
class Worker:
    """One process: its bench, its name in SQL, the stages it serves and how it rings for the others."""

    id: str
    bench: Bench
    stages: frozenset[Stage]
    ring: Callable[[Sequence[Bell]], None]
    stopping: Callable[[], bool] = lambda: False
    shift: Shift = field(default_factory=Shift)

    def serve(self, bell: Bell) -> int:
        """Answer a bell: claim one unit, do its stage, hand its jobs on. Gives the number of jobs claimed.

        A bell says that its stage has work; what is done first, SQL says: the most urgent. A worker that serves the
        next stage too goes on with the jobs it has: the unit it would ring for, without a message. One that is stopping
        claims nothing: SQL holds the work, and the rescuer rings again.
        """
        if self.stopping():
            return 0
        with self.shift.answering():
            claimed = self._serve(bell)
            if self.shift.doubtful:
                self._persist(lambda: hand_back_doubtful(self.bench.engine, self.id, self.shift))
            return claimed

    def _serve(self, bell: Bell) -> int:
        self.shift.begin("claim")
        settings = self.bench.settings
        try:
            with self.bench.direct.connect() as connection:
                unit = queries.claim(
                    connection,
                    bell.stage,
                    revision=bell.revision,
                    numerics=settings.numerics,
                    worker_id=self.id,
                    limit=settings.unit_size,
                )
        except DBAPIError as error:
            # The rows stay queued and the rescuer rings for them; those claimed unbeknownst to us are given back.
            log.warning("not claimed", stage=bell.stage, error=_first_line(error))
            self._persist(lambda: self._settle(bell, [], Outcome(), release=True))
            return 0
        claimed = len(unit)
        if unit:
            bell = replace(bell, recipe_id=unit[0].recipe_id, canvas=unit[0].canvas or "")
        while unit:
            outcome = self._work(bell.stage, unit)
            bell, unit = self._hand_on(bell, unit, outcome)
        return claimed

    def _work(self, stage: Stage, unit: Sequence[Claimed]) -> Outcome:
        self.shift.begin(stage)
        try:
            return STAGES[stage](self.bench, self.bench.recipe(unit[0].recipe_id), unit)
        except Exception as error:  # what no stage could pin on one job: Redis or SQL away, a recipe missing
            log.error("stage failed", stage=stage, jobs=len(unit), exc_info=error)
            return Outcome(failed=[Failure(job, 0.0, *classify(error), len(unit)) for job in unit])

    def _hand_on(self, bell: Bell, unit: Sequence[Claimed], outcome: Outcome) -> tuple[Bell, list[Claimed]]:
        """Commit what became of the unit, ring for what others do next; gives what this worker goes on with."""
        self.shift.begin("commit")
        carried: list[Claimed] = []
        own = self._own_next(bell, outcome)
        try:
            if own is not None:
                with self.bench.direct.connect() as connection:
                    carried = queries.carry(connection, bell.stage, outcome.advanced)
            if len(carried) < len(unit):
                self._settle(bell, unit, outcome)
        except DBAPIError as error:
            # The work is done and nobody else knows it: the database is waited for. Whatever was carried unbeknownst
            # to us is given back in the same transaction.
            log.warning("not committed, trying again", jobs=len(unit), error=_first_line(error))
            self._persist(lambda: self._settle(bell, unit, outcome, release=True))
            return bell, []
        self._forget(bell.stage, carried)
        return own or bell, carried

    def _own_next(self, bell: Bell, outcome: Outcome) -> Bell | None:
        """The bell this worker would ring for itself: it serves the next stage and all jobs go there together."""
        canvases = {end.canvas for end in outcome.advanced}
        if bell.stage.following not in self.stages or len(canvases) != 1 or self.stopping():
            return None
        return replace(bell, stage=bell.stage.following, canvas=canvases.pop())

    def _settle(self, bell: Bell, unit: Sequence[Claimed], outcome: Outcome, *, release: bool = False) -> None:
        """Write each job's end of the stage, ring for those that others take, forget the handoffs used up.

        `release` also gives back all that SQL still counts as ours.
        """
        stage, following = bell.stage, bell.stage.following
        single = outcome.is_single and not release
        with self.bench.direct.connect() if single else self.bench.engine.begin() as connection:
            moved = _write_ends(connection, stage, outcome)
            if release:
                queries.hand_back(connection, self.id)
            stale = {end.id for end in outcome.advanced} - moved
            cancelled = queries.find_cancelled(connection, stale) if stale else set()
        rows = Counter(end.canvas for end in outcome.advanced if end.id in moved)
        bells = [
            replace(bell, stage=following, canvas=canvas)
            for canvas, count in rows.items()
            if following is not None
            for _ in range(bells_needed(count, self.bench.settings.unit_size))
        ]
        if outcome.lost:
            bells.append(replace(bell, stage=Stage.ENCODE, canvas=""))
        self.ring(bells)
        failed = {failure.job.id for failure in outcome.failed}
        self._forget(stage, [job for job in unit if job.id in moved - failed])
        if stage in CONSUMES:
            self.bench.handoffs.drop(CONSUMES[stage], [job for job in unit if job.id in moved & failed])
        # Nobody will ask for what this stage has just stored of them; of other stale jobs it may be another worker's.
        self.bench.handoffs.drop(stage, [job for job in unit if job.id in cancelled])

    def _forget(self, stage: Stage, moved: Sequence[Claimed]) -> None:
        if stage in CONSUMES:
            self.bench.handoffs.delete(CONSUMES[stage], moved)

    def _persist(self, action: Callable[[], None]) -> None:
        """Do it again until the database answers; the last error is raised."""
        for patience_s in COMMIT_BACKOFF_S:
            time.sleep(patience_s)
            self.shift.begin("commit")  # waiting for a database that is away is no hang
            try:
                return action()
            except DBAPIError as error:
                log.warning("database away", error=_first_line(error))
        return action()


def _write_ends(connection: Connection, stage: Stage, outcome: Outcome) -> set[int]:
    """Write each job's end of the stage; gives the ids that went on or ended, whose handoffs are used up."""
    moved = queries.advance(connection, stage, outcome.advanced) if outcome.advanced else set()
    moved |= queries.succeed(connection, stage, outcome.finished)
    queries.lose_handoffs(connection, stage, outcome.lost)
    judged = [judge(failure) for failure in outcome.failed]
    queries.retry(connection, stage, [end for end in judged if isinstance(end, Retried)])
    moved |= queries.fail(connection, stage, [end for end in judged if not isinstance(end, Retried)])
    return moved


def _first_line(error: DBAPIError) -> str:
    return str(error.orig).partition("\n")[0]
