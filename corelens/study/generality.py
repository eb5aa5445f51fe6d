"""Claim 2, generality: the same heads retrieve in all visual domains."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from corelens.metrics import depth_profile, spearman, stability_curve
from corelens.metrics.selection import count_of
from corelens.metrics.stability import top_heads
from corelens.scores import HeadScores
from corelens.study.finding import Finding, estimate

TOP = 0.05
"""Share of heads that are called CoRe heads."""

RULE = (
    "Over all pairs of data sets, the mean share of one's top 5 % of heads that are in the other's is at least one "
    "half (MMRetHeads finds .51 between text and pictures) and at least 0.2 above that of an untrained model, whose "
    "heads differ by where they happen to look, and the mean rank correlation over all heads is at least 0.5. "
    "Inferred."
)


def generality(scores: HeadScores, untrained: HeadScores) -> Finding:
    """Whether data sets agree about heads.

    Args:
        scores: Retrieval attention mass on several data sets.
        untrained: The same of a model of the same configuration with random weights.
    """
    claim = "Generality: the same heads retrieve in all visual domains"
    names = tuple(dict.fromkeys(scores.datasets))
    if len(names) < 2:
        return Finding(claim, RULE, (), ("There is one data set; agreement needs two or more.",))
    tops = {name: set(scores.of_dataset(name).top(TOP)) for name in names}
    common = sorted(set.intersection(*tops.values()))
    notes = [f"In the top sets of all data sets: {', '.join(map(str, common)) or 'no head'}."]
    for name in names:
        own = scores.of_dataset(name)
        alone = sorted(tops[name].difference(*(tops[other] for other in names if other != name)))
        said = f"{name}: only in its top set: {', '.join(map(str, alone)) or 'no head'}"
        if len(own.samples) > 1:
            said += f"; halves of its samples share {stability_curve(own.values).mean[-1]:.0%} of theirs"
        notes.append(f"{said}; mean depth {depth_profile(own.per_head).centre:.2f}.")
    chance = count_of(TOP, scores.n_heads) / scores.n_heads
    notes.append(f"By chance, top sets would share {chance:.0%}.")
    notes.append("One model: agreement across sizes needs a study of each, whose depth profiles can be compared.")

    def shared(one: HeadScores, chosen: np.ndarray) -> float:
        sets = [top_heads(mean, TOP) for mean in _means(one, chosen, names)]
        return float(np.mean([len(a & b) / len(a) for a, b in combinations(sets, 2)]))

    def ranks(chosen: np.ndarray) -> float:
        return float(np.mean([spearman(a, b) for a, b in combinations(_means(scores, chosen, names), 2)]))

    strata = scores.datasets
    return Finding(
        claim,
        RULE,
        (
            estimate("shared by top sets", lambda i: shared(scores, i), strata, at_least=0.5),
            estimate(
                "shared by top sets, above an untrained model",
                lambda i: shared(scores, i) - shared(untrained, i),
                strata,
                at_least=0.2,
            ),
            estimate("rank correlation", ranks, strata, at_least=0.5),
        ),
        tuple(notes),
    )


def _means(scores: HeadScores, chosen: np.ndarray, names: Sequence[str]) -> list[Float[Tensor, "layer head"]]:
    """Mean scores of each data set over chosen samples."""
    own = np.array(scores.datasets)[chosen]
    return [scores.values[torch.from_numpy(chosen[own == name])].nanmean(0) for name in names]
