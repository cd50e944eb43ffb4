"""Which attention trains.

On a CPU in bfloat16 it is written out: torch's fused kernel is made for inference there, its backward pass takes three
times the forward's, and two products and a softmax go back in half to a quarter of its time, the more so the shorter
the sequence. On a GPU it is any of torch's but cuDNN's. Refuses masks, which FLUX does not use.
"""

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

SOUND = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""All but cuDNN's, which torch takes first on Hopper: its backward pass gives NaN there, or ends the process, in
bfloat16 at many lengths. Seen with torch 2.11 on an H200; pytorch/pytorch#196678."""


def attention_to_train(device: torch.device) -> AbstractContextManager[Any]:
    """While active, forward passes on the device choose attention whose backward pass is fast and sound."""
    return WrittenOut() if device.type == "cpu" else sdpa_kernel(SOUND)


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
