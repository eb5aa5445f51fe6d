"""Comparison of the heads of a run with a published list or another run."""

from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import torch

from corelens.experiments.run_folder import RunFolder
from corelens.head_formats import load_published
from corelens.heads import HeadSet
from corelens.metrics import overlap, spearman, spearman_interval
from corelens.metrics.score_distribution import Amount
from corelens.metrics.stability import Overlap, jaccard
from corelens.scores import HeadScores

TOP = 0.05
"""Share of heads that are compared if both score all heads."""


class RankCorrelation(NamedTuple):
    """Rank correlation of two scores over heads."""

    spearman: float
    low: float
    """Bound of the 95 % interval, as if heads were drawn independently."""
    high: float
    n_heads: int
    """Number of heads that both score."""


class Comparison(NamedTuple):
    """Two sets of heads of one model, and their agreement."""

    top: HeadSet
    """Heads of the run: as many as the others, highest first."""

    other: HeadSet
    overlap: Overlap
    """Overlap of the two sets, and by chance."""

    jaccard: float
    ranks: RankCorrelation | None
    """None if fewer than three heads have scores in both, or all score the same in one."""


def compare_rankings(scores: HeadScores, other: HeadScores | HeadSet, n: Amount | None = None) -> Comparison:
    """Compare the top heads of a run with as many others.

    Args:
        scores: Scores of the run.
        other: A published list, best first, or scores of another run. A list ranks only the heads that it names.
        n: Number of heads of each, as for `HeadScores.top`. By default as many as are listed; 5 % if all are.

    Raises:
        ValueError: If their models have different numbers of layers or heads, a listed head has no score in the run,
            or there are fewer heads than `n`.
    """
    _require_same_heads(scores, other)
    if isinstance(other, HeadSet):
        other = _scores_by_place(other, scores.values.shape[1:])
    n = (TOP if other.n_heads == scores.n_heads else other.n_heads) if n is None else n
    top = scores.top(n)
    other_top = other.top(len(top))
    return Comparison(
        top,
        other_top,
        overlap(set(top), set(other_top), scores.n_heads),
        jaccard(set(top), set(other_top)),
        _rank_correlation(scores, other),
    )


def comparison_summary(comparison: Comparison, scores: HeadScores) -> dict[str, Any]:
    """Agreement, depths and heads of a comparison, ready for JSON.

    Args:
        comparison: As returned by `compare_rankings`.
        scores: Scores of the run.
    """
    top, other, n_layers = comparison.top, comparison.other, len(scores.per_head)
    ranks = comparison.ranks
    return {
        "layers": n_layers,
        "heads": scores.n_heads,
        "top": len(top),
        "overlap": {
            "shared": comparison.overlap.shared,
            "by chance": round(comparison.overlap.expected, 4),
            "95 % of chance": [comparison.overlap.low, comparison.overlap.high],
            "p": comparison.overlap.p_value,
        },
        "jaccard": round(comparison.jaccard, 4),
        "rank correlation": ranks
        and {
            "spearman": round(ranks.spearman, 4),
            "interval": [round(ranks.low, 4), round(ranks.high, 4)],
            "heads": ranks.n_heads,
        },
        "depth": {
            name: {"mean": round(mean_depth(heads, n_layers), 4), "thirds": list(in_thirds(heads, n_layers))}
            for name, heads in {"run": top, "other": other}.items()
        },
        "in both": [str(head) for head in top & other],
        "only in the run": [str(head) for head in top - other],
        "only in the other": [str(head) for head in other - top],
    }


def mean_depth(heads: HeadSet, n_layers: int) -> float:
    """Mean relative depth: 0 in the first layer, 1 in the last."""
    return sum(head.layer for head in heads) / len(heads) / max(n_layers - 1, 1)


def in_thirds(heads: HeadSet, n_layers: int) -> tuple[int, int, int]:
    """Number of heads in the first, middle and last third of the layers."""
    thirds = [3 * head.layer // n_layers for head in heads]
    return thirds.count(0), thirds.count(1), thirds.count(2)


def load_scores(run: str | PathLike[str], metric: str | None = None) -> HeadScores:
    """Load the scores of a finished scan or sweep.

    Args:
        run: Its folder, or one of the .safetensors in it.
        metric: One of its metrics; the first by default. A sweep has one.

    Raises:
        ValueError: If there are no such scores, or the run is unfinished.
    """
    path = Path(run)
    if not path.exists():
        raise ValueError(f"there is no run {path}.")
    if path.is_dir():
        path = _scores_file(path, metric)
    return HeadScores.load(path)


def load_other(path: str | PathLike[str], scores: HeadScores, metric: str | None = None) -> HeadScores | HeadSet:
    """Load what a run is compared with: a published list if it is a JSON file, or the scores of another run.

    Raises:
        ValueError: As `load_published` and `load_scores`.
    """
    if Path(path).is_dir() or Path(path).suffix == ".safetensors":
        return load_scores(path, metric)
    try:
        return load_published(path, *scores.values.shape[1:])
    except OSError as cause:
        raise ValueError(f"{path} cannot be read: {cause.strerror}.") from cause


def _scores_file(folder: Path, metric: str | None) -> Path:
    """File of the scores by a metric in a run folder."""
    manifest = RunFolder.load(folder).manifest
    names = [path.stem for path in sorted(folder.glob("*.safetensors"))]
    if not names:
        raise ValueError(
            f"{folder} holds no scores of heads. Its work is {manifest['work']!r}; a scan has them, and a sweep of "
            f"single heads, once it has ended."
        )
    name = next((name for name in manifest.get("measures", ()) if name in names), names[0])
    if metric is not None and manifest["work"] != "sweep":
        name = metric
    if name not in names:
        raise ValueError(f"{folder} holds no scores by {name!r}; it has {', '.join(names)}.")
    return folder / f"{name}.safetensors"


def _require_same_heads(scores: HeadScores, other: HeadScores | HeadSet) -> None:
    layers, heads = scores.values.shape[1:]
    if isinstance(other, HeadScores) and other.values.shape[1:] != (layers, heads):
        raise ValueError(
            f"the run has {layers} layers of {heads} heads, and the other {other.values.shape[1]} of "
            f"{other.values.shape[2]}: only heads of one model, or of models of one size, can be compared."
        )
    listed = other.heads if isinstance(other, HeadSet) else other.ranked()
    if missing := [str(head) for head in listed if head.layer >= layers or head.head >= heads or not scores.mask[head]]:
        raise ValueError(f"{missing[0]} is listed and has no score in the run, which has {layers} layers of {heads}.")


def _scores_by_place(listed: HeadSet, shape: tuple[int, ...]) -> HeadScores:
    """Turn a list without scores, best first, into scores: the last head scores 1, the one before it 2."""
    values = torch.full((1, *shape), torch.nan)
    for place, head in enumerate(listed):
        values[0, head.layer, head.head] = len(listed) - place
    return HeadScores(values, "place in the list", (listed.name,))


def _rank_correlation(scores: HeadScores, other: HeadScores) -> RankCorrelation | None:
    both = scores.mask & other.mask
    n = int(both.sum())
    if n < 3 or any(len(values.per_head[both].unique()) == 1 for values in (scores, other)):
        return None
    correlation = spearman(scores.per_head, other.per_head)
    return RankCorrelation(correlation, *spearman_interval(correlation, n), n)
