"""Interventions as data: each compiles to the `(hook_name, function)` pairs that TransformerLens users pass around."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from einops import reduce
from jaxtyping import Float
from torch import Tensor

from corelens.data import Sample, prepared_batches
from corelens.heads import Head, HeadSet
from corelens.model import HookedMLLM

FwdHooks = list[tuple[str, Callable[..., Tensor]]]
"""What `hooks(fwd_hooks=...)` and `run_with_hooks(fwd_hooks=...)` take; lists add up."""


@dataclass(frozen=True, eq=False)
class HeadAblation:
    """Replaces what some heads of one layer found; a hook for `blocks.{layer}.attn.hook_z`."""

    heads: tuple[Head, ...]
    replacement: Float[Tensor, "head d_head"] | None = field(repr=False)
    """One row per head; None writes zeros."""

    def __call__(
        self, z: Float[Tensor, "batch query head d_head"], hook: object
    ) -> Float[Tensor, "batch query head d_head"]:
        # A copy: caches keep what the head really found.
        z = z.clone()
        z[:, :, [head for _, head in self.heads]] = (
            0 if self.replacement is None else self.replacement[:, : z.shape[-1]].to(z)
        )
        return z


def ablate(
    heads: Iterable[Head],
    how: Literal["zero", "mean"] = "zero",
    means: Float[Tensor, "layer head d_head"] | None = None,
) -> FwdHooks:
    """Removes heads by replacing their output, at every position, in prefill and in decoding.

    The operation acts on `z`, what the head found, before W_O and before an output gate if the model has one. The
    literature's "masking" means this and three other operations; their results differ.

    Args:
        heads: Which heads; no head gives no hook and changes nothing.
        how: `zero` is the same as setting the head's columns of W_O to zero. `mean` writes the head's mean output, so
            that what later layers expect on average is still there.
        means: For `mean`, what `mean_outputs` measured.

    Returns:
        One hook per layer, for `model.hooks(fwd_hooks=...)`. That a head exists is checked when the hooks are used.

    Raises:
        ValueError: If `how` is unknown, or means are missing or not wanted.
    """
    if how not in ("zero", "mean"):
        raise ValueError(f"how={how!r} is not known; heads can be ablated by zero or mean.")
    if (how == "mean") != (means is not None):
        raise ValueError(
            "how='mean' needs means=mean_outputs(model, samples)." if means is None else f"how={how!r} takes no means."
        )
    hooks: FwdHooks = []
    for layer, numbers in HeadSet(tuple(heads)).by_layer().items():
        rows = None
        if means is not None and layer < means.shape[0] and max(numbers) < means.shape[1]:
            rows = means[layer, numbers]
        chosen = tuple(Head(layer, number) for number in numbers)
        hooks.append((f"blocks.{layer}.attn.hook_z", HeadAblation(chosen, rows)))
    return hooks


@torch.no_grad()
def mean_outputs(
    model: HookedMLLM, samples: Iterable[Sample], batch_size: int = 16
) -> Float[Tensor, "layer head d_head"]:
    """Every head's output `z`, averaged over all positions of all samples that are not padding, in float32.

    Zero where there is no head, and beyond a head's width where layers differ in it.
    """
    total = torch.zeros(model.cfg.n_layers, model.cfg.n_heads, model.cfg.d_head, device=model.device)
    n_positions = 0
    for _, inputs in prepared_batches(model, samples, batch_size, "mean outputs"):
        kept = ~inputs.tokens.padding

        def add(z: Tensor, hook: Any, kept: Tensor = kept) -> None:
            found = reduce(z[kept].float(), "position head d_head -> head d_head", "sum").to(total)
            total[hook.layer(), : found.shape[0], : found.shape[1]] += found

        with model.hooks(fwd_hooks=[(name, add) for name in model.attn_names("z")]):
            model(inputs)
        n_positions += int(kept.sum())
    return total / n_positions
