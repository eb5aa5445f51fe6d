"""Visual token pruning: tokens hidden from later layers, as a baseline for sparse plans of heads."""

from dataclasses import dataclass
from typing import Any

import torch
from einops import reduce
from jaxtyping import Bool, Float
from torch import Tensor

from corelens.hooks.points import hook_name
from corelens.inputs.prepare import PreparedInputs
from corelens.interventions import FwdHooks, mask_keys
from corelens.model import HookedMLLM


@dataclass(frozen=True)
class TokenPruning:
    """Hides from all layers after one the visual tokens that this layer attends to least.

    Source: FastV (Chen et al. 2024), which drops the tokens and so saves their work. Here they are hidden by masks, to
    measure the effect on answers; nothing is faster.
    """

    layer: int
    """The last layer that attends to all tokens. Its attention from the prompt's last token, averaged over heads, ranks
    them."""

    share: float
    """Share of each sample's visual tokens that remain, in (0, 1]."""

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"share must lie in (0, 1], and is {self.share}.")

    @property
    def name(self) -> str:
        return f"{100 * self.share:g}% of the visual tokens after layer {self.layer}"


@torch.no_grad()
def prune_tokens(model: HookedMLLM, inputs: PreparedInputs, pruning: TokenPruning) -> FwdHooks:
    """Build hooks that hide the pruned tokens of these inputs from later layers; one pass ranks the tokens.

    Raises:
        ValueError: If the layer has no attention.
    """
    dropped = _dropped(model, inputs, pruning)
    if not dropped.any():
        return []
    return mask_keys((head.layer for head in model.heads if head.layer > pruning.layer), dropped)


def _dropped(model: HookedMLLM, inputs: PreparedInputs, pruning: TokenPruning) -> Bool[Tensor, "batch position"]:
    """Mask of the visual tokens that a pruning drops."""
    attention: list[Float[Tensor, "batch position"]] = []

    def keep_mean(pattern: Float[Tensor, "batch head 1 position"], hook: Any) -> None:
        attention.append(reduce(pattern, "batch head 1 position -> batch position", "mean"))

    name = hook_name(pruning.layer, "attn.pattern")
    with model.hooks(fwd_hooks=[(name, keep_mean)], queries=inputs.tokens.last):
        model(inputs)
    visual = inputs.tokens.visual.to(attention[0].device)
    rank = attention[0].masked_fill(~visual, -torch.inf).argsort(dim=-1, descending=True).argsort(dim=-1)
    n_remaining = (pruning.share * visual.sum(-1, keepdim=True)).round().clamp(min=1)
    return (visual & (rank >= n_remaining)).to(inputs.tokens.visual.device)
