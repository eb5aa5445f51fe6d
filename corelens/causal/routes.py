"""OV by route: what a head writes towards the answer's logit, divided by what it reads it from."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from einops import einsum
from jaxtyping import Bool, Float, Int
from torch import Tensor

from corelens.causal.logit_direction import LogitDirection, at_last_position, transposed
from corelens.errors import docs_link
from corelens.heads import Head, HeadSet
from corelens.hf.layers import DecoderLayer
from corelens.hf.norms import norm_weights
from corelens.hooks.points import hook_name
from corelens.inputs.prepare import PreparedInputs
from corelens.metrics import logit_contributions
from corelens.model import HookedMLLM
from corelens.tokens import TokenMap


@dataclass(frozen=True, eq=False)
class HeadRoutes:
    """Direct contributions of heads to the answer's logit, by the keys that they come from."""

    values: Float[Tensor, "sample head route"]
    """Sums over the keys of each route."""

    heads: tuple[Head, ...]
    routes: tuple[str, ...]

    @property
    def direct_effects(self) -> Float[Tensor, "sample head"]:
        """All that each head adds to the logit directly: the sum over routes."""
        return self.values.sum(-1)

    def table(self) -> list[dict[str, Any]]:
        """Means over samples, as rows with `head`, each route and `all`."""
        means = self.values.mean(0)
        return [
            {"head": str(head), **dict(zip(self.routes, row.tolist(), strict=True)), "all": float(row.sum())}
            for head, row in zip(self.heads, means, strict=True)
        ]


def key_routes(
    tokens: TokenMap, evidence: Bool[Tensor, "batch position"] | None = None
) -> dict[str, Bool[Tensor, "batch position"]]:
    """Divide the positions of prompts by what heads read there; each position is in one route.

    Args:
        tokens: The token map.
        evidence: The evidence among the visual tokens; None if it is not known.

    Returns:
        Masks by name: `first token`, which many heads attend to when they have nothing to fetch; `evidence`; `other
        visual`; `question`; and `other`, which is the chat template, the context and the answer.
    """
    real = ~tokens.padding
    masks = {"first token": real & (real.cumsum(-1) == 1)}
    if evidence is not None:
        masks["evidence"] = evidence.to(tokens.role.device)
    masks |= {"other visual" if evidence is not None else "visual": tokens.visual, "question": tokens.question}
    left, routes = torch.ones_like(real), {}
    for name, mask in masks.items():
        routes[name] = mask & left
        left = left & ~mask
    return routes | {"other": left}


@torch.no_grad()
def ov_by_route(
    model: HookedMLLM,
    inputs: PreparedInputs,
    heads: Iterable[Head],
    routes: Mapping[str, Bool[Tensor, "batch position"]],
    others: Int[Tensor, "sample"] | None = None,
) -> HeadRoutes:
    r"""Divide what heads add to the answer's logit directly by the keys that they read it from.

    $$d_{h,r} = \sum_{k \in r} A_{h,q,k}\; u \cdot W_O^h v_{h,k}$$

    $q$ is the prompt's last position, and $u$ the direction that raises the logit of the answer's first token, with the
    last norm and a norm behind W_O held at their scales. Routes that hold every position once sum to the head's direct
    effect. It is the logit before a factor or a soft cap that some models put on logits.

    Args:
        model: The model.
        inputs: Prompts with answers appended.
        heads: The heads.
        routes: Keys by name, such as `key_routes(inputs.tokens, evidence)`.
        others: Tokens whose logit is taken off the answer's, one for each sample: what every token gains alike does not
            change the answer. None for the logit itself.

    Raises:
        ValueError: If a prompt has no answer, a head does not exist, its keys are no positions of the prompt, a gate or
            a norm stands between it and W_O, or a mask is of another prompt.

    Source:
        After LOCOS (arXiv 2607.01002) and direct logit attribution (Elhage et al. 2021); division by role is ours.
    """
    chosen = HeadSet(tuple(heads))
    _check(model, chosen, inputs.tokens, routes)
    layers = [model.hf_layers[number] for number in chosen.by_layer()]
    last = hook_name(len(model.hf_layers) - 1, "resid_post")
    names = [hook_name(layer.layer, f"attn.{point}") for layer in layers for point in ("v", "pattern", "z")]
    _, cache = model.run_with_cache(inputs, queries=inputs.tokens.last, names_filter=[last, *names])
    direction = LogitDirection.of(model, inputs, cache[last], others).vector
    by_key = {}
    for layer in layers:
        towards = _before_norm(model, layer, direction, at_last_position(inputs, cache["z", layer.layer]))
        pattern, values = cache["pattern", layer.layer], cache["v", layer.layer]
        # Any: pyright sees no attributes of a module.
        attn: Any = model.blocks[layer.layer].attn
        by_key[layer.layer] = pattern * logit_contributions(values, attn.W_O, towards.to(values.device)[:, None])
    masks = torch.stack([mask.to(direction.device) for mask in routes.values()], 1).float()
    each = [by_key[layer][:, head, 0].to(masks) for layer, head in chosen]
    values = einsum(torch.stack(each, 1), masks, "sample head key, sample route key -> sample head route")
    return HeadRoutes(values, chosen.heads, tuple(routes))


def _before_norm(
    model: HookedMLLM,
    layer: DecoderLayer,
    direction: Float[Tensor, "sample d_model"],
    z: Float[Tensor, "sample head d_head"],
) -> Float[Tensor, "sample d_model"]:
    """The direction before the norm behind W_O, if there is one."""
    # Any: pyright sees no attributes of a module.
    attn: Any = model.blocks[layer.layer].attn
    norm = layer.points["attn_out"].module
    if norm is layer.attentions["attn"].module:
        return direction
    written = einsum(z.float(), attn.W_O.float(), "sample head d, head d d_model -> sample d_model") + attn.b_O.float()
    weights = norm_weights(
        norm, written.shape[-1], model.hf_model.dtype, f"the norm behind the heads of L{layer.layer}"
    )
    return transposed(weights, direction, weights.scale(written))


def _check(
    model: HookedMLLM, heads: HeadSet, tokens: TokenMap, routes: Mapping[str, Bool[Tensor, "batch position"]]
) -> None:
    """Raise a ValueError that says why what heads write has no routes."""
    model.check_heads(heads)
    for head in heads:
        layer = model.hf_layers[head.layer]
        attention = layer.attentions["attn"]
        if attention.is_cross_attention:
            raise ValueError(f"{head} attends to an encoder, so that its keys are no positions of the prompt.")
        if attention.gated:
            raise ValueError(
                f"{head} writes no sum over its keys: a gate or a norm stands between it and W_O, and differs by "
                f"position. cache['o_in', {head.layer}, 'attn'] times W_O is what it writes. {docs_link('no-circuit')}"
            )
        if "attn_out" in layer.missing:
            raise ValueError(f"what {head} adds to the residual stream is not known: {layer.missing['attn_out']}.")
    for name, mask in routes.items():
        if mask.shape != tokens.role.shape:
            raise ValueError(
                f"the route {name!r} has shape {tuple(mask.shape)}, and the inputs have (batch, position) = "
                f"{tuple(tokens.role.shape)}: it belongs to another prompt. {docs_link('other-prompt')}"
            )
