"""A training run on disk: its last state, and the averaged weights.

Owns atomic saving and exact resuming. A run needs no saved random state: everything random in a step is drawn from a
generator seeded by (run seed, step), so the state is the trained weights, their averages, the optimizer and the step.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping
from math import isfinite
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

STATE_NAME = "state.pt"
Terms = Mapping[str, Any]
"""What trained weights mean nothing without, by name: `base`, the revision under a LoRA, and the LoRA's own."""
NO_TERMS: Terms = MappingProxyType({})
SETTINGS = ("betas", "weight_decay")
"""Of an optimizer's groups; its state holds the old ones, but a configuration's count."""


class DivergedError(ValueError):
    """The loss or its gradient is no number any more; the last saved state is from before."""


def check_finite(step: int, folder: Path, remedy: str, **values: float) -> None:
    """Raise DivergedError when one of what step `step` gave is no number; to be asked before a weight moves."""
    for name, value in values.items():
        if not isfinite(value):
            raise DivergedError(
                f"the {name} of step {step + 1} is {value}; the state in {folder} is from before: {remedy}"
            )


def trained_weights(model: Any) -> dict[str, Tensor]:
    """The parameters that training changes, by name."""
    return {name: value for name, value in model.named_parameters() if value.requires_grad}


class Average:
    """An exponential moving average of a model's trained weights; it follows closely at first."""

    def __init__(self, model: Any, decay: float) -> None:
        self.decay = decay
        self.shadow = {name: value.detach().clone().float() for name, value in trained_weights(model).items()}

    def update(self, model: Any, step: int) -> None:
        """Move towards the model after the step of that number (from 0)."""
        move = get_ema_multi_avg_fn(min(self.decay, (1 + step) / (10 + step)))
        values = [value.detach().float() for value in trained_weights(model).values()]
        move(list(self.shadow.values()), values, step)

    @contextlib.contextmanager
    def applied(self, model: Any) -> Iterator[None]:
        """The model with its averaged weights, in evaluation mode, for a while."""
        weights = trained_weights(model)
        kept = {name: value.detach().clone() for name, value in weights.items()}
        training = model.training
        copy_weights(model, self.shadow)
        model.eval()
        try:
            yield
        finally:
            copy_weights(model, kept)
            model.train(training)


def copy_weights(model: Any, weights: dict[str, Tensor]) -> None:
    """Overwrite the model's parameters of these names. Raises ValueError when a name or shape does not fit."""
    known = dict(model.named_parameters())
    for name, value in weights.items():
        if name not in known or known[name].shape != value.shape:
            raise ValueError(
                f"the run's weight {name!r} {tuple(value.shape)} does not fit the model; was its config changed?"
            )
        known[name].data.copy_(value)


def step_generator(seed: int, step: int, device: torch.device | str = "cpu") -> torch.Generator:
    """The generator of everything random in one step that is drawn on that device."""
    return torch.Generator(device).manual_seed((seed * 1_000_003 + step) % (2**63))


def save_state(folder: Path, step: int, model: Any, average: Average, optimizer: Any, terms: Terms = NO_TERMS) -> None:
    """Write the state after `step` finished steps; the previous one stays whole until the new one is."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {
        "step": step,
        "model": {name: value.detach() for name, value in trained_weights(model).items()},
        "average": average.shadow,
        "optimizer": optimizer.state_dict(),
        **terms,
    }
    partial = folder / f".{STATE_NAME}.{os.getpid()}"
    try:
        torch.save(state, partial)
        partial.replace(folder / STATE_NAME)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def load_state(folder: Path, model: Any, average: Average, optimizer: Any, terms: Terms = NO_TERMS) -> int:
    """Restore a run, and clear what killed saves left; gives the finished steps, 0 when the folder holds no state.

    Raises ValueError when the state is another model's or optimizer's, or was trained on other terms.
    """
    path = folder / STATE_NAME
    for left in folder.glob(f".{STATE_NAME}.*"):
        left.unlink(missing_ok=True)
    if not path.exists():
        return 0
    state = torch.load(path, map_location="cpu", weights_only=True)
    _check_terms(path, state, terms)
    copy_weights(model, state["model"])
    if state["average"].keys() != average.shadow.keys():
        raise ValueError(f"{path} holds other weights than this run trains; name another `out`")
    for name, value in average.shadow.items():
        value.copy_(state["average"][name])
    own = [{name: group[name] for name in SETTINGS if name in group} for group in optimizer.param_groups]
    try:
        optimizer.load_state_dict(state["optimizer"])
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"{path} was trained with another `optimizer` than this run's; go on with that, or name another `out`"
        ) from error
    for group, settings in zip(optimizer.param_groups, own, strict=True):
        group.update(settings)
    return int(state["step"])


def _check_terms(path: Path, state: Terms, terms: Terms) -> None:
    for name, value in terms.items():
        found = state.get(name, value)  # a state from before a term was kept is taken as it is
        if found != value:
            told = "checkpoint revision" if name == "base" else name
            raise ValueError(
                f"{path} was trained with {told} {found or 'unknown'}, not {value}; go on with that, or name another "
                "`out`"
            )


def read_average(folder: Path, terms: Terms = NO_TERMS) -> tuple[dict[str, Tensor], int]:
    """The averaged weights of a run's last state, and its steps.

    Raises FileNotFoundError without a state, ValueError for one that was trained on other terms.
    """
    path = folder / STATE_NAME
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: train first")
    state = torch.load(path, map_location="cpu", weights_only=True)
    _check_terms(path, state, terms)
    return dict(state["average"]), int(state["step"])
