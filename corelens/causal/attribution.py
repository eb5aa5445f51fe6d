"""Attribution patching: the effect of patching each head, estimated for all heads from one backward pass."""

from collections.abc import Mapping

from jaxtyping import Bool, Float
from torch import Tensor
from transformer_lens import ActivationCache

from corelens.causal.effects import PatchingMetric, kl_div, logit_margin
from corelens.causal.head_gradients import (
    HeadGradients,
    changes_to_source,
    check_has_gradient,
    first_order_effects,
)
from corelens.errors import docs_link
from corelens.hooks.positions import PositionName
from corelens.inputs.prepare import PreparedInputs
from corelens.interventions.patching import align
from corelens.model import HookedMLLM
from corelens.tokens import TokenMap


def attribution_patch(
    model: HookedMLLM,
    cache: ActivationCache | Mapping[str, Tensor],
    source: TokenMap,
    inputs: PreparedInputs,
    metric: PatchingMetric = logit_margin,
    *,
    positions: PositionName | Bool[Tensor, "batch position"] | None = None,
) -> Float[Tensor, "batch layer head"]:
    """Estimate to first order, for every head, the change of a metric if the head's output were the source's.

    The difference between the two outputs times the gradient of the metric (attribution patching, Nanda 2023). A sweep
    with `patch` as intervention over some of the heads gives the error of the estimate. `grad_drop` finds heads whose
    effects cancel here, and `integrated_gradients` divides the effect of all heads together among them.

    Args:
        model: The model.
        cache: The source's cache of `z` in every layer; any values of that form, such as zeros, will do.
        source: `tokens` of the source's inputs.
        inputs: Prompts with answers appended.
        metric: The number to estimate; it is computed from the log-probabilities of the answer. That of the answer
            itself (`log_prob`) hardly has a gradient where the model is sure, whatever patches do; the default has.
        positions: Positions at which heads would be patched; see `patch`.

    Returns:
        Zero where there is no head.

    Raises:
        ValueError: If positions do not correspond, a prompt has no answer, or the metric has no gradient, as `rank` and
            whatever else counts or compares, or none where nothing is patched, as `kl_div`, which is smallest there.
    """
    check_has_gradient(metric, model, inputs)
    check_has_gradient_unpatched(metric)
    index = align(source, inputs.tokens, positions)
    plain = HeadGradients.of(model, inputs, metric)
    return first_order_effects(model, changes_to_source(cache, plain.outputs, index), plain.gradients)


def check_has_gradient_unpatched(metric: PatchingMetric) -> None:
    """Raise a ValueError if a metric has no gradient where nothing is patched."""
    if metric is kl_div:
        raise ValueError(
            f"metric=kl_div has no gradient where nothing is patched, so every estimate would be zero: take "
            f"integrated_gradients, which can attribute it, or logit_margin. {docs_link('no-gradient')}"
        )
