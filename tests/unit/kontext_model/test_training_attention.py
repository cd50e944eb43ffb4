"""Attention written out equals torch's, forward and backward, and takes its place only while asked to."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from kontext_model.training import attention
from kontext_model.training.attention import WrittenOut, attend, attention_to_train


def _tensors() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    return [torch.randn(2, 3, 10, 8, generator=generator).requires_grad_() for _ in range(3)]


def test_written_out_attention_equals_torchs_and_so_do_its_gradients() -> None:
    ours, theirs = _tensors(), _tensors()
    (attend(*ours) ** 2).sum().backward()
    (scaled_dot_product_attention(*theirs) ** 2).sum().backward()
    for one, other in zip(ours, theirs, strict=True):
        assert one.grad is not None and other.grad is not None
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-5)


def test_it_takes_torchs_place_while_active(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def counted(*tensors: torch.Tensor) -> torch.Tensor:
        calls.append(len(tensors))
        return attend(*tensors)

    monkeypatch.setattr(attention, "attend", counted)
    query, key, value = _tensors()
    with WrittenOut():
        scaled_dot_product_attention(query, key=key, value=value)
        scaled_dot_product_attention(query, key, value, attn_mask=torch.ones(10, 10, dtype=torch.bool))
        scaled_dot_product_attention(query, key, value, is_causal=True)
    scaled_dot_product_attention(query, key, value)
    assert calls == [3]


def test_a_gpu_trains_without_cudnns_attention() -> None:
    with attention_to_train(torch.device("cuda")):
        assert not torch.backends.cuda.cudnn_sdp_enabled() and torch.backends.cuda.flash_sdp_enabled()
    assert torch.backends.cuda.cudnn_sdp_enabled()
    assert isinstance(attention_to_train(torch.device("cpu")), WrittenOut)
