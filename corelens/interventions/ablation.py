"""Ablations of heads. The literature calls all of them masking; their results differ, so each has its name."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from corelens.errors import docs_link
from corelens.heads import Head
from corelens.hooks.attention import MASKED_LOGIT
from corelens.hooks.positions import PassState, Phase, Positions, PositionSelector
from corelens.interventions.reference import ReferenceActivations
from corelens.interventions.replace import FwdHooks, Replace, by_layer
from corelens.model import HookedMLLM

AblationMethod = Literal["zero", "mean", "resample", "zero_query", "mean_query", "uniform"]

REFERENCE_POINTS: dict[str, str] = {
    "mean": "mean_activations",
    "resample": "resample_activations",
    "mean_query": "mean_activations",
}
"""Which ablations put something measured in place, and what measures it."""


def ablate(
    heads: Iterable[Head],
    method: AblationMethod = "zero",
    reference: ReferenceActivations | None = None,
    *,
    positions: Positions | None = None,
    phase: Phase = "both",
    point: Literal["z", "o_in"] = "z",
) -> FwdHooks:
    """Takes away what heads do at some positions.

    - `zero`: their output is zero, the same as without their columns of W_O (`removed`).
    - `mean`: their output is its mean over a sample set, so that what later layers expect on average is still there.
    - `resample`: their output is that at a random position of a random sample of a set.
    - `zero_query`: their queries are zero, so that every key they may see weighs the same but for biases and sinks.
    - `mean_query`: their queries are the mean over a sample set, as they meet the keys: normed and rotated. In a
      left-padded batch some models (LLaVA, InternVL) count padding as positions, and keys meet it from elsewhere.
    - `uniform`: their attention logits are zero for all keys they may see. Needs the rows of the chosen positions;
      without `positions` that is all of the pattern.

    Args:
        heads: Which heads; no head gives no hook and changes nothing.
        how: One of the above.
        instead: For `mean` and `resample`, what `mean_activations` and `resample_activations` measured; for `mean_query`, what
            `mean_activations(..., point="q")` did.
        positions: Of the prompt, by name (`question`, `last`) or as a mask such as a token map's; None for all.
        phase: Whether it acts in the prompt (`prefill`), at generated positions (`decode`) or in both.
        point: Of models that gate or norm what heads found: before (`z`) or after that (`o_in`). Zeros are the same.

    Returns:
        One hook per layer, for `model.hooks(fwd_hooks=...)`. That heads and positions exist is checked when the hooks
        are used, before anything runs.

    Raises:
        ValueError: If `how` is unknown, or `instead` is missing, not wanted, or measured in another way.
    """
    if method not in ("zero", "mean", "resample", "zero_query", "mean_query", "uniform"):
        raise ValueError(
            f"how={method!r} is not known; heads can be ablated by zero, mean, resample, zero_query, mean_query, uniform."
        )
    of_queries = method in ("zero_query", "mean_query")
    acts_at = "q" if of_queries else "attn_scores" if method == "uniform" else point
    if point != "z" and acts_at != point:
        raise ValueError(f"how={method!r} does not act on heads' outputs and takes no point.")
    if method in REFERENCE_POINTS:
        measured = REFERENCE_POINTS[method] + (
            f'(model, samples, point="{acts_at}")' if acts_at != "z" else "(model, samples)"
        )
        if reference is None:
            raise ValueError(f"how={method!r} needs instead={measured}. {docs_link('instead')}")
        if (reference.point, reference.measured_by) != (acts_at, REFERENCE_POINTS[method]):
            raise ValueError(
                f"how={method!r} needs instead={measured}, and this was measured by {reference.measured_by} at "
                f"{reference.point}. {docs_link('instead')}"
            )
    elif reference is not None:
        raise ValueError(f"how={method!r} puts nothing measured in place and takes no `instead`.")
    where = PositionSelector(positions, phase)
    hooks: FwdHooks = []
    for layer, chosen in by_layer(heads).items():
        name = f"blocks.{layer}.attn.hook_{acts_at}"
        hooks.append(
            (name, UniformAttention(chosen, where) if method == "uniform" else Replace(name, chosen, where, reference))
        )
    return hooks


@dataclass(frozen=True, eq=False)
class UniformAttention:
    """Makes heads look everywhere alike; a hook for attention logits."""

    heads: tuple[Head, ...]
    where: PositionSelector

    def check(self, progress: PassState) -> None:
        self.where.check(progress)

    def __call__(self, scores: Float[Tensor, "batch head row key"], hook: Any) -> Tensor:
        numbers = [number for _, number in self.heads]
        scores = scores.clone()
        scores[:, numbers] = scores[:, numbers].masked_fill(scores[:, numbers] > MASKED_LOGIT, 0)
        return scores


@contextmanager
def zeroed_weights(model: HookedMLLM, heads: Iterable[Head]) -> Iterator[None]:
    """Zeroes the heads' columns of W_O until the block ends: what `ablate(heads, "zero")` does, without hooks.

    Args:
        model: The model. Passes in the block run its own attention; they need no hooks and no corelens.
        heads: Which heads.

    Raises:
        ValueError: If a head does not exist, or its W_O was not found.
    """
    layers = by_layer(heads)
    model.check_heads(head for chosen in layers.values() for head in chosen)
    # Any: pyright sees no attributes of a layer. W_O is a view of the weights.
    blocks: Any = model.blocks
    slices = [blocks[layer].attn.W_O[head] for layer, chosen in layers.items() for _, head in chosen]
    kept = [part.detach().clone() for part in slices]
    try:
        with torch.no_grad():
            for part in slices:
                part.zero_()
        yield
    finally:
        with torch.no_grad():
            for part, before in zip(slices, kept, strict=True):
                part.copy_(before)
