"""Passes that are run for their hooks on attention rows alone: no logits, no cache, no activation that is kept."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from corelens.hf.prefix_cache import PrefixCache
from corelens.hooks.rows import Hooks
from corelens.model import HookedMLLM


def run_pattern_hooks(
    model: HookedMLLM,
    inputs: Mapping[str, Any],
    hooks: Hooks,
    queries: Bool[Tensor, "batch position"],
    prefix: PrefixCache | None = None,
) -> None:
    """Run one pass for its hooks; patterns have the rows of `queries` only.

    Args:
        model: The model.
        inputs: The tensors of the pass.
        hooks: Pairs of a hook name and a function.
        queries: Positions whose rows are computed.
        prefix: As returned by `model.prefix` for these inputs, if all queries come after it.
    """
    parameters = inspect.signature(model.hf_model.forward).parameters
    any_keyword = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    savings = {"logits_to_keep": 1} if "logits_to_keep" in parameters else {}
    savings |= {"use_cache": False} if prefix is None and (any_keyword or "use_cache" in parameters) else {}
    with model.hooks(fwd_hooks=list(hooks), queries=queries):
        model(inputs, prefix=prefix, **savings)


def stack_layers(
    layers: Mapping[int, Float[Tensor, "batch head"]], model: HookedMLLM
) -> Float[Tensor, "batch layer head"]:
    """Stack layers in order, on the CPU; NaN where there is no head."""
    batch = len(next(iter(layers.values())))
    scores = torch.full((batch, model.cfg.n_layers, model.cfg.n_heads), torch.nan)
    for layer, values in layers.items():
        scores[:, layer, : values.shape[1]] = values
    return scores
