"""What travels between stages: tensors as safetensors bytes in Redis, with a time to live.

Owns the keys and the checks of what comes back: its size before it is fetched, its header before it is read, names,
dtypes and shapes before they are used. A handoff that is gone, or is not what was expected, is reported as missing and
its job is encoded again. Refuses pickles: bytes from Redis are never trusted to be more than tensors.
"""

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress

import redis
import torch
from redis.client import Pipeline
from redis.exceptions import RedisError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from kontext_model.text import TextEmbeds
from orchestrator.state.messages import handoff_key
from orchestrator.state.queries import Claimed
from orchestrator.state.transitions import Stage

HEADER_BYTES = 1024
"""More than the header of two tensors takes."""
EMBEDS_BYTES = 64 << 20
"""More than a text takes: 512 tokens of 4096 floats are 8 MiB."""


class Handoffs:
    """Latents by job and stage, text embeds by text and checkpoint."""

    def __init__(self, cache: redis.Redis, *, ttl_s: int, scope: str, dtype: torch.dtype = torch.float32) -> None:
        """`scope` names checkpoint revision and numerics: embeds of another model are never met.

        `dtype` is the model's, in which all is stored; what comes back in another one is not ours.
        """
        self._cache, self._ttl_s, self._scope, self._dtype = cache, ttl_s, scope, dtype
        self._used: list[str] = []
        self._latest: dict[str, Tensor] = {}

    def put(self, stage: Stage, latents: Mapping[Claimed, Tensor]) -> None:
        """Store what `stage` made of each job, (S, 64), in one round trip."""
        stored = {_key(job, stage): tensor.to(self._dtype).contiguous() for job, tensor in latents.items()}
        # A job that was asked for again is what it was called before; what is stored now is not used up.
        self._used = [key for key in self._used if key not in stored]
        with self._cache.pipeline(transaction=False) as pipeline:
            for key, tensor in stored.items():
                pipeline.set(key, save({"latents": tensor}), ex=self._ttl_s)
            self._execute(pipeline)
        # A worker of several stages goes on with what it has just put: that is not fetched back.
        self._latest = stored

    def take(self, stage: Stage, unit: Sequence[Claimed], shape: tuple[int, int]) -> dict[int, Tensor]:
        """What `stage` left for these jobs, by job id; without those that are gone, or other than latents (S, 64)."""
        keys = {job.id: _key(job, stage) for job in unit}
        taken = {id_: self._latest[key] for id_, key in keys.items() if key in self._latest}
        asked = [id_ for id_ in keys if id_ not in taken]
        limit_bytes = 8 + HEADER_BYTES + math.prod(shape) * self._dtype.itemsize
        for id_, data in zip(asked, self._fetch([keys[id_] for id_ in asked], limit_bytes), strict=True):
            tensors = self._load(data, limit_bytes)
            if tensors.keys() == {"latents"} and tuple(tensors["latents"].shape) == shape:
                taken[id_] = tensors["latents"]
        return taken

    def delete(self, stage: Stage, unit: Iterable[Claimed]) -> None:
        """Forget what `stage` left for jobs whose next stage has been committed.

        The deletion rides with the next `put` or `take`; should this process end before, the time to live does it.
        """
        self._used += [_key(job, stage) for job in unit]

    def drop(self, stage: Stage, unit: Iterable[Claimed]) -> None:
        """Forget at once what `stage` left for jobs that have ended: they may be asked for again, of another worker.

        Where Redis does not answer, the time to live does it.
        """
        keys = [_key(job, stage) for job in unit]
        if keys:
            with suppress(RedisError):
                self._cache.unlink(*keys)

    def renew_embeds(self, texts: Sequence[str]) -> set[str]:
        """Prolong the life of stored embeds; gives the texts that have none."""
        with self._cache.pipeline(transaction=False) as pipeline:
            for text in texts:
                pipeline.expire(self._embeds_key(text), self._ttl_s)
            renewed = pipeline.execute()
        return {text for text, known in zip(texts, renewed, strict=True) if not known}

    def put_embeds(self, text: str, embeds: TextEmbeds) -> None:
        """Store one text's embeds, shared by all jobs that ask for it."""
        parts = {"pooled": embeds.pooled, "sequence": embeds.sequence}
        data = save({name: part.to(self._dtype).contiguous() for name, part in parts.items()})
        self._cache.set(self._embeds_key(text), data, ex=self._ttl_s)

    def take_embeds(self, text: str) -> TextEmbeds | None:
        """One text's embeds, or None when they are gone."""
        [data] = self._fetch([self._embeds_key(text)], EMBEDS_BYTES)
        tensors = self._load(data, EMBEDS_BYTES)
        if tensors.keys() != {"pooled", "sequence"}:
            return None
        pooled, sequence = tensors["pooled"], tensors["sequence"]
        if (pooled.ndim, sequence.ndim, len(pooled), len(sequence)) != (2, 3, 1, 1):
            return None
        return TextEmbeds(pooled, sequence)

    def _fetch(self, keys: Sequence[str], limit_bytes: int) -> list[object]:
        """The values of keys, cut one byte behind the limit: whoever wrote them, they do not fill our memory."""
        if not keys:
            return []
        with self._cache.pipeline(transaction=False) as pipeline:
            for key in keys:
                pipeline.getrange(key, 0, limit_bytes)
            values = self._execute(pipeline, raise_on_error=False)
        for value in values:
            if isinstance(value, RedisError) and "WRONGTYPE" not in str(value):
                raise value
        return values

    def _execute(self, pipeline: Pipeline, *, raise_on_error: bool = True) -> list[object]:
        """What the pipeline's commands gave; what is used up is deleted with them."""
        if self._used:
            pipeline.unlink(*self._used)
        given: list[object] = pipeline.execute(raise_on_error)
        if self._used:
            given.pop()
            self._used.clear()
        return given

    def _load(self, data: object, limit_bytes: int) -> dict[str, Tensor]:
        """The tensors in these bytes; none where they are too many, no plain safetensors, or of another dtype."""
        if not isinstance(data, bytes) or not 8 < len(data) <= limit_bytes:
            return {}
        if int.from_bytes(data[:8], "little") > HEADER_BYTES:
            return {}
        try:
            tensors = dict(load(data))
        except (
            SafetensorError,
            KeyError,
            ValueError,
            TypeError,
            RuntimeError,
        ):  # a dtype torch lacks, a size it refuses
            return {}
        return tensors if all(tensor.dtype == self._dtype for tensor in tensors.values()) else {}

    def _embeds_key(self, text: str) -> str:
        digest = hashlib.sha256(f"{self._scope}\n{text}".encode()).hexdigest()
        return f"kontext:embeds:{digest}"


def _key(job: Claimed, stage: Stage) -> str:
    return handoff_key(job.batch_id, job.id, stage)
