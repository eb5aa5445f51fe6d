"""QueryKeyMap: the queries and keys that one attention module makes of any stream, by the module's own code.

A pass gives the arguments of the module's call, and the scales by which its norms of queries and keys divide. With
these scales held, projections, norms and rotation together are one affine map, whatever the architecture: it is applied
by calling the module again with another stream, up to the point where it would call attention.

    x, as the module reads it  ->  projections, norms at their scales, rotation  ->  query, key
"""

import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn

from jaxtyping import Float
from torch import Tensor, nn
from transformers import Cache

from corelens.hf.layers import AttentionModule
from corelens.hf.module_outputs import StopForward
from corelens.hf.norms import NormWeights, norm_weights
from corelens.hooks.attention import AttentionCall
from corelens.hooks.connect import attention_function_names
from corelens.hooks.root import HookedLayers
from corelens.hooks.taps import route_attention
from corelens.hooks.threads import in_this_thread, lock_of


@dataclass
class ModuleCall:
    """Arguments of a module's call, as a pass made it."""

    bound: inspect.BoundArguments | None = None
    """None before the pass."""

    @property
    def stream(self) -> Float[Tensor, "batch position d_model"]:
        """The module's first argument: what it reads."""
        assert self.bound is not None
        return self.bound.args[0] if self.bound.args else next(iter(self.bound.kwargs.values()))

    def repeat(self, module: nn.Module, stream: Float[Tensor, "batch position d_model"]) -> None:
        """Call the module with another stream, and without a cache of keys."""
        assert self.bound is not None
        first, *_ = self.bound.arguments
        others = {name: None if isinstance(value, Cache) else value for name, value in self.bound.arguments.items()}
        bound = inspect.BoundArguments(self.bound.signature, {**others, first: stream})  # pyright: ignore
        module(*bound.args, **bound.kwargs)


@contextmanager
def record_call(module: nn.Module) -> Iterator[ModuleCall]:
    """Record the arguments of a module's call in a pass, until the block ends."""
    call = ModuleCall()
    signature = inspect.signature(module.forward)

    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call.bound = signature.bind(*args, **kwargs)

    handle = module.register_forward_pre_hook(in_this_thread(record), with_kwargs=True)
    try:
        yield call
    finally:
        handle.remove()


class _StopAtAttention:
    """Stands for attention: ends the call of the module with the arguments of its attention."""

    def attend(self, call: AttentionCall) -> NoReturn:
        raise StopForward(call)


@dataclass
class _HeldNorm:
    """A norm whose scales are those of its first calls; a PyTorch hook."""

    weights: NormWeights | None = None
    scales: list[Tensor] = field(default_factory=list)
    """Scale of each call of the norm in one call of the module: one norm may serve queries and keys."""

    next_call: int | None = None
    """Number of the next call; None while scales are measured."""

    def __call__(self, norm: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        inputs = args[0]
        if self.weights is None:
            self.weights = _weights_of(norm, inputs)
        if self.next_call is None:
            self.scales.append(self.weights.scale(inputs))
            return None
        scale = self.scales[self.next_call]
        self.next_call = (self.next_call + 1) % len(self.scales)
        return (self.weights.at_scale(inputs, scale) + self.weights.bias).to(output)


def _weights_of(norm: nn.Module, inputs: Tensor) -> NormWeights:
    name = f"{type(norm).__name__} of queries or keys"
    if any(parameter.ndim > 1 for parameter in norm.parameters()):
        raise ValueError(f"{name} has a gain of its own for every head, which is not known here.")
    return norm_weights(norm, inputs.shape[-1], inputs.dtype, name)


class QueryKeyMap:
    """Queries and keys that an attention module makes of any stream, its norms at the scales of one pass."""

    def __init__(self, model: HookedLayers, attention: AttentionModule, call: ModuleCall) -> None:
        """Measure scales of norms.

        Args:
            model: The model.
            attention: One of its attention modules.
            call: Its call in a pass.

        Raises:
            ValueError: If a norm of queries or keys is neither a LayerNorm nor an RMSNorm.
        """
        self._model, self._attention, self._call = model, attention, call
        module = attention.module
        self._norms = {
            norm: _HeldNorm()
            for norm in module.modules()
            if norm is not module and "norm" in type(norm).__name__.lower()
        }
        self.measured = self(call.stream)
        """Attention's arguments in that pass; positions from a cache are not among the keys."""

        for held in self._norms.values():
            held.next_call = 0

    def __call__(self, stream: Float[Tensor, "batch position d_model"]) -> AttentionCall:
        """Attention's arguments if the module reads another stream of the same positions."""
        with ExitStack() as stack:
            # Hooks of the user acted in the pass that was recorded, and do not act again.
            stack.enter_context(lock_of(self._model.hf_model))
            names = attention_function_names(self._model.hf_model, [self._attention])
            stack.enter_context(route_attention({self._attention.module: _StopAtAttention()}, names))
            for norm, held in self._norms.items():
                stack.callback(norm.register_forward_hook(in_this_thread(held)).remove)
            try:
                self._call.repeat(self._attention.module, stream.to(self._call.stream))
            except StopForward as stopped:
                return stopped.args[0]
        raise RuntimeError(f"{type(self._attention.module).__name__} did not call attention.")
