"""Threads and calls past corelens: hooks act in the thread that connected them, and only in passes through corelens."""

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from corelens.errors import docs_link
from corelens.hf.projections import OF_A_HOOK_POINT

_LOCKS: WeakKeyDictionary[PreTrainedModel, Any] = WeakKeyDictionary()


class _Passes(threading.local):
    """Passes through corelens that this thread is in, by model."""

    def __init__(self) -> None:
        self.of = Counter[int]()


_PASSES = _Passes()


def lock_of(hf_model: PreTrainedModel) -> Any:
    """Lock by which one pass at a time runs through a model, also if it is wrapped twice: hooked passes switch its
    attention."""
    return _LOCKS.setdefault(hf_model, threading.RLock())


def in_this_thread(hook: Callable[..., Any]) -> Callable[..., Any]:
    """A PyTorch hook that acts in the present thread alone: another thread may run the same modules meanwhile."""
    owner = threading.get_ident()

    def call(*args: Any, **kwargs: Any) -> Any:
        return hook(*args, **kwargs) if threading.get_ident() == owner else None

    # Weights that a hook reads are those that act without it.
    setattr(call, OF_A_HOOK_POINT, True)
    return call


@contextmanager
def pass_through_corelens(hf_model: PreTrainedModel) -> Iterator[None]:
    """Let `RawCallGuard` accept calls of a model by this thread until the block ends."""
    _PASSES.of[id(hf_model)] += 1
    try:
        yield
    finally:
        _PASSES.of[id(hf_model)] -= 1


class RawCallGuard:
    """Refuses calls of a Hugging Face model itself while hooks wait, since these would run without them."""

    def __init__(self, hf_model: PreTrainedModel, parts: Iterable[nn.Module]) -> None:
        """Guard a model.

        Args:
            hf_model: The model.
            parts: Parts of it that may be called by themselves.
        """
        self.hf_model = hf_model
        self.modules = dict.fromkeys((hf_model, *parts))
        self._threads: set[int] = set()
        self._handles: list[RemovableHandle] = []

    def update(self, hooks_wait: bool) -> None:
        """Refuse calls by this thread from now on if hooks wait, and none by any thread if no hook is left."""
        if not hooks_wait:
            self._threads.clear()
            while self._handles:
                self._handles.pop().remove()
            return
        self._threads.add(threading.get_ident())
        if not self._handles:
            self._handles = [module.register_forward_pre_hook(self._check) for module in self.modules]

    def _check(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Other threads run their own passes, which no hook changes."""
        if threading.get_ident() in self._threads and not _PASSES.of[id(self.hf_model)]:
            raise RuntimeError(
                f"hooks are waiting, and {type(module).__name__} was called past them, so that they would not act: "
                f"call model(inputs) or model.generate(inputs), not model.hf_model, or end the block first. "
                f"{docs_link('raw-call')}"
            )
