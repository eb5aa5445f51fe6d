"""Outputs of modules, recorded in one pass and replayed in another, so that the modules need not run again."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

RecordedOutputs = dict[nn.Module, list[Any]]
"""Outputs of each module, call by call."""


class StopForward(Exception):
    """Raised by a hook to end a pass early; carries the result."""


def allow_stopping(module: nn.Module, handle: RemovableHandle, inputs: Mapping[str, Any]) -> Any:
    """Run a module until a hook raises `StopForward`; remove the hook, and return what the exception carries."""
    try:
        module(**inputs)
    except StopForward as stopped:
        return stopped.args[0]
    finally:
        handle.remove()
    raise RuntimeError(f"{type(module).__name__} did not run its decoder.")


def vision_towers(hf_model: PreTrainedModel) -> list[nn.Module]:
    """The vision tower in a list; empty if transformers knows of none, or it contains the decoder."""
    tower = hf_model.get_encoder("image")
    return [] if {hf_model, hf_model.get_decoder()} & {*tower.modules()} else [tower]


@contextmanager
def cached_vision(hf_model: PreTrainedModel) -> Iterator[None]:
    """Cache the vision tower's outputs by its inputs until the block ends.

    For passes over the same media that differ in the decoder only.
    """
    with _forwards({tower: _memoized(tower.forward) for tower in vision_towers(hf_model)}):
        yield


def _memoized(forward: Callable[..., Any]) -> Callable[..., Any]:
    calls: list[tuple[Any, Any]] = []

    def cached_forward(*args: Any, **kwargs: Any) -> Any:
        arguments = tree_flatten((args, kwargs))
        for earlier_arguments, output in calls:
            if _same(earlier_arguments, arguments):
                return _copied(output)
        calls.append((arguments, forward(*args, **kwargs)))
        return _copied(calls[-1][1])

    return cached_forward


def _same(first: tuple[list[Any], Any], second: tuple[list[Any], Any]) -> bool:
    """True if flattened arguments are equal."""

    def equal(a: Any, b: Any) -> bool:
        if isinstance(a, Tensor) and isinstance(b, Tensor):
            return a.dtype == b.dtype and torch.equal(a, b)
        return type(a) is type(b) and a == b

    return first[1] == second[1] and all(map(equal, first[0], second[0]))


@contextmanager
def record_outputs(modules: Iterable[nn.Module]) -> Iterator[RecordedOutputs]:
    """Record what modules return until the block ends."""
    recorded: RecordedOutputs = {}

    def record(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        recorded.setdefault(module, []).append(_copied(output))

    handles = [module.register_forward_hook(record) for module in modules]
    try:
        yield recorded
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def replay_outputs(recorded: Mapping[nn.Module, list[Any]]) -> Iterator[None]:
    """Make modules return recorded outputs instead of running, call by call, until the block ends."""
    with _forwards({module: _replayed(iter(outputs)) for module, outputs in recorded.items()}):
        yield


def _replayed(outputs: Iterator[Any]) -> Callable[..., Any]:
    return lambda *args, **kwargs: _copied(next(outputs))


@contextmanager
def _forwards(functions: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Replace the forward functions of modules until the block ends."""
    previous = {module: module.__dict__.get("forward") for module in functions}
    for module, forward in functions.items():
        module.forward = forward
    try:
        yield
    finally:
        for module, forward in previous.items():
            if forward is None:
                del module.forward
            else:
                module.forward = forward


def _copied(output: Any) -> Any:
    """Clone the tensors of an output, since Hugging Face may change them in place."""
    return tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, output)
