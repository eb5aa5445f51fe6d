"""Passes that are run for their hooks on attention rows alone: no logits, no cache, no activation that is kept."""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import pad

from corelens.errors import docs_link
from corelens.experiments.resumable import SampleError
from corelens.hf.prefix_cache import PrefixCache
from corelens.hooks.points import hook_name
from corelens.hooks.rows import Hooks
from corelens.inputs.prepare import PreparedInputs
from corelens.model import HookedMLLM


@contextmanager
def finite_passes(model: HookedMLLM, inputs: PreparedInputs) -> Iterator[None]:
    """Check that what the last layer writes in the passes of the block is finite: NaN spreads to it from any layer.

    Raises:
        SampleError: If it is not; names the first layer that writes no finite numbers.
    """
    broken: set[int] = set()
    real = ~inputs.tokens.padding

    def look(resid: Float[Tensor, "batch some_position d_model"], hook: Any) -> None:
        n = resid.shape[1]
        shown = pad(real, (0, max(n - real.shape[1], 0)), value=True)[:, -n:].to(resid.device)
        if not (resid.isfinite().all(-1) | ~shown).all():
            broken.add(hook.layer())

    layers = range(model.cfg.n_layers)
    with model.hooks(fwd_hooks=[(hook_name(layers[-1], "resid_post"), look)]):
        yield
    if not broken:
        return
    with torch.no_grad(), model.hooks(fwd_hooks=[(hook_name(layer, "resid_post"), look) for layer in layers]):
        model(inputs)
    raise SampleError(
        f"layer {min(broken)} writes NaN or infinity, so that no head after it has a score. If it does so for every "
        f"sample, its weights are damaged or its dtype overflows: load the model again, in bfloat16 or float32. "
        f"{docs_link('not-finite')}"
    )


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
