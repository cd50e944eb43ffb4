"""Settings: the environment, read once into one frozen object.

Owns every `KONTEXT_…` variable, its default and its check. Refuses variables it does not know, so that a typing error
is an error that names the variable and not a default silently used.
"""

import difflib
import logging
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import structlog
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from orchestrator.redaction import RedactingFormatter, redact_event

PREFIX = "KONTEXT_"
# Raised whenever the same recipe, seed and weights would give other pixels than before.
PIPELINE_VERSION = 2
# Read by the Makefile, and by the command line where it speaks to a server; known, so that exporting them is no error.
FOREIGN = frozenset({"KONTEXT_TORCH", "KONTEXT_SERVER", "KONTEXT_API_KEY"})


class SettingsError(ValueError):
    """A variable of the environment is unknown or wrong; the message names it."""


class Settings(BaseModel):
    """Everything the processes are told by their environment. Unset locations mean the embedded servers."""

    model_config = ConfigDict(frozen=True)

    home: Path = Field(Path(".kontext"), description="folder of the embedded servers' data, logs and caches")
    database_url: str | None = Field(None, description="SQL: sqlite:///… or postgresql+psycopg://…")
    broker_url: str | None = Field(None, description="Redis of the Celery queues, run with noeviction and AOF")
    cache_url: str | None = Field(None, description="Redis of handoffs and text embeds, run with noeviction")
    results_uri: str | None = Field(None, description="where results go: s3://bucket/prefix or a folder")
    local_s3_url: str | None = Field(None, description="the embedded S3 server, http://key:secret@host:port")

    checkpoint: str | None = Field(
        None, description="checkpoint: folder, s3://bucket/prefix or hub id; unset: the small demo checkpoint"
    )
    device: str = Field("cpu", description="torch device of the workers: cpu, cuda, cuda:1, mps")
    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="numerics of the model")
    quantize: Literal["none", "int8", "fp8"] = Field("none", description="weights of the large models, through torchao")
    offload: Literal["none", "model", "group"] = Field(
        "none", description="for cards too small: one model, or one block, on the card at a time"
    )
    attention: Literal["native", "cudnn", "flash", "flash3", "sage", "xformers"] = Field(
        "native", description="attention back-end of the transformer; native where it does not run"
    )
    compile: bool = Field(False, description="compile the transformer's blocks, where a compiler works")
    step_cache: Literal["none", "first_block", "taylorseer", "magcache"] = Field(
        "none", description="skip blocks in some steps: faster, and other pictures"
    )
    preview_every: int = Field(
        0, ge=0, le=1000, description="record a small picture of the estimate after every so many steps; 0: none"
    )
    threads: int | None = Field(None, ge=1, description="torch threads of a worker process; unset: torch decides")

    unit_size: int = Field(8, ge=1, le=1024, description="jobs a worker claims and runs together; 1 for the full model")
    window_jobs: int = Field(1024, ge=1, description="jobs queued or running at once, over all batches")
    window_bytes: int = Field(1 << 30, ge=1 << 20, description="bytes of handoffs that the window may fill")
    # Longer than all tries of a decode take (workers.failures): else one that cannot end is encoded again and again.
    handoff_ttl_s: int = Field(86_400, ge=3600, description="life of a handoff; a lost one is encoded again")
    heartbeat_s: float = Field(3.0, gt=0, description="seconds between the heartbeats of a worker")
    lease_s: float = Field(15.0, gt=0, description="a worker silent for so long is dead, its jobs are taken back")
    stage_deadline_s: float = Field(900.0, gt=0, description="a worker that takes longer over one stage of a unit ends")
    stop_s: float = Field(25.0, gt=0, description="how long a worker told to stop may go on with the stage at hand")
    watchdog_s: float = Field(
        30.0, gt=0, description="work that waits so long unheard makes a worker reconnect, then start anew"
    )
    worker_memory_bytes: int | None = Field(
        None, ge=1, description="a worker that holds more after a unit starts anew; unset: no limit"
    )

    allowed_hosts: tuple[str, ...] = Field((), description="https:// hosts to fetch from, commas between")
    webhook_hosts: tuple[str, ...] = Field(
        ("*",), description="https:// hosts that webhooks may be sent to; *: every public one"
    )
    max_image_bytes: int = Field(64 << 20, ge=1024, description="largest source image file")
    max_image_px: int = Field(64_000_000, ge=256, description="largest source image, width × height")
    api_requests_per_s: float = Field(100.0, gt=0, description="calls a second that a key or session may make")
    max_upload_bytes: int = Field(1 << 30, ge=1 << 20, description="largest catalogue or archive sent to the API")
    cost_per_hour: float | None = Field(
        None, ge=0, description="what an hour of a worker costs, for the estimates of dry runs"
    )
    log_format: Literal["text", "json"] = Field("text", description="form of the log lines")

    @field_validator("allowed_hosts", "webhook_hosts", mode="before")
    @classmethod
    def _split_hosts(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(host.strip().lower() for host in value.split(",") if host.strip())
        return value

    @field_validator("database_url")
    @classmethod
    def _check_database(cls, value: str | None) -> str | None:
        if value is None:
            return None
        scheme, rest = value.partition("://")[::2]
        if scheme in {"postgres", "postgresql"}:
            return f"postgresql+psycopg://{rest}"
        if scheme not in {"postgresql+psycopg", "sqlite"}:
            raise ValueError("expected sqlite:///path or postgresql://user@host/database")
        return value

    @field_validator("broker_url", "cache_url")
    @classmethod
    def _check_redis(cls, value: str | None) -> str | None:
        if value is not None and urlsplit(value).scheme not in {"redis", "rediss", "redis+socket", "unix"}:
            raise ValueError("expected redis://host:port/number")
        return value

    @field_validator("lease_s")
    @classmethod
    def _check_lease(cls, value: float, told: ValidationInfo) -> float:
        if value <= told.data.get("heartbeat_s", 0):
            raise ValueError("expected more than KONTEXT_HEARTBEAT_S, or every worker counts as dead")
        return value

    @property
    def embedded(self) -> frozenset[str]:
        """Which locations are unset, and therefore served by the embedded stack."""
        names = ("database_url", "broker_url", "cache_url", "results_uri")
        return frozenset(name for name in names if getattr(self, name) is None)

    @property
    def numerics(self) -> str:
        """What changes pixels beside the weights; a part of every fingerprint."""
        chosen = [
            value for value in (self.quantize, self.attention, self.step_cache) if value not in ("none", "native")
        ]
        return "/".join([self.dtype, *chosen, f"v{PIPELINE_VERSION}"])

    def environment(self) -> dict[str, str]:
        """The variables that give a child process these very settings."""
        values = {f"{PREFIX}{name.upper()}": getattr(self, name) for name in type(self).model_fields}
        return {
            name: ",".join(value) if isinstance(value, tuple) else str(value)
            for name, value in values.items()
            if value is not None
        }


def configure_logs(settings: Settings) -> None:
    """One line an event on stderr, for people or as JSON, without secrets; chatty libraries only when they warn."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(RedactingFormatter("%(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    for name in ("celery", "kombu", "botocore", "boto3", "urllib3", "httpx", "httpcore", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    renderer = (
        structlog.processors.JSONRenderer()
        if settings.log_format == "json"
        else structlog.dev.ConsoleRenderer(colors=False, pad_event_to=0)
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            redact_event,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )


def read_settings(environment: Mapping[str, str] = os.environ) -> Settings:
    """Read and check the process environment.

    Raises SettingsError, naming every unknown or wrong variable, its value and what was expected.
    """
    known = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields}
    problems = []
    for name in sorted(set(environment) - known - FOREIGN):
        if name.startswith(PREFIX):
            near = difflib.get_close_matches(name, known, n=1)
            problems.append(f"{name} is no setting{f'; did you mean {near[0]}?' if near else ''}")
    try:
        settings = Settings.model_validate(
            {
                name: environment[variable]
                for name in Settings.model_fields
                if (variable := f"{PREFIX}{name.upper()}") in environment and environment[variable] != ""
            }
        )
    except ValidationError as error:
        for problem in error.errors():
            name = f"{PREFIX}{str(problem['loc'][0]).upper()}"
            value = re.sub(r"//[^/]*@", "//…@", environment.get(name, ""))  # logs are no place for passwords
            problems.append(f"{name}={value!r}: {problem['msg'].removeprefix('Value error, ')}")
        raise SettingsError("; ".join(problems)) from None
    if problems:
        raise SettingsError("; ".join(problems))
    return settings
