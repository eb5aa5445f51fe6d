"""Prefix caches: the part of prompts before the question, computed once for many passes after it."""

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
from corelens.hf.versions import CACHE
from corelens.tokens import TokenMap


@dataclass(frozen=True, eq=False)
class PrefixCache:
    """Keys and values of the first positions of a batch of prompts; see `HookedMLLM.prefix`."""

    hf_model: PreTrainedModel = field(repr=False)
    stack: nn.Module = field(repr=False)
    """The model that made it, and the module that runs its layers."""

    length: int
    """Number of positions, padding included."""

    inputs: Mapping[str, Any] = field(repr=False)
    """The whole inputs that it was made from."""

    cache: DynamicCache = field(repr=False)
    position_ids: Int[Tensor, "*rest"] | None = field(repr=False)
    """Position ids that the decoder received; None if none."""

    vision_outputs: RecordedOutputs = field(repr=False)
    """Outputs of the vision tower for the pictures."""

    hooks: tuple[Callable[..., Any], ...] = field(repr=False)
    """Hook functions that acted while it was computed."""

    weights: Mapping[str, tuple[int, int]] = field(repr=False)
    """Place and version of each weight that it was computed with."""

    def __copy__(self) -> "PrefixCache":
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> "PrefixCache":
        # Passes copy what they change; and a copy of the model would not be the model that made it.
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError(
            "a prefix belongs to a model of this process and cannot be pickled: compute it where it is used, by "
            "model.prefix(inputs)."
        )

    @property
    def n_samples(self) -> int:
        """Number of samples in the batch that it was made from."""
        return len(self.inputs["input_ids"])

    def check(self, hf_model: PreTrainedModel, inputs: Mapping[str, Any]) -> None:
        """Raise a ValueError if another model or other weights made it, or inputs begin differently."""
        if hf_model is not self.hf_model:
            raise ValueError("the prefix was made by another model.")
        if changed := [name for name, place in _weights(hf_model).items() if self.weights.get(name) != place]:
            raise ValueError(
                f"the prefix was computed with other weights: {changed[0]} and {len(changed) - 1} more were changed or "
                f"moved since. Compute it again, by model.prefix(inputs)."
            )
        length = self.length
        for name in sorted({*_compared(self.inputs), *_compared(inputs)}):
            expected, tensor = self.inputs.get(name), inputs.get(name)
            if expected is tensor:
                continue
            if expected is not None and _by_position(name, expected, self.inputs):
                expected, tensor = expected[:, :length], None if tensor is None else tensor[:, :length]
            if expected is None or tensor is None or not torch.equal(expected, tensor):
                raise ValueError(
                    f"the prefix was made of other inputs: `{name}` differs in the first {length} positions. Pictures "
                    f"and all that comes before the question must be the same."
                )
        if (n := inputs["input_ids"].shape[1]) <= length:
            raise ValueError(f"the prefix covers all {n} positions of the inputs: nothing is left to compute.")

    def suffix_inputs(self, inputs: Mapping[str, Any], times: int = 1) -> dict[str, Any]:
        """Arguments of forward that compute the remaining positions of inputs that begin alike.

        Args:
            inputs: The whole inputs.
            times: Number of copies of every sample in the batch. Copies of a layer's keys and values exist only while
                that layer runs.
        """
        cache = copy.copy(self.cache)
        cache.layers = [
            (_discarding_layer if _grows_by_copy(layer) else _repeated)(layer, self.n_samples, times)
            for layer in cache.layers
        ]
        return _tail(self._without_media(inputs), self.length, times) | {CACHE: cache}

    def generate_inputs(self, inputs: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments of `generate` that continue from the prefix."""
        arguments = self._without_media(inputs)
        if (positions := arguments.get("position_ids")) is not None:
            arguments["position_ids"] = positions.expand(*positions.shape[:-2], len(inputs["input_ids"]), -1)
        config = settings.get("generation_config") or self.hf_model.generation_config
        # Both put several rows of each sample into the batch.
        names = ("num_beams", "num_return_sequences")
        times = max(settings.get(name) or getattr(config, name, None) or 1 for name in names)
        cache = copy.copy(self.cache)
        cache.layers = [_repeated(layer, self.n_samples, times) for layer in cache.layers]
        return arguments | {CACHE: cache}

    def _without_media(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Inputs whose media are in the cache; with position ids, since these depend on media."""
        tensors = {name: value for name, value in inputs.items() if not isinstance(value, Tensor)}
        tensors |= {name: inputs[name] for name in ("input_ids", "attention_mask") if name in inputs}
        position_ids = self.position_ids
        if inputs["input_ids"] is not self.inputs["input_ids"]:
            with replay_outputs(self.vision_outputs):
                position_ids = _position_ids(self.hf_model, self.stack, inputs)
        if position_ids is None and "position_ids" in inspect.signature(self.hf_model.forward).parameters:
            # From zero, as a pass without position ids counts. By default, generation counts from the first token that
            # is not padding, and Qwen's models continue from the pictures of their last prompt.
            position_ids = torch.arange(inputs["input_ids"].shape[1], device=inputs["input_ids"].device)[None]
        return tensors if position_ids is None else tensors | {"position_ids": position_ids}


def compute_prefix(
    hf_model: PreTrainedModel,
    stack: nn.Module,
    inputs: Mapping[str, Any],
    length: int,
    hooks: tuple[Callable[..., Any], ...] = (),
) -> PrefixCache:
    """Run the first positions of inputs.

    Args:
        hf_model: The model.
        stack: The module that runs its layers.
        inputs: The whole inputs.
        length: Number of positions.
        hooks: Hook functions that act in this pass.
    """
    with record_outputs(vision_towers(hf_model)) as vision_outputs:
        position_ids = _position_ids(hf_model, stack, inputs)
    with replay_outputs(vision_outputs):
        cache = _cache(hf_model, stack, _head(inputs, length))
    weights = _weights(hf_model)
    return PrefixCache(hf_model, stack, length, dict(inputs), cache, position_ids, vision_outputs, hooks, weights)


def _weights(hf_model: PreTrainedModel) -> dict[str, tuple[int, int]]:
    """Place in memory and version of each weight, which torch counts up with every edit in place but through .data."""
    return {
        name: (weight.data_ptr(), 0 if weight.is_inference() else weight._version)
        for name, weight in hf_model.named_parameters()
    }


def check_prefix_is_exact(hf_model: PreTrainedModel, stack: nn.Module, inputs: Mapping[str, Any], length: int) -> None:
    """Run a pass after a prefix and a whole pass; raise a ValueError if their logits differ."""
    name = type(hf_model).__name__
    try:
        suffix = compute_prefix(hf_model, stack, inputs, length).suffix_inputs(inputs, 2)
        logits = hf_model(**suffix).logits[::2].float()
        expected = hf_model(**inputs, use_cache=False).logits[:, length:].float()
    except torch.OutOfMemoryError:
        raise
    except Exception as cause:
        # Any failure inside Hugging Face's code means the same.
        raise ValueError(f"{name} cannot continue from a prefix: {type(cause).__name__}: {cause}") from cause
    if "attention_mask" in inputs:
        real = inputs["attention_mask"][:, length:].bool()
        logits, expected = logits[real], expected[real]
    error = float((logits - expected).norm() / expected.norm())
    if not error < torch.finfo(hf_model.dtype).eps ** 0.5:
        raise ValueError(
            f"{name} does not compute the same after a prefix as in a whole pass (logits are off by {error:.1%}): its "
            f"prompts attend to later positions, or its layers keep more than keys and values."
        )


def prefix_length(tokens: TokenMap | None) -> int:
    """Number of positions before the first question of a batch.

    Raises:
        ValueError: If there is no token map or no such position, or a picture or video comes after the question.
    """
    if tokens is None:
        raise ValueError("these inputs have no token map: give the number of positions, prefix(inputs, until).")
    length = int(tokens.question.any(0).nonzero()[0]) if tokens.question.any() else 0
    if not length:
        raise ValueError("no position comes before the question: there is no prefix to share.")
    if (tokens.image | tokens.video)[:, length:].any():
        starts = tokens.question.byte().argmax(1).tolist()
        if len(set(starts)) > 1:
            raise ValueError(
                f"questions of this batch begin at positions {', '.join(map(str, starts))}, since its prompts differ "
                f"in length and padding is on the left: pictures of the shorter ones stand after position {length}. "
                f"Batch prompts of one length, or give them one by one."
            )
        raise ValueError(
            f"a picture or video stands after position {length}, where the first question begins, so that it is no "
            f"part of the prefix. Give pictures before the question, or the number of positions: prefix(inputs, until)."
        )
    return length


def _position_ids(hf_model: PreTrainedModel, stack: nn.Module, inputs: Mapping[str, Any]) -> Tensor | None:
    """Position ids that the stack receives; its layers do not run."""

    def stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        raise StopForward(kwargs.get("position_ids"))

    return allow_stopping(hf_model, stack.register_forward_pre_hook(stop, with_kwargs=True), inputs)


def _cache(hf_model: PreTrainedModel, stack: nn.Module, inputs: Mapping[str, Any]) -> Any:
    """Keys and values of a pass that ends before the logits."""

    def stop(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        raise StopForward(output[CACHE])

    return allow_stopping(hf_model, stack.register_forward_hook(stop), {**inputs, "use_cache": True})


def _head(inputs: Mapping[str, Any], length: int) -> dict[str, Any]:
    """First positions of inputs, with all of the media."""
    return {name: value[:, :length] if _by_position(name, value, inputs) else value for name, value in inputs.items()}


def _tail(inputs: Mapping[str, Any], length: int, times: int) -> dict[str, Any]:
    """Inputs without the first positions, which are in a cache, with several copies of every sample."""
    tail = dict(inputs) | {"input_ids": inputs["input_ids"][:, length:].repeat_interleave(times, 0)}
    if "attention_mask" in inputs:
        tail["attention_mask"] = inputs["attention_mask"].repeat_interleave(times, 0)
    if "position_ids" in inputs:
        positions = inputs["position_ids"][..., length:]
        # The batch is the axis before the last; one row may stand for all samples.
        tail["position_ids"] = positions if positions.shape[-2] == 1 else positions.repeat_interleave(times, -2)
    return tail


def _compared(inputs: Mapping[str, Any]) -> list[str]:
    """Names of the tensors by which inputs begin alike or not."""
    return [n for n, value in inputs.items() if isinstance(value, Tensor) and n not in ("position_ids", "labels")]


def _by_position(name: str, value: Any, inputs: Mapping[str, Any]) -> bool:
    """True if a tensor has one entry per position of the sequence."""
    shape = inputs["input_ids"].shape
    return isinstance(value, Tensor) and value.shape[:2] == shape and name not in ("pixel_values", "position_ids")


def _grows_by_copy(layer: Any) -> bool:
    """True if a layer's update leaves the tensors that it held unchanged."""
    return type(layer) in (DynamicLayer, DynamicSlidingWindowLayer)


def _repeated(layer: Any, n_samples: int, times: int) -> Any:
    layer = copy.copy(layer) if _grows_by_copy(layer) else copy.deepcopy(layer)
    if times > 1:
        # Beam search calls it, so that every kind of layer has it.
        layer.reorder_cache(torch.arange(n_samples).repeat_interleave(times))
    return layer


def _discarding_layer(layer: Any, n_samples: int, times: int) -> Any:
    """Cache of a layer that drops what a pass adds as soon as the layer has used it."""

    def update(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return _repeated(layer, n_samples, times).update(*args, **kwargs)

    discarding = copy.copy(layer)
    discarding.update = update
    return discarding
