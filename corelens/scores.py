"""Scores of heads: one number per sample and head, what the number means, and the sets that it chooses."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from corelens.heads import Head, HeadSet
from corelens.metrics.aggregation import Aggregation, aggregate
from corelens.metrics.score_distribution import elbow, head_count, n_heads_with_share
from corelens.metrics.stability import jaccard, rank_biased_overlap, spearman


@dataclass(frozen=True)
class HeadScores:
    """One number per sample and head, and what the number means.

    Sets of heads are chosen by one number per head (`per_head`). Where a set is asked for by its size, a whole number
    is a number of heads and a fraction is of all heads, rounded up: 0.05 of 96 heads are five. A head without a score
    in any sample, as in a layer without attention, is none.
    """

    values: Float[Tensor, "sample layer head"]
    """Higher means more of `metric`; NaN where there is no head, or no score."""

    metric: str
    """Name of the metric as it appears in figures and files."""

    samples: tuple[str, ...]
    """The id of every sample, in the order of `values`."""

    model: str = ""
    """Which model was measured."""

    datasets: tuple[str, ...] = ()
    """The data set of every sample, or nothing if there is one."""

    aggregation: Aggregation = "mean"
    """How samples become one number per head; see `corelens.metrics.aggregate`."""

    choices: dict[str, Any] = field(default_factory=dict)
    """Every choice that shaped the numbers: query tokens, evidence rule and the like."""

    skipped: dict[str, str] = field(default_factory=dict)
    """Samples that could not be measured, by id, and why."""

    def __post_init__(self) -> None:
        if len(self.samples) != len(self.values):
            raise ValueError(f"{len(self.samples)} sample ids were given for {len(self.values)} rows of scores.")
        if self.datasets and len(self.datasets) != len(self.values):
            raise ValueError(f"{len(self.datasets)} data sets were given for {len(self.values)} rows of scores.")
        if not len(self.values):
            raise ValueError("there is no sample: head scores need at least one.")

    def __repr__(self) -> str:
        highest = ", ".join(map(str, self.ranked()[:3]))
        return (
            f"HeadScores({self.model or 'a model without a name'}, {self.metric}, {len(self.samples)} samples, "
            f"{self.n_heads} heads{f'; highest: {highest}' if highest else ''})"
        )

    @cached_property
    def per_head(self) -> Float[Tensor, "layer head"]:
        """One number per head, from all samples by `aggregation`."""
        return aggregate(self.values, self.aggregation, self.datasets)

    @property
    def mask(self) -> Bool[Tensor, "layer head"]:
        """Which heads have a score."""
        return ~self.per_head.isnan()

    @property
    def n_heads(self) -> int:
        """How many heads have a score."""
        return int(self.mask.sum())

    def aggregate_by(self, how: Aggregation) -> "HeadScores":
        """The same scores, to be ranked in another way."""
        return replace(self, aggregation=how)

    def for_dataset(self, name: str) -> "HeadScores":
        """The samples of one data set."""
        chosen = [index for index, own in enumerate(self.datasets) if own == name]
        if not chosen:
            raise ValueError(f"there is no data set {name!r}; there are {', '.join(dict.fromkeys(self.datasets))}.")
        return replace(
            self,
            values=self.values[chosen],
            samples=tuple(self.samples[index] for index in chosen),
            datasets=(name,) * len(chosen),
        )

    # --- sets of heads ---

    def ranked(self) -> list[Head]:
        """All heads, highest first; ties in order of layer and head."""
        order = torch.where(self.mask, self.per_head, -torch.inf).flatten().argsort(descending=True, stable=True)
        return [Head(*divmod(index, self.values.shape[-1])) for index in order[: self.n_heads].tolist()]

    def top(self, n: float | int = 0.05) -> HeadSet:
        """The heads with the highest scores."""
        n = self._count(n)
        return HeadSet(tuple(self.ranked()[:n]), self._describe("top", n))

    def next(self, n: float | int = 0.05) -> HeadSet:
        """As many heads as `top`, ranked right after them: the control for "any high-scoring head would do"."""
        n = self._count(n, others=True)
        return HeadSet(tuple(self.ranked()[n : 2 * n]), self._describe("next", n))

    def bottom(self, n: float | int = 0.05) -> HeadSet:
        """As many heads as `top`, with the lowest scores, lowest first."""
        n = self._count(n)
        return HeadSet(tuple(self.ranked()[::-1][:n]), self._describe("bottom", n))

    def above(self, threshold: float | int) -> HeadSet:
        """Heads whose score is above a threshold, highest first."""
        chosen = [head for head in self.ranked() if self.per_head[head] > threshold]
        return HeadSet(tuple(chosen), f"{self._describe('the', len(chosen))}, above {threshold:g}")

    def before_elbow(self) -> HeadSet:
        """Heads before the elbow of the sorted scores (`corelens.metrics.elbow`)."""
        n = elbow(self.per_head)
        return HeadSet(tuple(self.ranked()[:n]), f"{self._describe('the', n)}, before the elbow")

    def top_share_of_mass(self, share: float) -> HeadSet:
        """The fewest heads that together hold a share of all positive scores (`corelens.metrics.rho`)."""
        n = n_heads_with_share(self.per_head, share)
        return HeadSet(tuple(self.ranked()[:n]), f"{self._describe('the', n)}, holding {share:g} of it")

    def random(self, seed: int, n: float | int = 0.05) -> HeadSet:
        """As many heads as `top`, drawn from all others."""
        n = self._count(n, others=True)
        others = sorted(self.ranked()[n:])
        drawn = np.random.default_rng(seed).choice(len(others), n, replace=False)
        return HeadSet(tuple(others[index] for index in drawn), f"{n} random heads outside the top {n}, seed {seed}")

    def layer_matched_random(self, seed: int, n: float | int = 0.05) -> HeadSet:
        """For every head of `top`, another of the same layer that is not in it: the control for depth."""
        top = self.top(n)
        rng = np.random.default_rng(seed)
        drawn: list[Head] = []
        for layer, chosen in sorted(top.by_layer().items()):
            existing = self.mask[layer].nonzero().flatten().tolist()
            others = [head for head in existing if head not in chosen]
            if len(others) < len(chosen):
                raise ValueError(
                    f"layer {layer} has {len(existing)} heads and {len(chosen)} of them are in the top {len(top)}: too "
                    f"few others to draw from. Take fewer heads than {n}."
                )
            drawn += [Head(layer, int(head)) for head in rng.choice(others, len(chosen), replace=False)]
        name = f"{len(top)} random heads in the layers of the top {len(top)}, seed {seed}"
        return HeadSet(tuple(drawn), name)

    def controls(self, n: float | int = 0.05, seeds: Sequence[int] = range(5)) -> dict[str, list[HeadSet]]:
        """The top heads, and as many heads of every kind that they are compared with.

        Args:
            n: Share of all heads, or their number.
            seeds: Of the random draws.

        Returns:
            `top`, `next-ranked`, `random`, `random, same layers` and `bottom`; one set of heads each, and one for every
            seed where heads are drawn. Kinds that need more heads than there are beside the top ones are left out.

        Raises:
            ValueError: If `n` is not a number of heads that the model has.
        """
        top = self.top(n)
        sets = {"top": [top]}
        if 2 * len(top) <= self.n_heads:
            sets |= {"next-ranked": [self.next(n)], "random": [self.random(seed, n) for seed in seeds]}
        if all(2 * len(heads) <= self.mask[layer].sum() for layer, heads in top.by_layer().items()):
            sets["random, same layers"] = [self.layer_matched_random(seed, n) for seed in seeds]
        return sets | {"bottom": [self.bottom(n)]}

    def _count(self, n: float | int, others: bool = False) -> int:
        """How many heads are meant; at most half of them, if as many others are needed."""
        if isinstance(n, str):
            raise TypeError(f"n={n!r} is a text; give a share of heads, such as 0.05, or their number.")
        number = n if isinstance(n, int) else head_count(n, self.n_heads)
        most = self.n_heads // 2 if others else self.n_heads
        if not 0 < number <= most:
            raise ValueError(f"n={n} means {number} of {self.n_heads} heads; it must be between 1 and {most}.")
        return number

    def _describe(self, which: str, n: int) -> str:
        how = "" if self.aggregation == "mean" else f" ({self.aggregation})"
        return f"{which} {n} of {self.n_heads} heads by {self.metric}{how}"

    # --- files ---

    def save(self, path: str | PathLike[str]) -> None:
        """Writes a safetensors file that holds the values and everything said about them, in a folder that exists."""
        if not Path(path).parent.is_dir():
            raise FileNotFoundError(f"there is no folder {str(Path(path).parent)!r} to write {Path(path).name} into.")
        about = {name: value for name, value in asdict(self).items() if name != "values"}
        save_file({"values": self.values.contiguous()}, path, metadata={"corelens": json.dumps(about)})

    @classmethod
    def load(cls, path: str | PathLike[str]) -> "HeadScores":
        """Reads what `save` wrote; a ValueError if it is something else."""
        if Path(path).is_dir():
            raise IsADirectoryError(f"{str(path)!r} is a folder; name one of its scores.")
        try:
            with safe_open(path, "pt") as file:  # pyright: ignore[reportAbstractUsage]
                about = json.loads((file.metadata() or {})["corelens"])
                tuples = {name: tuple(about[name]) for name in ("samples", "datasets")}
                return cls(values=file.get_tensor("values"), **about | tuples)
        except (SafetensorError, KeyError, TypeError, ValueError) as cause:
            raise ValueError(f"{path} holds no head scores: it was not written by HeadScores.save.") from cause


def concatenate(parts: Iterable[HeadScores]) -> HeadScores:
    """Scores of several data sets or shards, one after the other.

    Raises:
        ValueError: If they differ in metric, model or any other choice; names the difference.
    """
    first, *others = parts
    for other in others:
        for name in ("metric", "model", "aggregation", "choices"):
            if getattr(first, name) != getattr(other, name):
                raise ValueError(
                    f"these scores cannot be joined: {name} is {getattr(first, name)!r} in one and "
                    f"{getattr(other, name)!r} in another."
                )
    every = [first, *others]
    return replace(
        first,
        values=torch.cat([one.values for one in every]),
        samples=tuple(sample for one in every for sample in one.samples),
        datasets=tuple(name for one in every for name in one.datasets or [""] * len(one.samples)),
        skipped={sample: why for one in every for sample, why in one.skipped.items()},
    )


class Agreement(NamedTuple):
    """How far two data sets, models or metrics agree about heads."""

    jaccard: float
    """Of the top sets."""

    shared: float
    """Share of one's top set that is in the other's."""

    spearman: float
    """Over all heads that both score."""

    rank_biased_overlap: float
    """Of the rankings, where the top counts most."""


def agreement(one: HeadScores, other: HeadScores, n: float | int = 0.05) -> Agreement:
    """How far two scores of the same heads agree; `n` is the size of the top sets.

    Raises:
        ValueError: If they do not score the same heads.
    """
    if one.values.shape[1:] != other.values.shape[1:] or not torch.equal(one.mask, other.mask):
        raise ValueError(
            f"these scores are of {one.n_heads} and {other.n_heads} heads in {tuple(one.values.shape[1:])} and "
            f"{tuple(other.values.shape[1:])} layers and heads: only scores of the same heads can be compared."
        )
    top, of_other = set(one.top(n)), set(other.top(n))
    return Agreement(
        jaccard(top, of_other),
        len(top & of_other) / len(top),
        spearman(one.per_head, other.per_head),
        rank_biased_overlap(one.ranked(), other.ranked()),
    )
