"""Ablations of heads. The literature calls all of them masking; their results differ, so each has its name."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch

from corelens.errors import check_choice, docs_link
from corelens.heads import Head, HeadSet
from corelens.hooks.points import hook_name
from corelens.hooks.positions import Phase, Positions, PositionSelector
from corelens.interventions.reference import ReferenceActivations
from corelens.interventions.replace import FwdHooks, Replace
from corelens.interventions.uniform import UNIFORM_KEYS, UniformAttention
from corelens.model import HookedMLLM

AblationMethod = Literal["zero", "mean", "resample", "zero_query", "mean_query", "uniform", "uniform_all_keys"]

REFERENCE_FUNCTIONS: dict[str, str] = {
    "mean": "mean_activations",
    "resample": "resample_activations",
    "mean_query": "mean_activations",
}
"""The function that measures the reference activations of a method, for the methods that need some."""


def ablate(
    heads: Iterable[Head],
    method: AblationMethod = "zero",
    reference: ReferenceActivations | None = None,
    *,
    positions: Positions | None = None,
    phase: Phase = "both",
    point: Literal["z", "o_in"] = "z",
) -> FwdHooks:
    """Build hooks that ablate heads at some positions.

    - `zero`: their output is zero, the same as without their columns of W_O (`zeroed_weights`).
    - `mean`: their output is its mean over a sample set, so that what later layers expect on average is still there.
    - `resample`: their output is that of another sample, drawn for each, at the corresponding position: of the same
      role, counted from the end.
    - `zero_query`: their queries are zero, so that every key they may attend to has the same weight but for biases and
      sinks.
    - `mean_query`: their queries are the mean over a sample set, as they meet the keys: normed and rotated. In a
      left-padded batch some models (LLaVA, InternVL) count padding as positions, and keys meet it from elsewhere.
    - `uniform`: their attention logits are zero for all keys that they may attend to, so that they attend to these
      alike; biases do not count, sinks keep their share.
    - `uniform_all_keys`: the paper's mask. Their logits are zero after the causal and the padding mask were applied, so
      that they attend alike to all keys of the pass: later positions, padding, and keys outside of a sliding window
      (of those that its cache still holds) are among them. In the prompt that breaks causality: every position gets the
      mean of all values, those of answers appended to the prompt included, and in a left-padded batch the result
      depends on the padding. While an answer is generated, no later keys exist.

    Args:
        heads: The heads; no head gives no hook and changes nothing.
        method: One of the above.
        reference: For `mean` and `resample`, the result of `mean_activations` and `resample_activations`; for
            `mean_query`, that of `mean_activations(..., point="q")`.
        positions: Positions of the prompt, by name (`question`, `last`) or as a mask such as a token map's; None for
            all.
        phase: Act in the prompt (`prefill`), at generated positions (`decode`) or in both.
        point: In models that gate or norm head outputs: replace them before (`z`) or after that (`o_in`). Zeros are
            the same at both.

    Returns:
        One hook per layer, for `model.hooks(fwd_hooks=...)`. That heads and positions exist is checked when the hooks
        are used, before anything runs.

    Raises:
        ValueError: If `method` is unknown, or `reference` is missing, not needed, or measured in another way.

    Source:
        `uniform_all_keys`: arXiv 2606.05843, algorithm 2. The listing sets the logits to zero after the masks; that
        heads attend to the future follows from it, the paper does not mention it. That a learned sink keeps its logit
        is our choice: the paper's models have none. `uniform` is the causal form, corelens's own.
    """
    check_choice("method", method, AblationMethod)
    hook_point = point if method in ("zero", "mean", "resample") else "q"
    if point not in ("z", hook_point):
        raise ValueError(f"method={method!r} does not act on head outputs and takes no point.")
    _check_reference(method, hook_point, reference)
    where = PositionSelector(positions, phase)
    hooks: FwdHooks = []
    for layer, numbers in HeadSet(tuple(heads)).by_layer().items():
        name = hook_name(layer, f"attn.{hook_point}")
        layer_heads = tuple(Head(layer, number) for number in numbers)
        if method in UNIFORM_KEYS:
            hooks.append((name, UniformAttention(layer_heads, where, UNIFORM_KEYS[method])))
        else:
            hooks.append((name, Replace(name, layer_heads, where, reference)))
    return hooks


def _check_reference(method: AblationMethod, hook_point: str, reference: ReferenceActivations | None) -> None:
    """Raise a ValueError if reference activations are missing, not needed, or measured in another way."""
    if method not in REFERENCE_FUNCTIONS:
        if reference is not None:
            raise ValueError(f"method={method!r} writes no measured activations and takes no `reference`.")
        return
    function = REFERENCE_FUNCTIONS[method]
    call = f"{function}(model, samples)" if hook_point == "z" else f'{function}(model, samples, point="{hook_point}")'
    if reference is None:
        raise ValueError(f"method={method!r} needs reference={call}. {docs_link('reference')}")
    if (reference.point, reference.measured_by) != (hook_point, function):
        raise ValueError(
            f"method={method!r} needs reference={call}, and this was measured by {reference.measured_by} at "
            f"{reference.point}. {docs_link('reference')}"
        )


@contextmanager
def zeroed_weights(model: HookedMLLM, heads: Iterable[Head]) -> Iterator[None]:
    """Zero the heads' columns of W_O until the block ends: the same as `ablate(heads, "zero")`, without hooks.

    Args:
        model: The model. Passes in the block run its own attention; they need no hooks and no corelens.
        heads: The heads.

    Raises:
        ValueError: If a head does not exist, or its W_O was not found, or is no matrix that the model holds: it is
            adapted, parametrised, quantised or offloaded.
    """
    layers = HeadSet(tuple(heads)).by_layer()
    model.check_heads(Head(layer, number) for layer, numbers in layers.items() for number in numbers)
    # Any: pyright sees no attributes of a layer. These are views of the weights.
    blocks: Any = model.blocks
    weights = [blocks[layer].attn.stored_W_O[number] for layer, numbers in layers.items() for number in numbers]
    copies = [weight.detach().clone() for weight in weights]
    try:
        with torch.no_grad():
            for weight in weights:
                weight.zero_()
        yield
    finally:
        with torch.no_grad():
            for weight, copy in zip(weights, copies, strict=True):
                weight.copy_(copy)
