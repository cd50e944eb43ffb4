"""What statements take and give: jobs claimed, and how a stage ended for each."""

from dataclasses import dataclass

from orchestrator.state.transitions import Stage


@dataclass(frozen=True)
class Group:
    """Jobs that can share a unit: same stage, recipe and, after encode, canvas."""

    stage: Stage
    recipe_id: str
    canvas: str
    revision: str


@dataclass(frozen=True)
class Claimed:
    """A job that a worker holds. Later writes name `id` and `attempt`."""

    id: int
    batch_id: str
    line: int
    take: int
    custom_id: str
    image: str
    recipe_id: str
    seed: int
    canvas: str | None
    attempt: int
    failures: int
    crashes: int
    fingerprint: str | None


@dataclass(frozen=True)
class Ended:
    """What every end of a stage names: which job, at which attempt, after how many seconds."""

    id: int
    attempt: int
    seconds: float


@dataclass(frozen=True)
class Advanced(Ended):
    """A job whose stage is done and whose handoff is stored."""

    canvas: str
    image_sha256: str | None = None
    fingerprint: str | None = None


@dataclass(frozen=True)
class Finished(Ended):
    """A job whose picture is stored, or was found by its fingerprint."""

    result: str
    sha256: str
    canvas: str | None = None
    image_sha256: str | None = None
    fingerprint: str | None = None
    reused: int = 0


@dataclass(frozen=True)
class Failed(Ended):
    """A job whose stage failed, with a stable code and a message for people."""

    code: str
    message: str


@dataclass(frozen=True)
class Retried(Failed):
    """A job whose stage is tried again, not before `delay_s` from now.

    `counted` is 0 where the failure is not the job's own; `unit_limit` is the largest unit it is claimed in next.
    """

    delay_s: float = 0.0
    counted: int = 1
    unit_limit: int | None = None
