"""Claim 2, generality: the same heads retrieve in all visual domains, and heads of like depth in other models."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from corelens.metrics import depth_profile, overlap, spearman, stability_curve
from corelens.metrics.score_distribution import head_count
from corelens.metrics.stability import top_heads
from corelens.scores import HeadScores
from corelens.study.verdict import Finding, Measurement, estimate, p_value

TOP = 0.05
"""Share of heads that are called CoRe heads."""

RULE = (
    "Over all pairs of data sets, the mean share of one's top 5 % of heads that are in the other's is at least one "
    "half (MMRetHeads finds .51 between text and pictures) and at least 0.2 above that of an untrained model, whose "
    "heads differ by where they happen to look; the mean rank correlation over all heads is at least 0.5; and the top "
    "heads hold at least twice the mass of an untrained model's, so that there is something to agree about. Numbers "
    "are corrected for what drawing samples takes from them. "
    "Comparisons with other models are reported and not in the rule. Inferred."
)


def generality(scores: HeadScores, untrained: HeadScores, beside: Mapping[str, HeadScores] | None = None) -> Finding:
    """Whether data sets agree about heads, and how other models compare.

    Args:
        scores: Retrieval attention mass on several data sets.
        untrained: The same of a model of the same configuration with random weights.
        beside: The same of other models, by name.
    """
    claim = "Generality: the same heads retrieve in all visual domains"
    names = tuple(dict.fromkeys(scores.datasets))
    effects, notes = [], ["There is one data set; agreement needs two or more."]
    if len(names) > 1:
        effects, notes = list(_domains(scores, untrained, names)), list(_specific(scores, names))
    for name, other in (beside or {}).items():
        effects += _model(scores, name, other)
        notes.append(_compared(scores, name, other))
    if not beside:
        notes.append("No other model stands beside it; --beside gives finished studies of others, compared by depth.")
    return Finding(claim, RULE, tuple(effects), tuple(notes))


def _domains(scores: HeadScores, untrained: HeadScores, names: Sequence[str]) -> Iterator[Measurement]:
    """How far data sets agree."""

    def tops(one: HeadScores, chosen: np.ndarray) -> list[set[tuple[int, int]]]:
        return [top_heads(mean, TOP) for mean in _means(one, chosen, names)]

    def shared(one: HeadScores, chosen: np.ndarray) -> float:
        return float(np.mean([len(a & b) / len(a) for a, b in combinations(tops(one, chosen), 2)]))

    def ranks(one: HeadScores, chosen: np.ndarray) -> float:
        return float(np.mean([spearman(a, b) for a, b in combinations(_means(one, chosen, names), 2)]))

    strata = scores.datasets
    yield estimate("shared by top sets", lambda i: shared(scores, i), strata, at_least=0.5, within=(0, 1))
    yield estimate(
        "shared by top sets, above an untrained model",
        lambda i: shared(scores, i) - shared(untrained, i),
        strata,
        at_least=0.2,
        within=(-1, 1),
    )
    yield estimate("rank correlation", lambda i: ranks(scores, i), strata, at_least=0.5, within=(-1, 1))
    yield estimate(
        "mass of the top heads, over an untrained model's",
        lambda i: _mass(scores, i, names) / _mass(untrained, i, names),
        strata,
        at_least=2.0,
    )
    yield estimate("rank correlation, in an untrained model", lambda i: ranks(untrained, i), strata, within=(-1, 1))
    pairs = combinations(tops(scores, np.arange(len(strata))), 2)
    worst = max(overlap(a, b, scores.n_heads).p_value for a, b in pairs)
    yield p_value("p of sharing so many by chance, in the pair that shares least", worst)


def _mass(scores: HeadScores, chosen: np.ndarray, names: Sequence[str]) -> float:
    """What the top heads of each data set put on the evidence, averaged."""
    best = [mean[~mean.isnan()].sort(descending=True).values for mean in _means(scores, chosen, names)]
    return float(np.mean([own[: head_count(TOP, len(own))].mean() for own in best]))


def _specific(scores: HeadScores, names: Sequence[str]) -> Iterator[str]:
    """Which heads all data sets have in their top sets, and which one alone has."""
    tops = {name: set(scores.for_dataset(name).top(TOP)) for name in names}
    common = sorted(set.intersection(*tops.values()))
    yield f"In the top sets of all data sets: {', '.join(map(str, common)) or 'no head'}."
    for name in names:
        own = scores.for_dataset(name)
        alone = sorted(tops[name].difference(*(tops[other] for other in names if other != name)))
        said = f"{name}: only in its top set: {', '.join(map(str, alone)) or 'no head'}"
        if len(own.samples) > 1:
            said += f"; the top sets of two halves of its samples share {stability_curve(own.values).mean[-1]:.0%}"
        if bool((own.per_head > 0).any()):
            said += f"; mean depth {depth_profile(own.per_head).centre:.2f}"
        yield f"{said}."
    yield f"By chance, top sets would share {_chance(scores):.0%}."


def _chance(scores: HeadScores) -> float:
    return head_count(TOP, scores.n_heads) / scores.n_heads


def _model(scores: HeadScores, name: str, other: HeadScores) -> Iterator[Measurement]:
    """How another model compares; only where the numbers of layers and heads are the same, head by head."""
    n = len(scores.values)
    # Samples of each model are drawn by themselves, data set by data set.
    strata = [(one is other, own) for one in (scores, other) for own in one.datasets or [""] * len(one.values)]

    def both(chosen: np.ndarray) -> tuple[Float[Tensor, "layer head"], Float[Tensor, "_layer _head"]]:
        own, theirs = torch.from_numpy(chosen[chosen < n]), torch.from_numpy(chosen[chosen >= n] - n)
        return scores.values[own].nanmean(0), other.values[theirs].nanmean(0)

    def deeper(chosen: np.ndarray) -> float:
        own, theirs = (np.mean([layer for layer, _ in top_heads(m, TOP)]) / max(1, len(m) - 1) for m in both(chosen))
        return float(own - theirs)

    def shared(chosen: np.ndarray) -> float:
        own, theirs = (top_heads(mean, TOP) for mean in both(chosen))
        return len(own & theirs) / len(own)

    yield estimate(f"relative depth of top heads, less that in {name}", deeper, strata)
    if _alike(scores, other):
        yield estimate(f"shared by top sets with {name}", shared, strata, within=(0, 1))
        yield estimate(f"rank correlation with {name}", lambda i: spearman(*both(i)), strata, within=(-1, 1))


def _compared(scores: HeadScores, name: str, other: HeadScores) -> str:
    said = f"{name} is {other.model} on {', '.join(dict.fromkeys(other.datasets))}"
    if _alike(scores, other):
        return (
            f"{said}, with as many layers and heads; by chance, top sets would share {_chance(scores):.0%}. Heads of "
            f"one number mean the same only if one model was made from the other, or both from a third."
        )
    sizes = [f"{one.values.shape[1]} layers of {one.values.shape[2]} heads" for one in (other, scores)]
    return f"{said}. It has {sizes[0]}, this model {sizes[1]}: no head has a counterpart, and only depth is compared."


def _alike(scores: HeadScores, other: HeadScores) -> bool:
    return scores.values.shape[1:] == other.values.shape[1:] and torch.equal(scores.mask, other.mask)


def _means(scores: HeadScores, chosen: np.ndarray, names: Sequence[str]) -> list[Float[Tensor, "layer head"]]:
    """Mean scores of each data set over chosen samples."""
    own = np.array(scores.datasets)[chosen]
    return [scores.values[torch.from_numpy(chosen[own == name])].nanmean(0) for name in names]
