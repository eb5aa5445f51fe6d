"""Attribution patching: the effect of patching each head, estimated for all heads from one backward pass."""

from collections.abc import Mapping
from typing import Any

import torch
from einops import reduce
from jaxtyping import Bool, Float
from torch import Tensor
from transformer_lens import ActivationCache

from corelens.causal.answers import AnswerLogProbs
from corelens.causal.effects import PatchingMetric, kl_div, logit_margin, rank
from corelens.hooks.points import layer_of
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
    with `patch` as intervention over some of the heads gives the error of the estimate.

    Args:
        model: The model.
        cache: The source's cache of `z` in every layer.
        source: `tokens` of the source's inputs.
        inputs: Prompts with answers appended.
        metric: The number to estimate; it is computed from the log-probabilities of the answer. That of the answer
            itself (`log_prob`) hardly has a gradient where the model is sure, whatever patches do; the default has.
        positions: Positions at which heads would be patched; see `patch`.

    Returns:
        Zero where there is no head.

    Raises:
        ValueError: If positions do not correspond, a prompt has no answer, or the metric has no gradient where nothing
            is patched, as `kl_div`, which is smallest there, and `rank`, which is a whole number.
    """
    if metric in (kl_div, rank):
        raise ValueError(
            f"metric={metric.__name__} has no gradient where nothing is patched, so every estimate would be zero: take "
            f"logit_margin, logit_diff or log_prob, or measure it by a sweep with patch."
        )
    index = align(source, inputs.tokens, positions)
    deltas: dict[int, Tensor] = {}
    outputs: dict[int, Tensor] = {}

    def add_delta(z: Float[Tensor, "batch query head d_head"], hook: Any) -> Tensor:
        # A leaf that changes nothing: its gradient is that of z, also if no parameter requires one.
        outputs[hook.layer()] = z.detach()
        deltas[hook.layer()] = torch.zeros_like(z, requires_grad=True)
        return z + deltas[hook.layer()]

    names = model.attn_names("z")
    with torch.enable_grad(), model.hooks(fwd_hooks=[(name, add_delta) for name in names]):
        answers = AnswerLogProbs.of(model(inputs), inputs)
        total = metric(answers, answers).sum()
        gradients = dict(zip(deltas, torch.autograd.grad(total, list(deltas.values())), strict=True))
    values = torch.zeros(len(index), model.cfg.n_layers, model.cfg.n_heads, device=model.device)
    sample = torch.arange(len(index), device=index.device)[:, None]
    for name in names:
        layer = layer_of(name)
        change = (cache[name][sample, index.clamp(min=0)] - outputs[layer]) * (index >= 0)[..., None, None]
        estimates = reduce(change.float() * gradients[layer].float(), "batch query head d_head -> batch head", "sum")
        values[:, layer, : estimates.shape[1]] = estimates
    return values
