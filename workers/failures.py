"""Failures: which class an exception belongs to, and what is done about it.

Owns the retry policy, a table. Refuses to hide anything: what it does not know is `internal`, with the exception's
name.
"""

import random
from dataclasses import dataclass

import torch
from redis.exceptions import RedisError
from sqlalchemy.exc import InterfaceError, OperationalError

from kontext_model.lora_file import LoraError
from orchestrator.state.queries import Claimed, Failed, Retried
from orchestrator.state.transitions import ErrorClass
from orchestrator.storage import StorageError
from workers.source import SourceError


@dataclass(frozen=True)
class Failure:
    """One job's stage that failed, as one of so many that ran `together`."""

    job: Claimed
    seconds: float
    code: str
    error_class: ErrorClass
    message: str
    together: int = 1


@dataclass(frozen=True)
class Policy:
    """How often a job may fail by this class before it ends, and the back-off that doubles from `base_s`."""

    tries: int
    base_s: float
    ceiling_s: float


POLICIES = {
    ErrorClass.INPUT: Policy(tries=1, base_s=0, ceiling_s=0),
    # Three quarters of an hour in all: a server comes back, or somebody frees a disk.
    ErrorClass.TRANSIENT: Policy(tries=16, base_s=2, ceiling_s=300),
    ErrorClass.CAPACITY: Policy(tries=3, base_s=5, ceiling_s=60),
    ErrorClass.INTERNAL: Policy(tries=3, base_s=1, ceiling_s=60),
}


def classify(error: Exception) -> tuple[str, ErrorClass, str]:
    """(code, class, message for people) of what a stage raised for one job."""
    if isinstance(error, SourceError):
        return error.code, ErrorClass(error.error_class), str(error)
    if isinstance(error, LoraError):
        return error.code, ErrorClass.TRANSIENT if error.transient else ErrorClass.INPUT, str(error)
    if isinstance(error, StorageError):
        # A full disk or a refused key is mended by people: waiting for them costs less than failing the batch.
        return error.code, ErrorClass.TRANSIENT, str(error)
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return "out_of_memory", ErrorClass.CAPACITY, "the device has too little memory for this job's canvas"
    if isinstance(error, RedisError | ConnectionError | TimeoutError):
        return "unavailable", ErrorClass.TRANSIENT, f"{type(error).__name__}: {error}"
    if isinstance(error, OperationalError | InterfaceError):  # its own text shows the statement
        return "unavailable", ErrorClass.TRANSIENT, "the database does not answer"
    return "internal_error", ErrorClass.INTERNAL, f"{type(error).__name__}: {error}"


def judge(failure: Failure) -> Failed | Retried:
    """What becomes of a job: its stage is tried again after a jittered back-off, or it has failed for good.

    A unit that found too little memory is claimed again in halves, down to each job alone: only there it is the job's
    own failure, and counts.
    """
    job, policy = failure.job, POLICIES[failure.error_class]
    told = (job.id, job.attempt, failure.seconds, failure.code, failure.message)
    if failure.error_class is ErrorClass.CAPACITY and failure.together > 1:
        return Retried(*told, delay_s=_jittered(policy.base_s), counted=0, unit_limit=failure.together // 2)
    if job.failures + 1 >= policy.tries:
        return Failed(*told)
    return Retried(*told, delay_s=_jittered(min(policy.ceiling_s, policy.base_s * 2**job.failures)))


def _jittered(seconds: float) -> float:
    return seconds * random.uniform(0.5, 1.5)
