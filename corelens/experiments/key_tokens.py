"""Key tokens of every head over many samples: ratios of single heads, and coverage of growing sets of heads.

One pass a batch; each layer computes the rows of the question tokens, finds the top tokens of every head, and keeps two
things before the next layer runs: the ratio of each head, and for each token of the evidence the best place in every
ranking among the heads that have it in their top tokens. The coverage of the first n heads of a ranking is the share of
tokens whose place is below n, for all n at once:

    pattern [batch head row key]  --top_tokens-->  [batch head key]  --with evidence-->  ratio [batch head]
                                                         |
                                 place in a ranking, minimum over heads and layers [batch ranking key]
                                                         |
                                                histogram, summed up: coverage [batch ranking size]
"""

from collections.abc import Sequence
from functools import partial
from os import PathLike
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from corelens import metrics
from corelens.data import Sample, evidence_tokens
from corelens.errors import check_choice
from corelens.experiments.key_token_results import METRIC, KeyTokens, Rankings, key_tokens_of
from corelens.experiments.passes import finite_passes, run_pattern_hooks, stack_layers
from corelens.experiments.remote import AnyModel, Evaluate, checked_fingerprint
from corelens.experiments.resumable import (
    SampleSets,
    flatten_datasets,
    prepare_samples,
    run_resumable,
    sample_errors,
)
from corelens.experiments.run_folder import write_scores
from corelens.heads import HeadSet
from corelens.hooks.rows import row_mask
from corelens.metrics.head_score import require_queries
from corelens.model import HookedMLLM
from corelens.scores import HeadScores
from corelens.tokens import BoxRule, Views

SHARD_SIZE = 32
"""Samples that are kept or lost together when a scan is interrupted."""


def rank_and_draw(scores: HeadScores, n: int = 250, seeds: Sequence[int] = range(5)) -> dict[str, list[HeadSet]]:
    """Return the rankings that are compared: best heads first, worst heads first, and in random order.

    Args:
        scores: Scores that rank heads.
        n: Length of the rankings, at most all heads; by default the 250 of appendix E.4 of arXiv 2606.05843.
        seeds: Seeds of the random orders, which are of all heads.
    """
    n = min(n, scores.n_heads)
    heads = sorted(scores.ranked())
    orders = [np.random.default_rng(seed).permutation(len(heads))[:n] for seed in seeds]
    return {
        "top": [scores.top(n)],
        "random": [
            HeadSet(tuple(heads[index] for index in order), f"{n} random heads, seed {seed}")
            for seed, order in zip(seeds, orders, strict=True)
        ],
        "bottom": [scores.bottom(n)],
    }


def scan_key_tokens(
    model: AnyModel,
    samples: SampleSets,
    rankings: Rankings,
    rule: BoxRule = "overlap",
    views: Views = "all",
    batch_size: int = 16,
    out: str | PathLike[str] | None = None,
) -> KeyTokens:
    """Measure key token ratio and key token coverage over many samples, in one pass each.

    Attention itself runs fused; only the rows of the question tokens are computed.

    Args:
        model: The model.
        samples: Questions with media and evidence; a mapping if there are several data sets.
        rankings: As returned by `rank_and_draw`.
        rule: Rule by which evidence in pixels becomes visual tokens; see `TokenMap.in_box`. `fraction` cannot be used,
            since tokens are counted whole.
        views: Views of a picture that hold evidence; see `TokenMap.in_box`.
        batch_size: Most samples a pass; fewer after running out of memory.
        out: A folder that keeps finished shards, and in the end the ratios as `key_token_ratio.safetensors`. The same
            scan into the same folder resumes it.

    Returns:
        Ratios and coverages. Samples that cannot be measured are skipped: `ratios.skipped` has the reason of each, and
        a warning their number.

    Raises:
        ValueError: If a ranking is empty, names a head that does not exist, or has another length than others of its
            kind, there is no sample, every sample is skipped, or `out` holds another run; the message names the
            difference.
        RuntimeError: If another process is writing to `out`.

    Source:
        Sun et al. 2026 (arXiv 2606.05843), appendices E.3 and E.4; random rankings and the level of chance are
        corelens's own.
    """
    check_choice("views", views, Views)
    check_choice("rule", rule, BoxRule)
    if rule == "fraction":
        raise ValueError("rule='fraction' weights tokens, and key tokens are counted whole; take e.g. 'overlap'.")
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} is less than one.")
    rankings = {kind: list(draws) for kind, draws in rankings.items()}
    for kind, draws in rankings.items():
        if len(lengths := {len(ranking) for ranking in draws}) != 1 or not all(lengths):
            raise ValueError(f"{kind!r} has rankings of {sorted(lengths)} heads; it needs one or more of one length.")
    fingerprint, _ = checked_fingerprint(model, out is not None, partial(_check_heads, rankings=rankings))
    choices = {"rule": rule, "views": views, "batch_size": batch_size}
    choices |= {"rankings": {kind: [str(ranking) for ranking in draws] for kind, draws in rankings.items()}}
    listed = flatten_datasets(samples)
    evaluator = partial(_measure_batches, rankings=rankings, rule=rule, views=views)
    shards = run_resumable("key-tokens", model, listed, evaluator, fingerprint, choices, SHARD_SIZE, batch_size, out)
    key_tokens = key_tokens_of(shards, rankings, {**fingerprint, **choices})
    if out is not None:
        write_scores(out, METRIC.replace(" ", "_"), key_tokens.ratios)
    return key_tokens


