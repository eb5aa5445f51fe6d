"""Finished scans of key tokens: ratios of heads, and coverage along rankings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from corelens import metrics
from corelens.experiments.run_folder import RunFolder, Shard
from corelens.heads import HeadSet
from corelens.metrics.bootstrap import bootstrap_interval
from corelens.metrics.key_tokens import HIT_THRESHOLD
from corelens.scores import HeadScores

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


def read_key_tokens(run: RunFolder) -> KeyTokens:
    """Load the results of `scan_key_tokens` from its run folder."""
    saved: Mapping[str, list[str]] = run.manifest["rankings"]
    rankings = {kind: [HeadSet.parse(ranking) for ranking in draws] for kind, draws in saved.items()}
    return key_tokens_of(run.read_all(), rankings, run.manifest)


def key_tokens_of(shards: Shard, rankings: Rankings, manifest: Mapping[str, Any]) -> KeyTokens:
    """Name the numbers of a scan."""
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
