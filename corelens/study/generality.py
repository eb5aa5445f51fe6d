"""Claim 2, generality: the same heads retrieve in all visual domains, and heads of like depth in other models."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from corelens.metrics import depth_profile, overlap, spearman, stability_curve, stable_heads
from corelens.metrics.score_distribution import head_count
from corelens.metrics.stability import top_heads
from corelens.scores import HeadScores
from corelens.study.verdict import Finding, Measurement, Source, estimate, p_value, sources

TOP_SHARE = 0.05
"""Share of heads that are called CoRe heads."""

RULE = (
    "Over all pairs of data sets, the mean share of one's top 5 % of heads that are in the other's is at least one "
    "half (MMRetHeads finds .51 between text and pictures) and at least 0.2 above that of untrained models, whose "
    "heads differ by where they happen to attend; the mean rank correlation over all heads is at least 0.5; and the "
    "top heads hold at least twice the mass of untrained models', so that there is something to agree about. "
    "Numbers are corrected for what drawing samples takes from them. "
    "Comparisons with other models are reported and not in the rule. The paper gives rank correlations of .79 to .92 "
    "between data sets and about 30 heads at or above the 95th percentile of all four (appendix E.1); the thresholds "
    "are corelens's own."
)


def generality(
    scores: HeadScores, untrained: Sequence[HeadScores], compared_models: Mapping[str, HeadScores] | None = None
) -> Finding:
    """Test whether data sets agree about heads, and compare with other models.

    Args:
        scores: Retrieval attention mass on several data sets.
        untrained: The same of models of the same configuration, each with other random weights.
        compared_models: The same of other models, by name.
    """
    claim = "Generality: the same heads retrieve in all visual domains"
    names = tuple(dict.fromkeys(scores.datasets))
    measurements, notes = [], ["There is one data set; agreement needs two or more."]
    if len(names) > 1:
        measurements = list(_agreement_of_datasets(scores, untrained, names))
        notes = list(_shared_and_specific_heads(scores, names))
    for name, other in (compared_models or {}).items():
        measurements += _agreement_of_models(scores, name, other)
        notes.append(_model_note(scores, name, other))
    if not compared_models:
        notes.append(
            "No other model is compared; --compare-with names folders of finished studies of others, compared by depth."
        )
    return Finding(claim, RULE, tuple(measurements), tuple(notes))


def _agreement_of_datasets(
    scores: HeadScores, untrained: Sequence[HeadScores], names: Sequence[str]
) -> Iterator[Measurement]:
    """Measure how far data sets agree about heads."""
    n_samples = len(scores.samples)

    def samples_and_mean(
        indices: np.ndarray, statistic: Callable[[HeadScores, np.ndarray], float]
    ) -> tuple[np.ndarray, float]:
        """The samples among indices of samples and of untrained models, and the mean of a statistic over these."""
        rows, models = indices[indices < n_samples], indices[indices >= n_samples] - n_samples
        return rows, float(np.mean([statistic(untrained[model], rows) for model in models]))

    def top_sets(heads: HeadScores, indices: np.ndarray) -> list[set[tuple[int, int]]]:
        return [top_heads(mean, TOP_SHARE) for mean in _dataset_means(heads, indices, names)]

    def shared(heads: HeadScores, indices: np.ndarray) -> float:
        pairs = combinations(top_sets(heads, indices), 2)
        return float(np.mean([len(one & other) / len(one) for one, other in pairs]))

    def rank_correlation(heads: HeadScores, indices: np.ndarray) -> float:
        pairs = combinations(_dataset_means(heads, indices, names), 2)
        return float(np.mean([spearman(one, other) for one, other in pairs]))

    def shared_above_untrained(indices: np.ndarray) -> float:
        rows, of_untrained = samples_and_mean(indices, shared)
        return shared(scores, rows) - of_untrained

    def mass_over_untrained(indices: np.ndarray) -> float:
        rows, of_untrained = samples_and_mean(indices, lambda heads, rows: _top_mass(heads, rows, names))
        return _top_mass(scores, rows, names) / of_untrained

    def stable(indices: np.ndarray) -> float:
        heads = stable_heads(torch.stack(_dataset_means(scores, indices, names)), TOP_SHARE)
        return heads.n_heads[-1] / heads.by_chance[-1]

    strata = sources(scores)
    strata_and_models = [*strata, *[None] * len(untrained)]
    yield estimate("shared by top sets", lambda indices: shared(scores, indices), strata, at_least=0.5, within=(0, 1))
    yield estimate(
        "shared by top sets, above untrained models",
        shared_above_untrained,
        strata_and_models,
        at_least=0.2,
        within=(-1, 1),
    )
    yield estimate(
        "rank correlation", lambda indices: rank_correlation(scores, indices), strata, at_least=0.5, within=(-1, 1)
    )
    yield estimate(
        "mass of the top heads, over untrained models'", mass_over_untrained, strata_and_models, at_least=2.0
    )
    yield estimate(
        "rank correlation, in untrained models",
        lambda indices: samples_and_mean(indices, rank_correlation)[1],
        strata_and_models,
        within=(-1, 1),
    )
    yield estimate("heads at or above the 95th percentile of all data sets, over the number by chance", stable, strata)
    pairs = combinations(top_sets(scores, np.arange(len(strata))), 2)
    largest_p = max(overlap(one, other, scores.n_heads).p_value for one, other in pairs)
    yield p_value("p of sharing so many by chance, in the pair that shares least", largest_p)


def _top_mass(scores: HeadScores, indices: np.ndarray, names: Sequence[str]) -> float:
    """Mean mass of the top heads of each data set, averaged over data sets."""
    ordered = [mean[~mean.isnan()].sort(descending=True).values for mean in _dataset_means(scores, indices, names)]
    return float(np.mean([masses[: head_count(TOP_SHARE, len(masses))].mean() for masses in ordered]))


def _shared_and_specific_heads(scores: HeadScores, names: Sequence[str]) -> Iterator[str]:
    """Name the heads that are in the top sets of all data sets, and those of one data set only."""
    top_sets = {name: set(scores.for_dataset(name).top(TOP_SHARE)) for name in names}
    common = sorted(set.intersection(*top_sets.values()))
    yield f"In the top sets of all data sets: {', '.join(map(str, common)) or 'no head'}."
    for name in names:
        dataset_scores = scores.for_dataset(name)
        specific = sorted(top_sets[name].difference(*(top_sets[other] for other in names if other != name)))
        note = f"{name}: only in its top set: {', '.join(map(str, specific)) or 'no head'}"
        if dataset_scores.n_groups > 1:
            shared = stability_curve(dataset_scores.values, groups=dataset_scores.groups).mean[-1]
            note += f"; the top sets of two halves of its samples share {shared:.0%}"
        if bool((dataset_scores.per_head > 0).any()):
            note += f"; mean depth {depth_profile(dataset_scores.per_head).centre:.2f}"
        yield f"{note}."
    yield f"By chance, top sets would share {_chance(scores):.0%}."


def _chance(scores: HeadScores) -> float:
    """Share of a top set that is expected in another by chance."""
    return head_count(TOP_SHARE, scores.n_heads) / scores.n_heads


def _agreement_of_models(scores: HeadScores, name: str, other: HeadScores) -> Iterator[Measurement]:
    """Compare with another model, head by head only where the numbers of layers and heads are the same."""
    n_samples = len(scores.values)
    # Groups of each model are drawn independently, data set by data set.
    strata = [
        Source((model is other, sample.dataset), sample.group) for model in (scores, other) for sample in sources(model)
    ]

    def means(indices: np.ndarray) -> tuple[Float[Tensor, "layer head"], Float[Tensor, "_layer _head"]]:
        first = torch.from_numpy(indices[indices < n_samples])
        second = torch.from_numpy(indices[indices >= n_samples] - n_samples)
        return scores.values[first].nanmean(0), other.values[second].nanmean(0)

    def depth_difference(indices: np.ndarray) -> float:
        depth, other_depth = (
            np.mean([layer for layer, _ in top_heads(mean, TOP_SHARE)]) / max(1, len(mean) - 1)
            for mean in means(indices)
        )
        return float(depth - other_depth)

    def shared(indices: np.ndarray) -> float:
        top, other_top = (top_heads(mean, TOP_SHARE) for mean in means(indices))
        return len(top & other_top) / len(top)

    yield estimate(f"relative depth of top heads, less that in {name}", depth_difference, strata)
    if _same_shape(scores, other):
        yield estimate(f"shared by top sets with {name}", shared, strata, within=(0, 1))
        yield estimate(
            f"rank correlation with {name}", lambda indices: spearman(*means(indices)), strata, within=(-1, 1)
        )


def _model_note(scores: HeadScores, name: str, other: HeadScores) -> str:
    """Name another model and its data, and state which comparisons its shape allows."""
    note = f"{name} is {other.model} on {', '.join(dict.fromkeys(other.datasets))}"
    if _same_shape(scores, other):
        return (
            f"{note}, with as many layers and heads; by chance, top sets would share {_chance(scores):.0%}. Heads of "
            f"one number mean the same only if one model was made from the other, or both from a third."
        )
    shapes = [f"{model.values.shape[1]} layers of {model.values.shape[2]} heads" for model in (other, scores)]
    return f"{note}. It has {shapes[0]}, this model {shapes[1]}: no head has a counterpart, and only depth is compared."


def _same_shape(scores: HeadScores, other: HeadScores) -> bool:
    return scores.values.shape[1:] == other.values.shape[1:] and torch.equal(scores.mask, other.mask)


def _dataset_means(scores: HeadScores, indices: np.ndarray, names: Sequence[str]) -> list[Float[Tensor, "layer head"]]:
    """Mean scores of each data set over the samples with these indices."""
    datasets = np.array(scores.datasets)[indices]
    return [scores.values[torch.from_numpy(indices[datasets == name])].nanmean(0) for name in names]
