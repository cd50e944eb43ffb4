"""Attention written out, for training in bfloat16 on a CPU.

torch's fused kernel is made for inference there: its backward pass takes three times the forward's. Two products and a
softmax go back in half to a quarter of its time, the more so the shorter the
sequence. Refuses masks, which FLUX does not use.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """softmax(Q·Kᵀ / √D)·V. Shapes: (B, heads, S, D) thrice -> (B, heads, S, D), in the inputs' dtype."""
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    return torch.softmax(scores, dim=-1) @ value


class WrittenOut(TorchFunctionMode):  # type: ignore[misc]
    """While active, attention without a mask is `attend`, whoever calls it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if func is scaled_dot_product_attention and given.get("attn_mask") is None and not given.get("is_causal"):
            names = ("query", "key", "value")
            return attend(*args[:3], *(given[name] for name in names[len(args[:3]) :]))
        return func(*args, **given)
