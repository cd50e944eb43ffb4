"""What travels between stages: tensors as safetensors bytes in Redis, with a time to live.

Owns the keys and the checks of what comes back. A handoff that is gone, or is not what was expected, is reported as
missing and its job is encoded again. Refuses pickles: bytes from Redis are never trusted to be more than tensors.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence

import redis
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from kontext_model.text import TextEmbeds
from orchestrator.state.queries import Claimed
from orchestrator.state.transitions import Stage


class Handoffs:
    """Latents by job and stage, text embeds by text and checkpoint."""

    def __init__(self, cache: redis.Redis, *, ttl_s: int, scope: str) -> None:
        """`scope` names checkpoint revision and numerics: embeds of another model are never met."""
        self._cache, self._ttl_s, self._scope = cache, ttl_s, scope
        self._used: list[str] = []
        self._latest: dict[str, Tensor] = {}

    def put(self, stage: Stage, latents: Mapping[Claimed, Tensor]) -> None:
        """Store what `stage` made of each job, (S, 64), in one round trip."""
        with self._cache.pipeline(transaction=False) as pipeline:
            if self._used:
                pipeline.unlink(*self._used)
            for job, tensor in latents.items():
                pipeline.set(_key(job, stage), save({"latents": tensor.contiguous()}), ex=self._ttl_s)
            pipeline.execute()
        self._used.clear()
        # A worker of several stages goes on with what it has just put: that is not fetched back.
        self._latest = {_key(job, stage): tensor for job, tensor in latents.items()}

    def take(self, stage: Stage, unit: Sequence[Claimed], shape: tuple[int, int]) -> dict[int, Tensor]:
        """What `stage` left for these jobs, by job id; without those that are gone or have another shape."""
        keys = {job.id: _key(job, stage) for job in unit}
        taken = {id_: self._latest[key] for id_, key in keys.items() if key in self._latest}
        asked = [id_ for id_ in keys if id_ not in taken]
        for id_, data in zip(asked, self._cache.mget([keys[id_] for id_ in asked]) if asked else [], strict=True):
            tensors = _load(data)
            if "latents" in tensors and tuple(tensors["latents"].shape) == shape:
                taken[id_] = tensors["latents"]
        return taken

    def delete(self, stage: Stage, unit: Iterable[Claimed]) -> None:
        """Forget what `stage` left for jobs whose next stage has been committed.

        The deletion rides with the next `put`; should this process end before, the time to live does it.
        """
        self._used += [_key(job, stage) for job in unit]

    def renew_embeds(self, texts: Sequence[str]) -> set[str]:
        """Prolong the life of stored embeds; gives the texts that have none."""
        with self._cache.pipeline(transaction=False) as pipeline:
            for text in texts:
                pipeline.expire(self._embeds_key(text), self._ttl_s)
            renewed = pipeline.execute()
        return {text for text, known in zip(texts, renewed, strict=True) if not known}

    def put_embeds(self, text: str, embeds: TextEmbeds) -> None:
        """Store one text's embeds, shared by all jobs that ask for it."""
        data = save({"pooled": embeds.pooled.contiguous(), "sequence": embeds.sequence.contiguous()})
        self._cache.set(self._embeds_key(text), data, ex=self._ttl_s)

    def take_embeds(self, text: str) -> TextEmbeds | None:
        """One text's embeds, or None when they are gone."""
        tensors = _load(self._cache.get(self._embeds_key(text)))
        if tensors.keys() != {"pooled", "sequence"} or tensors["pooled"].ndim != 2 or tensors["sequence"].ndim != 3:
            return None
        return TextEmbeds(tensors["pooled"], tensors["sequence"])

    def _embeds_key(self, text: str) -> str:
        digest = hashlib.sha256(f"{self._scope}\n{text}".encode()).hexdigest()
        return f"kontext:embeds:{digest}"


def _key(job: Claimed, stage: Stage) -> str:
    # The batch's id is unique over all databases that may share a cache, a job's number is not.
    return f"kontext:handoff:{job.batch_id}:{job.id}:{stage.value}"


def _load(data: object) -> dict[str, Tensor]:
    if not isinstance(data, bytes):
        return {}
    try:
        return dict(load(data))
    except SafetensorError:
        return {}
