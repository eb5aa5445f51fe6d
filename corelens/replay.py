"""Outputs of modules kept from one pass and given again in another, so that the modules need not run."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_map
from torch.utils.hooks import RemovableHandle

Recorded = dict[nn.Module, list[Any]]
"""What each module returned, call by call."""


class Stop(Exception):
    """Ends a pass of which nothing more is wanted."""


def until_stopped(module: nn.Module, handle: RemovableHandle, inputs: Mapping[str, Any]) -> Any:
    """Runs a module until the hook of a handle stops it, removes the hook, and returns what it stopped with."""
    try:
        module(**inputs)
    except Stop as stopped:
        return stopped.args[0]
    finally:
        handle.remove()
    raise RuntimeError(f"{type(module).__name__} did not run its decoder.")


@contextmanager
def recording(modules: Iterable[nn.Module]) -> Iterator[Recorded]:
    """Keeps what modules return until the block ends."""
    recorded: Recorded = {}

    def keep(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        recorded.setdefault(module, []).append(_copied(output))

    handles = [module.register_forward_hook(keep) for module in modules]
    try:
        yield recorded
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def replaying(recorded: Mapping[nn.Module, list[Any]]) -> Iterator[None]:
    """Lets modules return what was recorded instead of running, call by call, until the block ends."""
    before = {module: module.__dict__.get("forward") for module in recorded}
    for module, outputs in recorded.items():
        # Hugging Face may change what it is given in place.
        module.forward = _given(iter(outputs))
    try:
        yield
    finally:
        for module, forward in before.items():
            if forward is None:
                del module.forward
            else:
                module.forward = forward


def _given(outputs: Iterator[Any]) -> Any:
    return lambda *args, **kwargs: _copied(next(outputs))


def _copied(output: Any) -> Any:
    return tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, output)
