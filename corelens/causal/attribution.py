"""Attribution patching: what patching each head would do, estimated for all of them from one backward pass."""

from collections.abc import Mapping
from typing import Any

import torch
from einops import reduce
from jaxtyping import Bool, Float
from torch import Tensor
from transformer_lens import ActivationCache

from corelens.causal.answers import AnswerLogProbs
from corelens.causal.effects import PatchingMetric, log_prob
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
    effect: PatchingMetric = log_prob,
    *,
    positions: PositionName | Bool[Tensor, "batch position"] | None = None,
) -> Float[Tensor, "batch layer head"]:
    """By how much an effect would rise if one head's output were the source's: to first order, for every head.

    The difference between the two outputs times the gradient of the effect (attribution patching, Nanda 2023). How far
    off it is says a sweep with `patch` as intervention over some of the heads.

    Args:
        model: The model.
        cache: What the source's `run_with_cache` kept of `z` in every layer.
        source: `tokens` of the source's inputs.
        inputs: Prompts with answers behind them.
        effect: What is measured of the answer.
        positions: Where heads would be patched; see `patch`.

    Returns:
        Zero where there is no head.

    Raises:
        ValueError: If positions do not correspond, or a prompt has no answer.
    """
    index = align(source, inputs.tokens, positions)
    deltas: dict[int, Tensor] = {}
    found: dict[int, Tensor] = {}

    def watch(z: Float[Tensor, "batch query head d_head"], hook: Any) -> Tensor:
        # A leaf that changes nothing: its gradient is that of z, also if no parameter asks for one.
        found[hook.layer()] = z.detach()
        deltas[hook.layer()] = torch.zeros_like(z, requires_grad=True)
        return z + deltas[hook.layer()]

    names = model.attn_names("z")
    with torch.enable_grad(), model.hooks(fwd_hooks=[(name, watch) for name in names]):
        said = AnswerLogProbs.of(model(inputs), inputs)
        total = effect(said, said).sum()
        gradients = dict(zip(deltas, torch.autograd.grad(total, list(deltas.values())), strict=True))
    values = torch.zeros(len(index), model.cfg.n_layers, model.cfg.n_heads, device=model.device)
    sample = torch.arange(len(index), device=index.device)[:, None]
    for name in names:
        layer = int(name.split(".")[1])
        change = (cache[name][sample, index.clamp(min=0)] - found[layer]) * (index >= 0)[..., None, None]
        own = reduce(change.float() * gradients[layer].float(), "batch query head d_head -> batch head", "sum")
        values[:, layer, : own.shape[1]] = own
    return values
