"""GradDrop: attribution patching by which effects that cancel each other are still found."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformer_lens import ActivationCache

from corelens.causal.attribution import check_has_gradient_unpatched
from corelens.causal.effects import PatchingMetric, logit_margin
from corelens.causal.head_gradients import HeadGradients, changes_to_source, check_has_gradient, first_order_effects
from corelens.hooks.points import hook_name
from corelens.hooks.positions import PositionName
from corelens.inputs.prepare import PreparedInputs
from corelens.interventions import FwdHooks
from corelens.interventions.patching import align
from corelens.model import HookedMLLM
from corelens.tokens import TokenMap


def grad_drop(
    model: HookedMLLM,
    cache: ActivationCache | Mapping[str, Tensor],
    source: TokenMap,
    inputs: PreparedInputs,
    metric: PatchingMetric = logit_margin,
    *,
    positions: PositionName | Bool[Tensor, "batch position"] | None = None,
) -> Float[Tensor, "batch layer head"]:
    """Estimate to first order, for every head, how much patching its output would matter on any of its paths.

    A head's direct effect and what a later layer makes of its output may cancel, so that `attribution_patch` gives
    nearly zero. Here the estimate is computed once for each layer, with no gradient through what that layer adds to the
    residual stream, and the mean is over absolute values. The layer of the head itself, without which it has no
    effect, does not count: a head that acts on the logits alone has the absolute value of `attribution_patch`.

    It takes a forward and a backward pass for each layer of the model. The other correction of AtP*, of queries and
    keys, is not needed here: what is patched is `z`, behind the softmax whose saturation it corrects.

    Args:
        model: The model.
        cache: As for `attribution_patch`.
        source: `tokens` of the source's inputs.
        inputs: Prompts with answers appended.
        metric: As for `attribution_patch`.
        positions: Positions at which heads would be patched; see `patch`.

    Returns:
        Zero or more: it tells heads to look at, and not the sign of their effect. Zero where there is no head.

    Raises:
        ValueError: As for `attribution_patch`, or if the model has a single layer.

    Source:
        AtP* by Kramár et al. (arXiv 2403.00745), GradDrop: the sum over layers of absolute estimates, over the number
        of layers minus one. There a node is a position; here it is a head at all chosen positions, as in `patch`.
    """
    n_layers = model.cfg.n_layers
    if n_layers < 2:
        raise ValueError("the model has one layer, so that no path can be dropped: take attribution_patch.")
    check_has_gradient(metric, model, inputs)
    check_has_gradient_unpatched(metric)
    index = align(source, inputs.tokens, positions)
    total = torch.zeros((), device=model.device)
    for layer in range(n_layers):
        dropped = HeadGradients.of(model, inputs, metric, fwd_hooks=_drop_gradient(layer))
        changes = changes_to_source(cache, dropped.outputs, index)
        total = total + first_order_effects(model, changes, dropped.gradients).abs()
    return total / (n_layers - 1)


def _drop_gradient(layer: int) -> FwdHooks:
    """Hooks that let no gradient through what a layer adds to the residual stream, and change no value."""
    before: list[Tensor] = []

    def keep(stream: Tensor, hook: Any) -> None:
        before.append(stream)

    def drop(stream: Tensor, hook: Any) -> Tensor:
        return stream.detach() + (before[0] - before[0].detach())

    return [(hook_name(layer, "resid_pre"), keep), (hook_name(layer, "resid_post"), drop)]
