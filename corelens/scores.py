"""Head scores: one number per sample and head, the rankings and sets of heads that follow, and files of them.

Metrics and sweeps all end in a `HeadScores`, so that every ranking is cut, controlled, compared and saved in the same
way, and a file says which model, samples and choices its numbers come from:

    values [sample layer head]  --aggregation-->  per_head [layer head]  --ranked-->  [Head(2, 10), Head(3, 0), …]
                                                                                             |
              above(0.2): by threshold      top(5) or top(0.05), next, bottom                |
              random, layer_matched_random: drawn from the heads outside the top    <--------+
                                                                                             |
              controls: the top heads, and all sets of equally many that they are compared with

NaN marks a head that a model does not have, or that has no score; such heads are neither ranked nor counted.
"""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from io import StringIO
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from corelens import metrics
from corelens.errors import check_file, optional_import
from corelens.files import read_tensor, write_file, write_tensor
from corelens.heads import Head, HeadSet
from corelens.metrics.aggregation import Aggregation, full_precision
from corelens.metrics.score_distribution import Amount, head_count, plain_amount

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True)
class HeadScores:
    """One number per sample and head, with the metric, model, samples and choices that it comes from.

    Sets of heads are chosen by one number per head (`per_head`). Where a set is given by its size `n`, an integer is a
    number of heads, such as 5, and a `float` a share of all heads below one, such as 0.05, rounded up: 0.05 of 96 heads
    are five. 1 is one head, and 1.0 raises an error: `n_heads` is all of them. A head without a score in any sample, as
    in a layer without attention, does not count as a head.
    """

    values: Float[Tensor, "sample layer head"]
    """Higher means more of `metric`; NaN where there is no head, or no score."""

    metric: str
    """Name of the metric as it appears in figures and files."""

    samples: tuple[str, ...]
    """The id of every sample, in the order of `values`."""

    model: str = ""
    """Name of the model that was measured."""

    datasets: tuple[str, ...] = ()
    """The data set of every sample; empty if there is only one."""

    aggregation: Aggregation = "mean"
    """Method that turns samples into one number per head; see `corelens.metrics.aggregate`."""

    choices: dict[str, Any] = field(default_factory=dict)
    """Every choice that shaped the numbers: query tokens, evidence rule and the like."""

    skipped: dict[str, str] = field(default_factory=dict)
    """Reasons why samples could not be measured, by their ids."""

    groups: tuple[str, ...] = ()
    """The group of every sample, such as its picture, where several share one; empty if each is its own."""

    def __post_init__(self) -> None:
        values = torch.as_tensor(self.values)
        if values.ndim == 3 and not len(values):
            raise ValueError("there is no sample: head scores need at least one.")
        if values.ndim != 3 or not values.numel():
            raise ValueError(f"head scores have the axes [sample layer head], and these {list(values.shape)}.")
        if not values.is_floating_point():
            raise ValueError(f"head scores are real numbers, and these are {values.dtype}: give values.float().")
        # The tensor itself where it can be: `replace` keeps what is equal.
        object.__setattr__(self, "values", full_precision(values.detach() if values.requires_grad else values))
        for name, texts in {"sample ids": self.samples, "data sets": self.datasets, "groups": self.groups}.items():
            if len(texts) != len(self.values) and (texts or name == "sample ids"):
                raise ValueError(f"{len(texts)} {name} were given for {len(self.values)} rows of scores.")
            if not all(isinstance(text, str) for text in texts):
                raise TypeError(f"{name} are texts, and not {texts!r:.80}.")

    def __repr__(self) -> str:
        highest = ", ".join(f"{head} {float(self.per_head[head]):.3g}" for head in self.ranked()[:5])
        return (
            f"HeadScores({self.model or 'a model without a name'}, {self.metric}, {len(self.samples)} samples, "
            f"{self.n_heads} heads{f'; highest: {highest}' if highest else ''})"
        )

    @cached_property
    def per_head(self) -> Float[Tensor, "layer head"]:
        """One number per head, from all samples by `aggregation`."""
        return metrics.aggregate(self.values, self.aggregation, self.datasets)

    @property
    def mask(self) -> Bool[Tensor, "layer head"]:
        """True for heads that have a score."""
        return ~self.per_head.isnan()

    @property
    def n_heads(self) -> int:
        """Number of heads that have a score."""
        return int(self.mask.sum())

    @property
    def n_groups(self) -> int:
        """Number of groups of samples; of samples if each is its own."""
        return len(set(self.groups)) or len(self.samples)

    def aggregate(self, how: Aggregation) -> "HeadScores":
        """The same scores, ranked by another aggregation of samples."""
        return replace(self, aggregation=how)

    def for_dataset(self, name: str) -> "HeadScores":
        """The scores of the samples of one data set.

        Raises:
            ValueError: If there is no such data set; names those that there are.
        """
        rows = [index for index, dataset in enumerate(self.datasets) if dataset == name]
        if not rows:
            raise ValueError(f"there is no data set {name!r}; there are {', '.join(dict.fromkeys(self.datasets))}.")
        return self.select(rows)

    def select(self, rows: Sequence[int]) -> "HeadScores":
        """The scores of some samples, by their numbers."""
        return replace(
            self,
            values=self.values[list(rows)],
            samples=tuple(self.samples[index] for index in rows),
            datasets=tuple(self.datasets[index] for index in rows) if self.datasets else (),
            groups=tuple(self.groups[index] for index in rows) if self.groups else (),
        )

    def ranked(self) -> list[Head]:
        """All heads, highest first; ties in order of layer and head."""
        order = torch.where(self.mask, self.per_head, -torch.inf).flatten().argsort(descending=True, stable=True)
        return [Head(*divmod(index, self.values.shape[-1])) for index in order[: self.n_heads].tolist()]

    def top(self, n: Amount = 0.05) -> HeadSet:
        """The heads with the highest scores."""
        n = self._count(n)
        return HeadSet(tuple(self.ranked()[:n]), self._describe("top", n))

    def next(self, n: Amount = 0.05) -> HeadSet:
        """As many heads as `top`, ranked right after them: the control for high scores as such."""
        n = self._count(n, others=True)
        return HeadSet(tuple(self.ranked()[n : 2 * n]), self._describe("next", n))

    def bottom(self, n: Amount = 0.05) -> HeadSet:
        """As many heads as `top`, with the lowest scores, lowest first."""
        n = self._count(n)
        return HeadSet(tuple(self.ranked()[::-1][:n]), self._describe("bottom", n))

    def above(self, threshold: float | int) -> HeadSet:
        """Heads whose score is above a threshold, highest first."""
        heads = [head for head in self.ranked() if self.per_head[head] > threshold]
        return HeadSet(tuple(heads), f"{self._describe('the', len(heads))}, above {threshold:g}")

    def random(self, seed: int, n: Amount = 0.05) -> HeadSet:
        """As many heads as `top`, drawn from all others."""
        n = self._count(n, others=True)
        others = sorted(self.ranked()[n:])
        indices = np.random.default_rng(seed).choice(len(others), n, replace=False)
        return HeadSet(tuple(others[index] for index in indices), f"{n} random heads outside the top {n}, seed {seed}")

    def layer_matched_random(self, seed: int, n: Amount = 0.05) -> HeadSet:
        """As many heads as `top` in the same layers, drawn from the others of each layer: the control for depth.

        Raises:
            ValueError: If more than half of a layer's heads are in the top.
        """
        top = self.top(n)
        rng = np.random.default_rng(seed)
        heads: list[Head] = []
        for layer, top_heads in sorted(top.by_layer().items()):
            scored_heads = self.mask[layer].nonzero().flatten().tolist()
            others = [head for head in scored_heads if head not in top_heads]
            if len(others) < len(top_heads):
                raise ValueError(
                    f"layer {layer} has {len(scored_heads)} heads and {len(top_heads)} of them are in the top "
                    f"{len(top)}: too few others to draw from. Take fewer heads than {n}."
                )
            heads += [Head(layer, int(head)) for head in rng.choice(others, len(top_heads), replace=False)]
        name = f"{len(top)} random heads in the layers of the top {len(top)}, seed {seed}"
        return HeadSet(tuple(heads), name)

    def controls(self, n: Amount = 0.05, seeds: Sequence[int] = range(5)) -> dict[str, list[HeadSet]]:
        """The top heads, and the control sets of equally many heads that they are compared with.

        Args:
            n: Number of heads, or share of all heads.
            seeds: Seeds of the random draws.

        Returns:
            Head sets by kind: `top`, `next-ranked`, `random`, `random, same layers` and `bottom`; one set each, and
            one per seed where heads are drawn. Kinds for which too few heads lie outside the top are left out:
            `next-ranked` and `random` if `n` is more than half of all heads, `random, same layers` if the top holds
            more than half of the heads of a layer.

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

    def _count(self, n: Amount, others: bool = False) -> int:
        """Number of heads that `n` stands for; at most half of all, if as many others are needed."""
        n = plain_amount(n)
        if isinstance(n, float) and n == 1:
            raise ValueError(f"n={n} is one head or all of them: write 1 for one, and {self.n_heads} for all.")
        number = n if isinstance(n, int) else head_count(n, self.n_heads)
        maximum = self.n_heads // 2 if others else self.n_heads
        if not 0 < number <= maximum:
            raise ValueError(f"n={n} means {number} of {self.n_heads} heads; it must be between 1 and {maximum}.")
        return number

    def _describe(self, prefix: str, n: int) -> str:
        suffix = "" if self.aggregation == "mean" else f" ({self.aggregation})"
        return f"{prefix} {n} of {self.n_heads} heads by {self.metric}{suffix}"

    @cached_property
    def interval(self) -> tuple[Float[Tensor, "layer head"], Float[Tensor, "layer head"]]:
        """Bounds of 95 % intervals that hold for all heads at once; NaN but for means over several samples."""
        if self.aggregation != "mean":
            return torch.full_like(self.per_head, torch.nan), torch.full_like(self.per_head, torch.nan)
        return metrics.simultaneous_interval(self.values, groups=self.groups, datasets=self.datasets)

    def table(self) -> list[dict[str, Any]]:
        """One row per head, the highest score first: `name`, `layer`, `head`, `score`, and `low` and `high`."""
        numbers = dict(zip(("score", "low", "high"), (self.per_head, *self.interval), strict=True))
        return [
            {"name": str(head), **head._asdict(), **{name: float(of[head]) for name, of in numbers.items()}}
            for head in self.ranked()
        ]

    def to_frame(self) -> "DataFrame":
        """The rows of `table` as a data frame of pandas."""
        with optional_import("data"):
            from pandas import DataFrame

        return DataFrame(self.table())

    def to_csv(self, path: str | PathLike[str]) -> None:
        """Write the rows of `table` as a file that spreadsheets read."""
        check_file(path, ".csv", "save writes the scores of every sample as .safetensors")
        rows, text = self.table(), StringIO(newline="")
        csv.writer(text).writerows([[*rows[0]] if rows else [], *(row.values() for row in rows)])
        write_file(path, text.getvalue())

    def save(self, path: str | PathLike[str]) -> None:
        """Write a safetensors file with the values, and all other fields as metadata, into a folder that exists."""
        check_file(path, ".safetensors", "to_csv writes a table of them as .csv")
        write_tensor(path, self.values, {name: value for name, value in asdict(self).items() if name != "values"})

    @classmethod
    def load(cls, path: str | PathLike[str]) -> "HeadScores":
        """Read scores that `save` wrote.

        Raises:
            ValueError: If the file holds something else, or has changed since.
        """
        if Path(path).is_dir():
            raise IsADirectoryError(f"{str(path)!r} is a folder; name one of its scores.")
        try:
            values, about = read_tensor(path)
            for name in ("samples", "datasets", "groups"):
                if not isinstance(about[name], list) or not isinstance(about["metric"], str):
                    raise TypeError(f"its {name} or its metric are of another kind")
                about[name] = tuple(about[name])
            return cls(values, **about)
        except (KeyError, TypeError, ValueError) as cause:
            raise ValueError(f"{path} holds no head scores that HeadScores.save wrote: {cause}") from cause


def concatenate(parts: Iterable[HeadScores]) -> HeadScores:
    """Concatenate scores of several data sets or shards along the samples.

    Raises:
        ValueError: If they differ in metric, model or any other choice; names the difference.
    """
    first, *others = parts
    for other in others:
        for name in ("metric", "model", "aggregation", "choices"):
            if getattr(first, name) != getattr(other, name):
                raise ValueError(
                    f"these scores cannot be concatenated: {name} is {getattr(first, name)!r} in one and "
                    f"{getattr(other, name)!r} in another."
                )
    parts = [first, *others]
    return replace(
        first,
        values=torch.cat([scores.values for scores in parts]),
        samples=tuple(sample for scores in parts for sample in scores.samples),
        datasets=tuple(name for scores in parts for name in scores.datasets or [""] * len(scores.samples)),
        groups=metrics.join_groups((scores.samples, scores.groups) for scores in parts),
        skipped={sample: reason for scores in parts for sample, reason in scores.skipped.items()},
    )


class Agreement(NamedTuple):
    """Agreement of two data sets, models or metrics about heads."""

    jaccard: float
    """Jaccard index of the top sets."""

    shared: float
    """Share of the first top set that is in the second."""

    spearman: float
    """Rank correlation over all heads that both score."""

    rank_biased_overlap: float
    """Overlap of the rankings, weighted towards the top."""


def agreement(one: HeadScores, other: HeadScores, n: Amount = 0.05) -> Agreement:
    """Compute how far two scores of the same heads agree; `n` is the size of the top sets.

    Raises:
        ValueError: If they do not score the same heads.
    """
    if one.values.shape[1:] != other.values.shape[1:] or not torch.equal(one.mask, other.mask):
        raise ValueError(
            f"these scores are of {one.n_heads} and {other.n_heads} heads in {tuple(one.values.shape[1:])} and "
            f"{tuple(other.values.shape[1:])} layers and heads: only scores of the same heads can be compared."
        )
    top, other_top = set(one.top(n)), set(other.top(n))
    return Agreement(
        metrics.jaccard(top, other_top),
        len(top & other_top) / len(top),
        metrics.spearman(one.per_head, other.per_head),
        metrics.rank_biased_overlap(one.ranked(), other.ranked()),
    )
