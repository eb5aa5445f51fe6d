"""How much of the attention that heads pay a plan lets them keep."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from corelens import metrics
from corelens.inputs import PreparedInputs
from corelens.model import HookedMLLM
from corelens.sparse.placing import place
from corelens.sparse.plan import Full, HeadPlan, Rule, Streaming


@torch.no_grad()
def kept_attention(
    model: HookedMLLM, inputs: PreparedInputs, plans: Sequence[HeadPlan]
) -> list[Float[Tensor, "batch"]]:
    """Share of the attention of the prompt's last token that each plan lets heads keep, in [0, 1].

    Measured in one pass without a plan. Heads count alike; layers that follow no plan do not count.
    """
    placed = [place(plan, model.hf_model).layers for plan in plans]
    rules = {layer.streaming for layers in placed for layer in layers.values() if layer.streaming}
    in_sight = {rule: _in_sight(inputs, rule) for rule in rules}
    found: list[list[Tensor]] = [[] for _ in plans]

    def look(pattern: Float[Tensor, "batch head 1 key"], hook: Any) -> None:
        row = torch.ones(len(pattern), 1, dtype=torch.bool, device=pattern.device)
        mass = {
            rule: metrics.retrieval_attention_mass(pattern, keys.to(pattern.device), row).cpu()
            for rule, keys in in_sight.items()
        }

        def kept(rule: Rule, head: int) -> Float[Tensor, "batch"]:
            return mass[rule][:, head] if rule in mass else torch.full((len(pattern),), float(isinstance(rule, Full)))

        for own, layers in zip(found, placed, strict=True):
            own += [kept(rule, head) for head, rule in enumerate(layers[hook.layer()].rules)]

    hooks = [(f"blocks.{layer}.attn.hook_pattern", look) for layer in (placed[0] if placed else ())]
    with model.hooks(fwd_hooks=hooks, queries=inputs.tokens.last):
        model(inputs)
    return [torch.stack(own, 1).mean(1) for own in found]


def _in_sight(inputs: PreparedInputs, rule: Streaming) -> Bool[Tensor, "batch position"]:
    """What the prompt's last token sees under a rule."""
    tokens = inputs.tokens
    real = ~tokens.padding
    near = torch.arange(real.shape[1], device=real.device) >= real.shape[1] - rule.window
    kept = real.cumsum(-1) <= rule.sink
    return real & (near | kept | (~tokens.visual if rule.text else False))
