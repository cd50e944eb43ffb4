"""What went into and came out of every module, and of the functions between modules.

Owns the recording: forward hooks on modules; torch's function mode for what no module does (joining, splitting,
attention); torch's counter for FLOPs. Keeps the tensors themselves, so that one can be followed to whatever took it:
made for the meta device, where a tensor costs nothing.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class Call:
    """One call of a module or function: its tensors by position (`0`, `0.1` inside a list) or name; FLOPs inside it."""

    maker: str
    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]
    flops: int = 0


@dataclass(frozen=True)
class _Frame:
    """A module, or a function of ours, that is running."""

    owner: str
    flops_before: int
    shows_functions: bool


class Recording:
    """Records while it is entered.

    Calls are found by owner (`transformer.proj_out`, `image.encode`) and, for a torch function inside it, its name.
    Torch functions are recorded in the modules named in `watched` and in functions of ours.
    """

    def __init__(self, models: Mapping[str, nn.Module], watched: frozenset[str]) -> None:
        self.models, self.watched = models, watched
        self._calls: dict[tuple[str, str], list[Call]] = defaultdict(list)
        self._frames: list[_Frame] = []
        self._exit = ExitStack()
        self._counter = FlopCounterMode(display=False)

    def __enter__(self) -> "Recording":
        for name, model in self.models.items():
            for path, module in model.named_modules(prefix=name):
                self._hook(path, module)
        self._exit.enter_context(self._counter)
        self._exit.enter_context(_FunctionMode(self))
        return self

    def __exit__(self, *failure: Any) -> None:
        self._exit.close()

    def run(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """Call a function of ours and record it, and every torch function in it, under `<module>.<name>`."""
        name = f"{function.__module__.rpartition('.')[2]}.{function.__name__}"
        self._begin(name, shows_functions=True)
        result = function(*arguments, **named)
        self._end(name, arguments, named, result)
        return result

    def find(self, owner: str, function: str = "", nth: int = 0) -> Call:
        """The nth call of the owner itself, or of a torch function in it. Raises LookupError: a class has changed."""
        found = self._calls.get((owner, function), [])
        if nth >= len(found):
            what = f"{function!r} in {owner!r}" if function else repr(owner)
            raise LookupError(f"the trace saw {len(found)} calls of {what}, not {nth + 1}: its class has changed")
        return found[nth]

    def find_user(self, tensor: Tensor, function: str) -> Call:
        """The first call of a torch function that took this very tensor. Raises LookupError."""
        for (_, name), calls in self._calls.items():
            for call in calls if name == function else ():
                if any(each is tensor for each in call.inputs.values()):
                    return call
        raise LookupError(f"the trace saw no {function!r} of a tensor of {list(tensor.shape)}: its class has changed")

    def record_function(self, function: Any, arguments: Any, named: Any, result: Any) -> None:
        """Called by the function mode for every torch function."""
        if self._frames and self._frames[-1].shows_functions:
            maker = str(resolve_name(function) or function.__name__).removeprefix("torch.nn.functional.")
            call = Call(maker, _list_inputs(arguments, named), dict(_walk(result)))
            self._calls[self._frames[-1].owner, function.__name__].append(call)

    def _hook(self, path: str, module: nn.Module) -> None:
        before = module.register_forward_pre_hook(lambda *_: self._begin(path, path in self.watched))
        after = module.register_forward_hook(
            lambda module, arguments, named, result: self._end(path, arguments, named, result, type(module).__name__),
            with_kwargs=True,
        )
        self._exit.callback(before.remove)
        self._exit.callback(after.remove)

    def _begin(self, owner: str, shows_functions: bool) -> None:
        self._frames.append(_Frame(owner, self._counter.get_total_flops(), shows_functions))

    def _end(self, owner: str, arguments: Any, named: Any, result: Any, maker: str = "") -> None:
        flops = self._counter.get_total_flops() - self._frames.pop().flops_before
        self._calls[owner, ""].append(Call(maker or owner, _list_inputs(arguments, named), dict(_walk(result)), flops))


class _FunctionMode(TorchFunctionMode):  # type: ignore[misc]
    def __init__(self, recording: Recording) -> None:
        super().__init__()
        self.recording = recording

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.recording.record_function(func, args, kwargs or {}, result)
        return result


def _list_inputs(arguments: Any, named: Any) -> dict[str, Tensor]:
    return dict(_walk(arguments)) | dict(_walk(named))


def _walk(value: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors in a value and their paths; a lone tensor is `0`."""
    if isinstance(value, Tensor):
        yield path or "0", value
        return
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, tuple | list) else ()
    for key, each in items:
        yield from _walk(each, f"{path}.{key}" if path else str(key))
