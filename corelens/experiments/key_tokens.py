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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from os import PathLike
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from corelens import metrics
from corelens.data import Sample, evidence_tokens
from corelens.errors import check_choice
from corelens.experiments.fingerprint import model_fingerprint
from corelens.experiments.passes import finite_passes, run_pattern_hooks, stack_layers
from corelens.experiments.resumable import (
    SampleSets,
    flatten_datasets,
    prepare_samples,
    run_resumable,
    sample_errors,
)
from corelens.experiments.run_folder import RunFolder, Shard, write_scores
from corelens.heads import HeadSet
from corelens.hooks.rows import row_mask
from corelens.metrics.bootstrap import bootstrap_interval
from corelens.metrics.head_score import require_queries
from corelens.metrics.key_tokens import HIT_THRESHOLD
from corelens.model import HookedMLLM
from corelens.scores import HeadScores
from corelens.tokens import BoxRule, Views

SHARD_SIZE = 32
"""Samples that are kept or lost together when a scan is interrupted."""

METRIC = "key token ratio"
"""Name of the ratios in figures, and of their file."""

Rankings = Mapping[str, Sequence[HeadSet]]
"""Rankings of heads, first head first, by kind; several of one length where they are drawn at random."""


class CoverageCurve(NamedTuple):
    """Coverage of the evidence by the number of heads."""

    n_heads: Int[np.ndarray, "size"]
    mean: Float[np.ndarray, "size"]
    low: Float[np.ndarray, "size"]
    """Lower bound of the 95 % bootstrap interval over samples; NaN of a single one."""
    high: Float[np.ndarray, "size"]


class HitRate(NamedTuple):
    """Key tokens of some heads, each for itself, in the mean over heads, draws and samples."""

    ratio: float
    """Key token ratio, in [0, 1]."""

    hits: float
    """Share of heads and samples whose ratio reaches the threshold."""


@dataclass(frozen=True)
class KeyTokens:
    """Key token ratios of every head, and key token coverage along rankings of heads."""

    ratios: HeadScores
    """Key token ratio of every sample and head."""

    rankings: Rankings
    coverage: Mapping[str, Float[Tensor, "sample draw size"]]
    """By kind: coverage of the first one, two, ... heads of each ranking."""

    n_tokens: Int[Tensor, "sample"]
    """Length of every sample's sequence."""

    n_evidence: Int[Tensor, "sample"]
    """Number of tokens of its evidence."""

    def for_dataset(self, name: str) -> "KeyTokens":
        """The same of the samples of one data set.

        Raises:
            ValueError: If there is no such data set.
        """
        ratios = self.ratios.for_dataset(name)
        rows = [index for index, dataset in enumerate(self.ratios.datasets) if dataset == name]
        coverage = {kind: values[rows] for kind, values in self.coverage.items()}
        return KeyTokens(ratios, self.rankings, coverage, self.n_tokens[rows], self.n_evidence[rows])

    def curve(self, kind: str) -> CoverageCurve:
        """Mean coverage over samples and draws of a kind of ranking, with its interval."""
        return _curve(self.coverage[kind].mean(1), self.ratios.groups)

    def chance_curve(self) -> CoverageCurve:
        """Coverage of heads whose top tokens are drawn at random, up to the longest ranking."""
        n = max(coverage.shape[-1] for coverage in self.coverage.values())
        return _curve(metrics.chance_coverage(torch.arange(1, n + 1), self.n_tokens), self.ratios.groups)

    def hit_rates(self, n: int = 15, threshold: float | int = HIT_THRESHOLD) -> dict[str, HitRate]:
        """Key tokens of the first `n` heads of every kind of ranking, and by chance.

        Args:
            n: Number of heads; 15 in the paper.
            threshold: Ratio from which on a head hits the evidence.

        Raises:
            ValueError: If a ranking has fewer heads.
        """
        rates = {}
        for kind, draws in self.rankings.items():
            if not 0 < n <= (length := min(map(len, draws))):
                raise ValueError(f"n={n} heads of ranking {kind!r}, which has {length}; take from 1 to {length}.")
            heads = torch.tensor([list(ranking)[:n] for ranking in draws])
            ratios = self.ratios.values[:, heads[..., 0], heads[..., 1]].flatten()
            rates[kind] = HitRate(float(ratios.nanmean()), float(metrics.hit_rate(ratios, threshold)))
        share = metrics.chance_coverage(torch.ones(1, dtype=torch.int64), self.n_tokens)
        hits = metrics.chance_hit_rate(self.n_tokens, self.n_evidence, threshold)
        return rates | {"chance": HitRate(float(share.mean()), float(hits.mean()))}


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
    model: HookedMLLM,
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
        for ranking in draws:
            model.check_heads(ranking)
    fingerprint = model_fingerprint(model, out is not None)
    choices = {"rule": rule, "views": views, "batch_size": batch_size}
    choices |= {"rankings": {kind: [str(ranking) for ranking in draws] for kind, draws in rankings.items()}}
    evaluate = partial(_measure_batch, model, rankings, rule, views)
    shards = run_resumable(
        "key-tokens", flatten_datasets(samples), evaluate, fingerprint, choices, SHARD_SIZE, batch_size, out
    )
    key_tokens = _key_tokens(shards, rankings, {**fingerprint, **choices})
    if out is not None:
        write_scores(out, METRIC.replace(" ", "_"), key_tokens.ratios)
    return key_tokens


def read_key_tokens(run: RunFolder) -> KeyTokens:
    """Load the results of `scan_key_tokens` from its run folder."""
    saved: Mapping[str, list[str]] = run.manifest["rankings"]
    rankings = {kind: [HeadSet.parse(ranking) for ranking in draws] for kind, draws in saved.items()}
    return _key_tokens(run.read_all(), rankings, run.manifest)


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


def _key_tokens(shards: Shard, rankings: Rankings, manifest: Mapping[str, Any]) -> KeyTokens:
    ratios = HeadScores(
        shards.values[METRIC].unflatten(1, tuple(manifest["heads"])),
        METRIC,
        shards.samples,
        manifest["model"],
        shards.datasets,
        choices={"queries": "question", "rule": manifest["rule"], "views": manifest["views"]},
        skipped=shards.skipped,
        groups=shards.groups,
    )
    coverage = {
        kind: shards.values[f"coverage, {kind}"].unflatten(1, (len(draws), len(draws[0])))
        for kind, draws in rankings.items()
    }
    n_tokens, n_evidence = (shards.values[name][:, 0].long() for name in ("tokens", "evidence"))
    return KeyTokens(ratios, rankings, coverage, n_tokens, n_evidence)


def _curve(coverage: Float[Tensor, "sample size"], groups: Sequence[str]) -> CoverageCurve:
    low, high = bootstrap_interval(coverage[:, None], groups=groups)
    sizes = np.arange(1, coverage.shape[1] + 1, dtype=np.int32)
    return CoverageCurve(sizes, coverage.mean(0).numpy(), low[0].numpy(), high[0].numpy())