def _check_heads(model: HookedMLLM, rankings: Rankings) -> None:
    model.check_heads(head for draws in rankings.values() for ranking in draws for head in ranking)


def _measure_batches(model: HookedMLLM, rankings: Rankings, rule: BoxRule, views: Views) -> Evaluate:
    return partial(_measure_batch, model, rankings, rule, views)


@torch.no_grad()
def _measure_batch(
    model: HookedMLLM, rankings: Rankings, rule: BoxRule, views: Views, samples: Sequence[Sample]
) -> dict[str, Float[Tensor, "batch *units"]]:
    """Ratios of all heads, coverages along all rankings, and sizes of sequences and evidence."""
    inputs = prepare_samples(model, samples)
    tokens = inputs.tokens
    with sample_errors():
        evidence = evidence_tokens(samples, tokens, rule, views).bool().cpu()
        require_queries(question=tokens.question)
    sequence, queries = ~tokens.padding, row_mask(tokens.question)
    positions = evidence.any(0).nonzero().flatten()
    ratios: dict[int, Tensor] = {}
    orders = {kind: [_places(model, ranking) for ranking in draws] for kind, draws in rankings.items()}
    first = {kind: torch.full((len(samples), len(draws), len(positions)), len(draws[0]))
             for kind, draws in rankings.items()}  # fmt: skip

    def find_key_tokens(pattern: Float[Tensor, "batch head row key"], hook: Any) -> None:
        layer, device = hook.layer(), pattern.device
        top = metrics.top_tokens(pattern, queries.to(device), sequence.to(device))
        captured = top[..., positions.to(device)] & evidence[:, None, positions].to(device)
        ratios[layer] = (captured.sum(-1) / evidence.sum(-1, keepdim=True).to(device)).cpu()
        for kind, places in orders.items():
            for draw, place in enumerate(places):
                reached = _first_place(
                    captured, place[layer, : captured.shape[1]].to(device), len(rankings[kind][draw])
                )
                first[kind][:, draw] = torch.minimum(first[kind][:, draw], reached.cpu())

    hooks = [(name, find_key_tokens) for name in model.attn_names("pattern")]
    with finite_passes(model, inputs):
        run_pattern_hooks(model, inputs, hooks, tokens.question)
    sizes = {"tokens": sequence.sum(-1, keepdim=True).float(), "evidence": evidence.sum(-1, keepdim=True).float()}
    coverage = {f"coverage, {kind}": _coverage(first[kind], evidence[:, positions], len(draws[0]))
                for kind, draws in rankings.items()}  # fmt: skip
    return {METRIC: stack_layers(ratios, model), **sizes, **coverage}


def _places(model: HookedMLLM, ranking: HeadSet) -> Int[Tensor, "layer head"]:
    """Place of every head in a ranking, from zero; its length for heads that are not in it."""
    places = torch.full((model.cfg.n_layers, model.cfg.n_heads), len(ranking))
    for place, head in enumerate(ranking):
        places[head] = place
    return places


def _first_place(
    captured: Bool[Tensor, "batch head key"], places: Int[Tensor, "head"], n: int
) -> Int[Tensor, "batch key"]:
    """Best place of a head that has the token among its top tokens; n if there is none."""
    return torch.where(captured, places[:, None], n).amin(1)


def _coverage(
    first: Int[Tensor, "batch draw key"], evidence: Bool[Tensor, "batch key"], n: int
) -> Float[Tensor, "batch draw size"]:
    """Share of the evidence that the first one, two, ..., n heads cover."""
    counts = torch.zeros(*first.shape[:2], n + 1)
    counts.scatter_add_(-1, first, evidence[:, None].expand_as(first).float())
    return counts[..., :n].cumsum(-1) / evidence.sum(-1)[:, None, None]
