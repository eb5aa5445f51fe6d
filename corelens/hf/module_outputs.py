"""Outputs of modules kept from one pass and given again in another, so that the modules need not run."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

RecordedOutputs = dict[nn.Module, list[Any]]
"""What each module returned, call by call."""


class StopForward(Exception):
    """Ends a pass of which nothing more is wanted."""


def allow_stopping(module: nn.Module, handle: RemovableHandle, inputs: Mapping[str, Any]) -> Any:
    """Runs a module until the hook of a handle stops it, removes the hook, and returns what it stopped with."""
    try:
        module(**inputs)
    except StopForward as stopped:
        return stopped.args[0]
    finally:
        handle.remove()
    raise RuntimeError(f"{type(module).__name__} did not run its decoder.")


def vision_towers(hf_model: PreTrainedModel) -> list[nn.Module]:
    """The vision tower, if the family has one that transformers knows of and that is not the decoder's home, too."""
    tower = hf_model.get_encoder("image")
    return [] if {hf_model, hf_model.get_decoder()} & {*tower.modules()} else [tower]


@contextmanager
def cached_vision(hf_model: PreTrainedModel) -> Iterator[None]:
    """Lets the vision tower, given the same again, return the same again instead of running, until the block ends.

    For passes over the same media that differ in the decoder alone.
    """
    found = vision_towers(hf_model)
    with _forwards({tower: _memoized(tower.forward) for tower in found}):
        yield


def _memoized(run: Callable[..., Any]) -> Callable[..., Any]:
    calls: list[tuple[Any, Any]] = []

    def remembered(*args: Any, **kwargs: Any) -> Any:
        given = tree_flatten((args, kwargs))
        for before, output in calls:
            if _same(before, given):
                return _copied(output)
        calls.append((given, run(*args, **kwargs)))
        return _copied(calls[-1][1])

    return remembered


def _same(one: tuple[list[Any], Any], other: tuple[list[Any], Any]) -> bool:
    """Whether flattened arguments are equal."""

    def equal(a: Any, b: Any) -> bool:
        if isinstance(a, Tensor) and isinstance(b, Tensor):
            return a.dtype == b.dtype and torch.equal(a, b)
        return type(a) is type(b) and a == b

    return one[1] == other[1] and all(map(equal, one[0], other[0]))


@contextmanager
def record_outputs(modules: Iterable[nn.Module]) -> Iterator[RecordedOutputs]:
    """Keeps what modules return until the block ends."""
    recorded: RecordedOutputs = {}

    def keep(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        recorded.setdefault(module, []).append(_copied(output))

    handles = [module.register_forward_hook(keep) for module in modules]
    try:
        yield recorded
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def replay_outputs(recorded: Mapping[nn.Module, list[Any]]) -> Iterator[None]:
    """Lets modules return what was recorded instead of running, call by call, until the block ends."""
    with _forwards({module: _call_key(iter(outputs)) for module, outputs in recorded.items()}):
        yield


def _call_key(outputs: Iterator[Any]) -> Callable[..., Any]:
    return lambda *args, **kwargs: _copied(next(outputs))


@contextmanager
def _forwards(instead: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Puts other functions in the place of modules' own until the block ends."""
    before = {module: module.__dict__.get("forward") for module in instead}
    for module, forward in instead.items():
        module.forward = forward
    try:
        yield
    finally:
        for module, forward in before.items():
            if forward is None:
                del module.forward
            else:
                module.forward = forward


def _copied(output: Any) -> Any:
    """With tensors of its own, since Hugging Face may change what it is given in place."""
    return tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, output)
