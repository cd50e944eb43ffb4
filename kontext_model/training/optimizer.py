"""Which optimizer moves which weights.

`adamw` moves all. `muon` (Jordan et al., 2024) moves the matrices of the blocks along their orthogonalized momentum, at
the step size that AdamW would have, so that one rate fits both (Liu et al., "Muon is Scalable for LLM Training", 2025);
what it is not made for, embedders, modulations, the head and vectors, stays with AdamW.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.optim import AdamW, Muon, Optimizer

OPTIMIZERS = ("adamw", "muon")


def make_optimizer(
    name: str, weights: Mapping[str, Tensor], betas: tuple[float, ...], weight_decay: float, fused: bool = False
) -> "Optimizer | Together":
    """An optimizer of the weights; vectors do not decay. The rate is for the caller to set in `param_groups`."""
    blocks = [value for key, value in weights.items() if name == "muon" and _is_block_matrix(key, value)]
    taken = {id(value) for value in blocks}
    rest = [value for value in weights.values() if id(value) not in taken]
    groups = [
        {"params": [value for value in rest if value.dim() >= 2]},
        {"params": [value for value in rest if value.dim() < 2], "weight_decay": 0.0},
    ]
    adamw = AdamW(groups, lr=1e-3, betas=(betas[0], betas[1]), weight_decay=weight_decay, fused=fused)
    if not blocks:
        return adamw
    return Together(Muon(blocks, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"), adamw)


def _is_block_matrix(key: str, value: Tensor) -> bool:
    """Attention and feed-forward weights. A block's `norm` is its modulation, of which all blocks are fed the same."""
    return value.dim() == 2 and "transformer_blocks." in key and "norm" not in key


class Together:
    """Several optimizers, each with weights of its own, that step as one."""

    def __init__(self, *members: Optimizer) -> None:
        self.members = members

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for member in self.members for group in member.param_groups]

    def step(self) -> None:
        for member in self.members:
            member.step()

    def zero_grad(self) -> None:
        for member in self.members:
            member.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        return {"members": [member.state_dict() for member in self.members]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises ValueError for the state of another optimizer."""
        states = state.get("members", ())
        if len(states) != len(self.members):
            raise ValueError("the state is another optimizer's")
        for member, each in zip(self.members, states, strict=True):
            member.load_state_dict(each)
