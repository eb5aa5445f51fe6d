"""The heads of a run beside those of a published list, or of another run."""

from os import PathLike
from pathlib import Path
from typing import NamedTuple

import torch

from corelens.experiments.run_folder import RunFolder
from corelens.head_formats import load_published
from corelens.heads import HeadSet
from corelens.metrics import overlap, spearman, spearman_interval
from corelens.metrics.stability import Overlap, jaccard
from corelens.scores import HeadScores

TOP = 0.05
"""Share of heads that are compared where both score all heads."""


class Ranks(NamedTuple):
    """How far two scores rank heads alike."""

    spearman: float
    low: float
    """Of the 95 % interval, as if heads were drawn independently."""
    high: float
    n_heads: int
    """Heads that both score."""


class Comparison(NamedTuple):
    """Two sets of heads of one model, and the scores that chose them."""

    top: HeadSet
    """Of the run: as many as the others, highest first."""

    other: HeadSet
    overlap: Overlap
    """Of the two sets, and by chance."""

    jaccard: float
    ranks: Ranks | None
    """None where fewer than three heads have scores in both, or all the same."""


def compare_rankings(scores: HeadScores, other: HeadScores | HeadSet, n: float | int | None = None) -> Comparison:
    """The top heads of a run beside as many others.

    Args:
        scores: Of the run.
        other: A published list, best first, or scores of another run. A list ranks only the heads that it names.
        n: How many heads of each, as for `HeadScores.top`. By default as many as are listed; 5 % of them if all are.

    Raises:
        ValueError: If they are of models of different layers or heads, a listed head has no score in the run, or there
            are fewer heads than `n`.
    """
    _require_same_heads(scores, other)
    if isinstance(other, HeadSet):
        other = _scored_by_place(other, scores.values.shape[1:])
    n = (TOP if other.n_heads == scores.n_heads else other.n_heads) if n is None else n
    own = scores.top(n)
    others = other.top(len(own))
    return Comparison(
        own,
        others,
        overlap(set(own), set(others), scores.n_heads),
        jaccard(set(own), set(others)),
        _ranks(scores, other),
    )


def mean_depth(heads: HeadSet, n_layers: int) -> float:
    """Mean relative depth: 0 in the first layer, 1 in the last."""
    return sum(head.layer for head in heads) / len(heads) / max(n_layers - 1, 1)


def in_thirds(heads: HeadSet, n_layers: int) -> tuple[int, int, int]:
    """How many heads lie in the first, middle and last third of the layers."""
    thirds = [3 * head.layer // n_layers for head in heads]
    return thirds.count(0), thirds.count(1), thirds.count(2)


def load_scores(run: str | PathLike[str], measure: str | None = None) -> HeadScores:
    """The scores of a finished scan or sweep.

    Args:
        run: Its folder, or one of the .safetensors in it.
        measure: Which of its measures; the first by default. A sweep has one.

    Raises:
        ValueError: If there are no such scores, or the run is unfinished.
    """
    path = Path(run)
    if not path.exists():
        raise ValueError(f"there is no run {path}.")
    if path.is_dir():
        path = _file_of(path, measure)
    return HeadScores.load(path)


def load_other(path: str | PathLike[str], scores: HeadScores, measure: str | None = None) -> HeadScores | HeadSet:
    """What a run is compared with: a published list if it is a JSON file, or the scores of another run.

    Raises:
        ValueError: As `load_published` and `scores_of`.
    """
    if Path(path).is_dir() or Path(path).suffix == ".safetensors":
        return load_scores(path, measure)
    try:
        return load_published(path, *scores.values.shape[1:])
    except OSError as cause:
        raise ValueError(f"{path} cannot be read: {cause.strerror}.") from cause


def _file_of(folder: Path, measure: str | None) -> Path:
    manifest = RunFolder.load(folder).manifest
    there = [path.stem for path in sorted(folder.glob("*.safetensors"))]
    if not there:
        raise ValueError(
            f"{folder} holds no scores of heads. Its work is {manifest['work']!r}; a scan has them, and a sweep of "
            f"single heads, once it has ended."
        )
    name = next((name for name in manifest.get("measures", ()) if name in there), there[0])
    if measure is not None and manifest["work"] != "sweep":
        name = measure
    if name not in there:
        raise ValueError(f"{folder} holds no scores by {name!r}; it has {', '.join(there)}.")
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


def _scored_by_place(listed: HeadSet, shape: tuple[int, ...]) -> HeadScores:
    """A list that gives no scores, best first, as scores: how many heads stand below each, and itself."""
    values = torch.full((1, *shape), torch.nan)
    for place, head in enumerate(listed):
        values[0, head.layer, head.head] = len(listed) - place
    return HeadScores(values, "place in the list", (listed.name,))


def _ranks(one: HeadScores, other: HeadScores) -> Ranks | None:
    both = one.mask & other.mask
    n = int(both.sum())
    if n < 3 or any(len(each.per_head[both].unique()) == 1 for each in (one, other)):
        return None
    correlation = spearman(one.per_head, other.per_head)
    return Ranks(correlation, *spearman_interval(correlation, n), n)
