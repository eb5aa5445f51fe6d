"""Scores for every head over many samples, without keeping an activation."""

import inspect
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from corelens.attention import chosen_rows
from corelens.data import Sample, evidence_tokens, prepared_batches
from corelens.heads import HeadScores
from corelens.metrics import retrieval_attention_mass
from corelens.model import HookedMLLM
from corelens.tokens import Rule


@torch.no_grad()
def scan(
    model: HookedMLLM,
    samples: Iterable[Sample],
    queries: Literal["question", "last"] = "last",
    rule: Rule = "overlap",
    batch_size: int = 16,
) -> HeadScores:
    """Retrieval attention mass of every head on every sample.

    Attention itself runs fused; only the rows of the query tokens are recomputed, and each layer keeps one number per
    head before the next layer runs.

    Args:
        model: The model.
        samples: Questions with pictures and evidence.
        queries: Which tokens look: the last one of the prompt, which says the answer, as in the one published formula
            of the paper's laboratory; or all of the question, as digests of the paper say.
        rule: How evidence in pixels becomes visual tokens; see `TokenMap.inside`.
        batch_size: Samples a pass.

    Raises:
        ValueError: If a sample has no evidence, or its evidence selects no visual token; names the sample.
    """
    if queries not in ("question", "last"):
        raise ValueError(f"queries={queries!r} is not known; query tokens are question or last.")
    values, ids = [], []
    for batch, inputs in prepared_batches(model, samples, batch_size, "scan"):
        evidence = evidence_tokens(batch, inputs.tokens, rule)
        values.append(retrieval_masses(model, inputs, evidence, getattr(inputs.tokens, queries)).cpu())
        ids += [sample.id for sample in batch]
    return HeadScores(
        values=torch.cat(values),
        metric="retrieval attention mass",
        samples=tuple(ids),
        model=model.cfg.model_name,
        choices={"queries": queries, "rule": rule},
    )


@torch.no_grad()
def retrieval_masses(
    model: HookedMLLM,
    inputs: Mapping[str, Any],
    evidence: Bool[Tensor, "batch position"] | Float[Tensor, "batch position"],
    queries: Bool[Tensor, "batch position"],
) -> Float[Tensor, "batch layer head"]:
    """Retrieval attention mass of every head in one pass over one batch; nothing of the pass is kept.

    Args:
        model: The model.
        inputs: What `prepare` returns, or the tensors of the Hugging Face forward pass.
        evidence: Which positions hold the evidence, as weights in [0, 1] if it covers tokens in part.
        queries: Which positions are query tokens.

    Returns:
        NaN where there is no head: in layers without softmax attention, and in layers with fewer heads than others.
    """
    masses: dict[int, Tensor] = {}
    rows = chosen_rows(queries)

    def measure(pattern: Tensor, hook: Any) -> None:
        masses[hook.layer()] = retrieval_attention_mass(pattern, evidence, rows)

    takes = inspect.signature(model.hf_model.forward).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in takes.values())
    # Nobody reads the logits or the cache of a scan.
    savings = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}
    savings |= {"use_cache": False} if takes_any or "use_cache" in takes else {}
    with model.hooks(fwd_hooks=[(name, measure) for name in model.attn_names("pattern")], queries=queries):
        model(inputs, **savings)
    return _by_layer(masses, model.cfg.n_layers, model.cfg.n_heads)


def _by_layer(
    found: Mapping[int, Float[Tensor, "batch head"]], n_layers: int, n_heads: int
) -> Float[Tensor, "batch layer head"]:
    """Layers in order; NaN where there is no head, in layers without attention and in layers with fewer heads."""
    whole = next(iter(found.values())).new_full((len(next(iter(found.values()))), n_layers, n_heads), torch.nan)
    for layer, values in found.items():
        whole[:, layer, : values.shape[1]] = values
    return whole
