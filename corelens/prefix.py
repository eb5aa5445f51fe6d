"""The part of a prompt that comes before the question, computed once and asked many times."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from corelens.replay import Recorded
from corelens.tokens import TokenMap


@dataclass(frozen=True, eq=False)
class Prefix:
    """Keys and values of the first positions of a batch of prompts; see `HookedMLLM.prefix`."""

    length: int
    """How many positions, padding included."""

    inputs: Mapping[str, Any] = field(repr=False)
    """The whole inputs that it was made of."""

    cache: DynamicCache = field(repr=False)
    position_ids: Int[Tensor, "*rest"] | None = field(repr=False)
    """What the decoder was told of positions; None if nothing."""

    seen: Recorded = field(repr=False)
    """What the vision tower made of the pictures."""

    functions: tuple[Callable[..., Any], ...] = field(repr=False)
    """The hook functions that acted while it was made."""

    @property
    def n_samples(self) -> int:
        return len(self.inputs["input_ids"])

    def check(self, inputs: Mapping[str, Any]) -> None:
        """Raises a ValueError if inputs begin with something else."""
        length = self.length
        for name in sorted({*_compared(self.inputs), *_compared(inputs)}):
            own, other = self.inputs.get(name), inputs.get(name)
            if own is other:
                continue
            if own is not None and _by_position(name, own, self.inputs):
                own, other = own[:, :length], None if other is None else other[:, :length]
            if own is None or other is None or not torch.equal(own, other):
                raise ValueError(
                    f"the prefix was made of other inputs: `{name}` differs in the first {length} positions. Pictures "
                    f"and all that comes before the question must be the same."
                )
        if (n := inputs["input_ids"].shape[1]) <= length:
            raise ValueError(f"the prefix covers all {n} positions of the inputs: nothing is left to compute.")

    def lent(self, times: int = 1) -> DynamicCache:
        """The cache for one pass that adds nothing to it, with every sample repeated some times.

        Repetitions of one layer exist only while that layer runs.
        """
        lent = copy.copy(self.cache)
        lent.layers = [
            (_lent if _grows_anew(layer) else _repeated)(layer, self.n_samples, times) for layer in lent.layers
        ]
        return lent

    def copied(self, times: int) -> DynamicCache:
        """The cache for generation, which grows on its own, with every sample repeated some times."""
        copied = copy.copy(self.cache)
        copied.layers = [_repeated(layer, self.n_samples, times) for layer in copied.layers]
        return copied


def head_of(inputs: Mapping[str, Any], length: int) -> dict[str, Any]:
    """Inputs of which only the first positions are left, with all of the media."""
    return {name: value[:, :length] if _by_position(name, value, inputs) else value for name, value in inputs.items()}


def without_media(inputs: Mapping[str, Any], position_ids: Int[Tensor, "*rest"] | None) -> dict[str, Any]:
    """Inputs whose media are in a cache; positions are said, since they depend on media."""
    kept = {name: value for name, value in inputs.items() if not isinstance(value, Tensor)}
    kept |= {name: inputs[name] for name in ("input_ids", "attention_mask") if name in inputs}
    return kept if position_ids is None else kept | {"position_ids": position_ids}


def rest_of(inputs: Mapping[str, Any], length: int, times: int = 1) -> dict[str, Any]:
    """Inputs of which the first positions are in a cache, with every sample repeated some times."""
    rest = dict(inputs) | {"input_ids": inputs["input_ids"][:, length:].repeat_interleave(times, 0)}
    if "attention_mask" in inputs:
        rest["attention_mask"] = inputs["attention_mask"].repeat_interleave(times, 0)
    if "position_ids" in inputs:
        positions = inputs["position_ids"][..., length:]
        # The batch is the axis before the last; one row may stand for all samples.
        rest["position_ids"] = positions if positions.shape[-2] == 1 else positions.repeat_interleave(times, -2)
    return rest


def length_before_question(tokens: TokenMap) -> int:
    """How many positions come before the first question of a batch.

    Raises:
        ValueError: If there is none, or if a picture or video stands after it.
    """
    length = int(tokens.question.any(0).nonzero()[0]) if tokens.question.any() else 0
    if not length:
        raise ValueError("no position comes before the question: there is no prefix to share.")
    if (tokens.image | tokens.video)[:, length:].any():
        raise ValueError(
            f"a picture or video stands after position {length}, where the first question begins, so that it is no "
            f"part of the prefix. Give pictures before the question, or say how many positions: prefix(inputs, until)."
        )
    return length


def _compared(inputs: Mapping[str, Any]) -> list[str]:
    return [n for n, value in inputs.items() if isinstance(value, Tensor) and n not in ("position_ids", "labels")]


def _by_position(name: str, value: Any, inputs: Mapping[str, Any]) -> bool:
    """Whether a tensor has one entry per position of the sequence."""
    shape = inputs["input_ids"].shape
    return isinstance(value, Tensor) and value.shape[:2] == shape and name not in ("pixel_values", "position_ids")


def _grows_anew(layer: Any) -> bool:
    """Whether a layer's update leaves the tensors that it held as they are."""
    return type(layer) in (DynamicLayer, DynamicSlidingWindowLayer)


def _repeated(layer: Any, n_samples: int, times: int) -> Any:
    layer = copy.copy(layer) if _grows_anew(layer) else copy.deepcopy(layer)
    if times > 1:
        # What beam search calls: every kind of layer has it.
        layer.reorder_cache(torch.arange(n_samples).repeat_interleave(times))
    return layer


def _lent(layer: Any, n_samples: int, times: int) -> Any:
    """A layer's cache that forgets what a pass adds as soon as the layer has used it."""

    def update(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return _repeated(layer, n_samples, times).update(*args, **kwargs)

    lent = copy.copy(layer)
    lent.update = update
    return lent
