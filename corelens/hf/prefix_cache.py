"""The part of a prompt that comes before the question, computed once and asked many times."""

import copy
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from corelens.hf.module_outputs import (
    RecordedOutputs,
    StopForward,
    allow_stopping,
    record_outputs,
    replay_outputs,
    vision_towers,
)
from corelens.tokens import TokenMap


@dataclass(frozen=True, eq=False)
class PrefixCache:
    """Keys and values of the first positions of a batch of prompts; see `HookedMLLM.prefix`."""

    hf_model: PreTrainedModel = field(repr=False)
    stack: nn.Module = field(repr=False)
    """The model that it was made by, and what runs its layers."""

    length: int
    """How many positions, padding included."""

    inputs: Mapping[str, Any] = field(repr=False)
    """The whole inputs that it was made of."""

    cache: DynamicCache = field(repr=False)
    position_ids: Int[Tensor, "*suffix_inputs"] | None = field(repr=False)
    """What the decoder was told of positions; None if nothing."""

    vision_outputs: RecordedOutputs = field(repr=False)
    """What the vision tower made of the pictures."""

    hooks: tuple[Callable[..., Any], ...] = field(repr=False)
    """The hook functions that acted while it was made."""

    @property
    def n_samples(self) -> int:
        """Of the batch that it was made of."""
        return len(self.inputs["input_ids"])

    def check(self, hf_model: PreTrainedModel, inputs: Mapping[str, Any]) -> None:
        """Raises a ValueError if another model made it, or inputs begin with something else."""
        if hf_model is not self.hf_model:
            raise ValueError("the prefix was made by another model.")
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

    def suffix_inputs(self, inputs: Mapping[str, Any], times: int = 1) -> dict[str, Any]:
        """What forward takes to compute the other positions of inputs that begin like this.

        Args:
            inputs: The whole inputs.
            times: How often every sample stands in the batch. Repetitions of a layer's keys and values exist only while
                that layer runs.
        """
        lent = copy.copy(self.cache)
        lent.layers = [
            (_discarding_layer if _grows_anew(layer) else _repeated)(layer, self.n_samples, times)
            for layer in lent.layers
        ]
        return _rest(self._without_media(inputs), self.length, times) | {"past_key_values": lent}

    def generate_inputs(self, inputs: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
        """What `generate` takes to go on from here under some settings."""
        begun = self._without_media(inputs)
        if (positions := begun.get("position_ids")) is not None:
            begun["position_ids"] = positions.expand(*positions.shape[:-2], len(inputs["input_ids"]), -1)
        config = settings.get("generation_config") or self.hf_model.generation_config
        # Beams, or several samples.
        names = ("num_beams", "num_return_sequences")
        times = max(settings.get(name) or getattr(config, name, None) or 1 for name in names)
        copied = copy.copy(self.cache)
        copied.layers = [_repeated(layer, self.n_samples, times) for layer in copied.layers]
        return begun | {"past_key_values": copied}

    def _without_media(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Inputs whose media are in the cache; positions are said, since they depend on media."""
        kept = {name: value for name, value in inputs.items() if not isinstance(value, Tensor)}
        kept |= {name: inputs[name] for name in ("input_ids", "attention_mask") if name in inputs}
        position_ids = self.position_ids
        if inputs["input_ids"] is not self.inputs["input_ids"]:
            with replay_outputs(self.vision_outputs):
                position_ids = _position_ids(self.hf_model, self.stack, inputs)
        if position_ids is None and "position_ids" in inspect.signature(self.hf_model.forward).parameters:
            # From zero, as a pass counts that is told nothing. Left alone, generation counts from the first token that
            # is not padding, and Qwen's models go on from the pictures of their last prompt.
            position_ids = torch.arange(inputs["input_ids"].shape[1], device=inputs["input_ids"].device)[None]
        return kept if position_ids is None else kept | {"position_ids": position_ids}


def compute_prefix(
    hf_model: PreTrainedModel,
    stack: nn.Module,
    inputs: Mapping[str, Any],
    length: int,
    functions: tuple[Callable[..., Any], ...] = (),
) -> PrefixCache:
    """Runs the first positions of inputs.

    Args:
        hf_model: The model.
        stack: What runs its layers.
        inputs: The whole inputs.
        length: How many positions.
        functions: The hook functions that act meanwhile.
    """
    with record_outputs(vision_towers(hf_model)) as seen:
        position_ids = _position_ids(hf_model, stack, inputs)
    with replay_outputs(seen):
        cache = _cache(hf_model, stack, _head(inputs, length))
    return PrefixCache(hf_model, stack, length, dict(inputs), cache, position_ids, seen, functions)


def check_prefix_is_exact(hf_model: PreTrainedModel, stack: nn.Module, inputs: Mapping[str, Any], length: int) -> None:
    """Raises a ValueError if passes after a prefix are not whole passes for such inputs; runs both."""
    name = type(hf_model).__name__
    try:
        found = hf_model(**compute_prefix(hf_model, stack, inputs, length).suffix_inputs(inputs, 2)).logits[::2].float()
        whole = hf_model(**inputs, use_cache=False).logits[:, length:].float()
    except torch.OutOfMemoryError:
        raise
    except Exception as cause:
        # Whatever goes wrong inside of Hugging Face's code means the same.
        raise ValueError(f"{name} cannot continue from a prefix: {type(cause).__name__}: {cause}") from cause
    if "attention_mask" in inputs:
        real = inputs["attention_mask"][:, length:].bool()
        found, whole = found[real], whole[real]
    off = float((found - whole).norm() / whole.norm())
    if not off < torch.finfo(hf_model.dtype).eps ** 0.5:
        raise ValueError(
            f"{name} does not compute the same after a prefix as in a whole pass (logits are off by {off:.1%}): its "
            f"prompts look ahead, or its layers keep more than keys and values."
        )


def length_before_question(tokens: TokenMap) -> int:
    """How many positions come before the first question of a batch.

    Raises:
        ValueError: If there is none, or if a picture or video stands after it.
    """
    length = int(tokens.question.any(0).nonzero()[0]) if tokens.question.any() else 0
    if not length:
        raise ValueError("no position comes before the question: there is no prefix to share.")
    if (tokens.image | tokens.video)[:, length:].any():
        begin = tokens.question.byte().argmax(1).tolist()
        if len(set(begin)) > 1:
            raise ValueError(
                f"questions of this batch begin at positions {', '.join(map(str, begin))}, since its prompts differ in "
                f"length and padding is on the left: pictures of the shorter ones stand after position {length}. "
                f"Batch prompts of one length, or give them one by one."
            )
        raise ValueError(
            f"a picture or video stands after position {length}, where the first question begins, so that it is no "
            f"part of the prefix. Give pictures before the question, or say how many positions: prefix(inputs, until)."
        )
    return length


def _position_ids(hf_model: PreTrainedModel, stack: nn.Module, inputs: Mapping[str, Any]) -> Tensor | None:
    """What the stack is told of positions; its layers do not run."""

    def stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        raise StopForward(kwargs.get("position_ids"))

    return allow_stopping(hf_model, stack.register_forward_pre_hook(stop, with_kwargs=True), inputs)


def _cache(hf_model: PreTrainedModel, stack: nn.Module, inputs: Mapping[str, Any]) -> Any:
    """Keys and values of a pass, which ends before the logits."""

    def stop(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        raise StopForward(output.past_key_values)

    return allow_stopping(hf_model, stack.register_forward_hook(stop), {**inputs, "use_cache": True})


def _head(inputs: Mapping[str, Any], length: int) -> dict[str, Any]:
    """Inputs of which only the first positions are left, with all of the media."""
    return {name: value[:, :length] if _by_position(name, value, inputs) else value for name, value in inputs.items()}


def _rest(inputs: Mapping[str, Any], length: int, times: int) -> dict[str, Any]:
    """Inputs of which the first positions are in a cache, with every sample repeated some times."""
    rest = dict(inputs) | {"input_ids": inputs["input_ids"][:, length:].repeat_interleave(times, 0)}
    if "attention_mask" in inputs:
        rest["attention_mask"] = inputs["attention_mask"].repeat_interleave(times, 0)
    if "position_ids" in inputs:
        positions = inputs["position_ids"][..., length:]
        # The batch is the axis before the last; one row may stand for all samples.
        rest["position_ids"] = positions if positions.shape[-2] == 1 else positions.repeat_interleave(times, -2)
    return rest


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


def _discarding_layer(layer: Any, n_samples: int, times: int) -> Any:
    """A layer's cache that forgets what a pass adds as soon as the layer has used it."""

    def update(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return _repeated(layer, n_samples, times).update(*args, **kwargs)

    lent = copy.copy(layer)
    lent.update = update
    return lent
