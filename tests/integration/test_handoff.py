"""Handoffs: what goes in comes out, and forged bytes are a handoff that is missing."""

import dataclasses
import json
import struct
import tracemalloc
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import redis
import torch
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from safetensors.torch import save

from kontext_model.text import TextEmbeds
from orchestrator.state.queries import Claimed
from orchestrator.state.transitions import Stage
from workers.handoff import EMBEDS_BYTES, HEADER_BYTES, Handoffs

SHAPE = (4, 64)
JOB = Claimed(1, "b", 1, 1, "a", "a.jpg", "r", 0, "32x32", 0, 0, 0, None)
KEY = "kontext:handoff:b:1:encode"
TEXT = "a text"


@pytest.fixture
def cache(valkey_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(valkey_url) as client:
        yield client


@pytest.fixture
def handoffs(cache: redis.Redis) -> Handoffs:
    return Handoffs(cache, ttl_s=60, scope="test")


def forge(header: Mapping[str, Any] | bytes, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file by hand."""
    head = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(head) if length is None else length) + head + data


def tensor(dtype: str, shape: list[int], end: int) -> dict[str, Any]:
    return {"latents": {"dtype": dtype, "shape": shape, "data_offsets": [0, end]}}


def take(cache: redis.Redis, handoffs: Handoffs, data: bytes) -> Mapping[int, torch.Tensor]:
    cache.set(KEY, data)
    return handoffs.take(Stage.ENCODE, [JOB], SHAPE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_latents_come_back_as_they_went(cache: redis.Redis, handoffs: Handoffs, dtype: torch.dtype) -> None:
    latents = torch.randn(SHAPE).to(dtype)
    Handoffs(cache, ttl_s=60, scope="test", dtype=dtype).put(Stage.ENCODE, {JOB: latents})
    elsewhere = Handoffs(cache, ttl_s=60, scope="test", dtype=dtype)
    [taken] = elsewhere.take(Stage.ENCODE, [JOB], SHAPE).values()
    assert taken.dtype == dtype and torch.equal(taken, latents)
    assert 0 < cache.ttl(KEY) <= 60


def test_a_worker_that_only_takes_deletes_what_it_used_up(cache: redis.Redis, handoffs: Handoffs) -> None:
    later = dataclasses.replace(JOB, id=2)
    handoffs.put(Stage.SAMPLE, {JOB: torch.zeros(SHAPE), later: torch.zeros(SHAPE)})
    decoder = Handoffs(cache, ttl_s=60, scope="test")
    for job in (JOB, later):
        assert decoder.take(Stage.SAMPLE, [job], SHAPE).keys() == {job.id}
        decoder.delete(Stage.SAMPLE, [job])
    keys = [f"kontext:handoff:b:{job.id}:sample" for job in (JOB, later)]
    assert [cache.exists(key) for key in keys] == [0, 1], "the last one goes with the next unit"


def test_what_is_stored_again_is_not_deleted_as_used_up(cache: redis.Redis, handoffs: Handoffs) -> None:
    """A job that was cancelled and asked for again may be encoded by the worker that used its handoff up."""
    handoffs.put(Stage.ENCODE, {JOB: torch.zeros(SHAPE)})
    handoffs.delete(Stage.ENCODE, [JOB])
    handoffs.put(Stage.ENCODE, {JOB: torch.ones(SHAPE)})
    assert cache.exists(KEY)


def test_what_ended_jobs_left_is_forgotten_at_once(cache: redis.Redis, handoffs: Handoffs) -> None:
    handoffs.put(Stage.ENCODE, {JOB: torch.zeros(SHAPE)})
    handoffs.drop(Stage.ENCODE, [JOB])
    assert not cache.exists(KEY)
    with redis.Redis.from_url("redis://127.0.0.1:1") as away:
        Handoffs(away, ttl_s=60, scope="test").drop(Stage.ENCODE, [JOB])


def test_what_is_not_of_the_models_dtype_is_made_so_before_it_is_stored(cache: redis.Redis) -> None:
    latents = torch.randn(SHAPE)
    half = Handoffs(cache, ttl_s=60, scope="test", dtype=torch.bfloat16)
    half.put(Stage.ENCODE, {JOB: latents})
    half.put_embeds(TEXT, TextEmbeds(torch.randn(1, 8), torch.randn(1, 16, 8)))
    for handoffs in (half, Handoffs(cache, ttl_s=60, scope="test", dtype=torch.bfloat16)):
        [taken] = handoffs.take(Stage.ENCODE, [JOB], SHAPE).values()
        assert torch.equal(taken, latents.bfloat16())
    found = half.take_embeds(TEXT)
    assert found is not None and found.sequence.dtype == torch.bfloat16


def test_embeds_come_back_and_none_are_missing(cache: redis.Redis, handoffs: Handoffs) -> None:
    embeds = TextEmbeds(torch.randn(1, 8), torch.randn(1, 16, 8))
    assert handoffs.take_embeds(TEXT) is None
    handoffs.put_embeds(TEXT, embeds)
    found = handoffs.take_embeds(TEXT)
    assert found is not None and torch.equal(found.sequence, embeds.sequence)
    assert Handoffs(cache, ttl_s=60, scope="another model").take_embeds(TEXT) is None


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80\x04\x95pickle",
        forge(tensor("F16", [4, 64], 512), bytes(512)),
        forge(tensor("BF16", [4, 64], 512), bytes(512)),
        forge(tensor("F64", [4, 64], 2048), bytes(2048)),
        forge(tensor("I64", [4, 64], 2048), bytes(2048)),
        forge(tensor("BOOL", [4, 64], 256), bytes(256)),
        forge(tensor("C64", [4, 64], 2048), bytes(2048)),
        forge(tensor("F8_E4M3", [4, 64], 256), bytes(256)),
        forge(tensor("F99", [4, 64], 1024), bytes(1024)),
        forge(tensor("F4", [4, 64], 128), bytes(128)),  # safetensors knows it, torch does not
        forge(tensor("F32", [64, 4], 1024), bytes(1024)),
        forge(tensor("F32", [1, 4, 64], 1024), bytes(1024)),
        forge(tensor("F32", [256], 1024), bytes(1024)),
        forge(tensor("F32", [2**40, 64], 1024), bytes(1024)),
        forge(tensor("F32", [-4, -64], 1024), bytes(1024)),
        forge(tensor("F32", [4, 64], 1024), bytes(1000)),
        forge(tensor("F32", [4, 64], 1024), bytes(1100)),
        forge(tensor("F32", [4, 64], 2**63), bytes(1024)),
        forge({**tensor("F32", [4, 64], 1024), "more": tensor("F32", [0], 0)["latents"]}, bytes(1024)),
        forge({"other": tensor("F32", [4, 64], 1024)["latents"]}, bytes(1024)),
        forge(b"{}"),
        forge(b"[" * 1000),
        forge(b"{}", length=2**64 - 1),
        forge(b"{}", length=2**40),
        forge(b" " * (HEADER_BYTES + 1) + b"{}"),
    ],
)
def test_forged_latents_are_missing(cache: redis.Redis, handoffs: Handoffs, data: bytes) -> None:
    assert take(cache, handoffs, data) == {}


def test_embeds_under_a_giant_header_are_missing(cache: redis.Redis, handoffs: Handoffs) -> None:
    good = {"pooled": torch.zeros(1, 8), "sequence": torch.zeros(1, 16, 8)}
    for note, found in ((10, True), (1 << 20, False)):
        cache.set(handoffs._embeds_key(TEXT), save(good, metadata={"note": "x" * note}))
        assert (handoffs.take_embeds(TEXT) is not None) is found


def test_another_type_under_the_key_is_missing_too(cache: redis.Redis, handoffs: Handoffs) -> None:
    cache.lpush(KEY, "x")
    assert handoffs.take(Stage.ENCODE, [JOB], SHAPE) == {}


def test_a_giant_value_is_never_fetched(cache: redis.Redis, handoffs: Handoffs) -> None:
    cache.setrange(KEY, 200 << 20, b"x")
    tracemalloc.start()
    assert handoffs.take(Stage.ENCODE, [JOB], SHAPE) == {}
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 1 << 20


@pytest.mark.parametrize(
    "tensors",
    [
        {"pooled": torch.zeros(1, 8)},
        {"pooled": torch.zeros(8), "sequence": torch.zeros(1, 16, 8)},
        {"pooled": torch.zeros(1, 8), "sequence": torch.zeros(16, 8)},
        {"pooled": torch.zeros(2, 8), "sequence": torch.zeros(2, 16, 8)},
        {"pooled": torch.zeros(1, 8), "sequence": torch.zeros(1, 16, 8, dtype=torch.int64)},
        {"pooled": torch.zeros(1, 8).half(), "sequence": torch.zeros(1, 16, 8).half()},
        {"pooled": torch.zeros(1, 8), "sequence": torch.zeros(1, 16, 8), "more": torch.zeros(1)},
        {"pooled": torch.zeros(1, 8), "sequence": torch.zeros(1, 1, EMBEDS_BYTES // 4)},
    ],
)
def test_forged_embeds_are_missing(cache: redis.Redis, handoffs: Handoffs, tensors: Mapping[str, torch.Tensor]) -> None:
    cache.set(handoffs._embeds_key(TEXT), save(dict(tensors)))
    assert handoffs.take_embeds(TEXT) is None


@hypothesis_settings(max_examples=300, suppress_health_check=list(HealthCheck))
@given(
    st.one_of(
        st.binary(max_size=400),
        st.builds(
            lambda dtype, shape, end, data, more: forge(
                {"latents": {"dtype": dtype, "shape": shape, "data_offsets": [0, end]}, **more}, data
            ),
            st.sampled_from(["F32", "F16", "BF16", "F64", "I8", "F8_E5M2", "F4", "F6_E2M3", "F8_E8M0", "U64", "x"]),
            st.lists(st.sampled_from([-1, 0, 1, 4, 64, 2**31, 2**62, 2**64]), max_size=4),
            st.sampled_from([0, 1, 256, 512, 1024, 2**40, 2**64 - 1]),
            st.sampled_from([b"", bytes(256), bytes(512), bytes(1024)]),
            st.dictionaries(st.sampled_from(["__metadata__", "latents", ""]), st.none() | st.integers(), max_size=2),
        ),
    )
)
def test_whatever_lies_in_redis_is_latents_or_missing(data: bytes) -> None:
    limit_bytes = 8 + HEADER_BYTES + 1024
    for found in Handoffs(redis.Redis(), ttl_s=60, scope="test")._load(data, limit_bytes).values():
        assert found.dtype == torch.float32
        assert found.numel() * found.itemsize <= limit_bytes
