"""Plans that spend a budget of full heads: on the best heads, and on the controls to compare them with."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import torch

from corelens.heads import Head, HeadSet
from corelens.metrics.score_distribution import Amount, plain_amount
from corelens.scores import HeadScores
from corelens.sparse.plan import HeadPlan
from corelens.sparse.rules import Full, Streaming, StreamingBlocks

BUDGETS = (0.05, 0.1, 0.25, 0.5)
"""Shares of heads that attend to everything."""


def budget_label(budget: Amount) -> str:
    """Name of a budget in tables: `5%` for a share of 0.05, `20` for 20 heads."""
    budget = plain_amount(budget)
    return str(budget) if isinstance(budget, int) else f"{100 * budget:g}%"


def plans_and_controls(
    scores: HeadScores,
    group_size: int,
    streaming: Streaming | StreamingBlocks,
    budgets: Iterable[Amount] = BUDGETS,
    seeds: Sequence[int] = range(3),
) -> dict[str, list[HeadPlan]]:
    """Return plans by score at every budget, and plans that spend the same budgets in other ways.

    Every head follows its own rule (`granularity="query"`), so that equal budgets are equal numbers of heads; choices
    of groups that share keys, and of layers, spend the same share on these.

    Args:
        scores: Ranking of the heads.
        group_size: Number of query heads that share a KV head.
        streaming: Rule of the heads outside of the budget: `Streaming` for corelens's own plans, `StreamingBlocks` for
            the paper's.
        budgets: Heads that attend to everything: a share of all in (0, 1], or their number as an integer.
        seeds: Seeds of the random draws.

    Returns:
        By name and budget, as in `core 5%` and `core 20`: `core` (the best heads), `random`, `random, same layers`,
        `bottom`, `best groups` (a group is as good as its best head), `groups by mean` (as good as its heads' mean,
        which is how DuoAttention chooses, whose gates are learned instead), `whole layers`; and `none` without a
        budget. Controls that need more heads than there are beside the best are left out.

    Raises:
        ValueError: If a budget is outside of its range.
    """
    sets = {"none": [HeadSet((), "no head")]}
    for budget in map(plain_amount, budgets):
        sets |= {
            f"{name} {budget_label(budget)}": choices
            for name, choices in _head_sets(scores, budget, group_size, seeds).items()
            if choices
        }
    return {
        name: [HeadPlan(dict.fromkeys(heads, Full()), streaming, "query", name=heads.name) for heads in choices]
        for name, choices in sets.items()
    }


def _head_sets(
    scores: HeadScores, budget: float | int, group_size: int, seeds: Sequence[int]
) -> Mapping[str, list[HeadSet]]:
    is_all = isinstance(budget, float) and budget == 1
    controls = scores.controls(scores.n_heads if is_all else budget, seeds)
    share = budget / scores.n_heads if isinstance(budget, int) else budget
    return {
        "core": controls["top"],
        "random": controls.get("random", []),
        "random, same layers": controls.get("random, same layers", []),
        "bottom": controls["bottom"],
        "best groups": [best_groups(scores, share, group_size)],
        "groups by mean": [best_groups(scores, share, group_size, "mean")],
        "whole layers": [best_layers(scores, share)],
    }


def best_groups(
    scores: HeadScores, share: float | int, group_size: int, by: Literal["best", "mean"] = "best"
) -> HeadSet:
    """Return the heads of the best groups that share keys, for a budget of memory.

    Args:
        scores: Ranking of the heads.
        share: Share of all groups, in (0, 1].
        group_size: Number of query heads that share a KV head.
        by: Score of a group: that of its best head, so that a single retrieval head is not lost among neighbours that
            are none, or the mean of its heads.

    Returns:
        All heads of the selected groups, best group first.
    """
    groups: dict[tuple[int, int], list[float]] = {}
    for head in scores.ranked():
        groups.setdefault((head.layer, head.head // group_size), []).append(scores.per_head[head].item())
    # In the order of their best heads.
    ranked = list(groups)
    if by == "mean":
        ranked.sort(key=lambda group: -sum(groups[group]) / len(groups[group]))
    selected = ranked[: _count(share, len(ranked))]
    heads = [Head(layer, group * group_size + member) for layer, group in selected for member in range(group_size)]
    return HeadSet(tuple(heads), f"best {len(selected)} of {len(ranked)} groups by {by} {scores.metric}")


def best_layers(scores: HeadScores, share: float | int) -> HeadSet:
    """Return all heads of the layers with the highest mean score, best layer first.

    Args:
        scores: Ranking of the heads.
        share: Share of the layers that have heads, in (0, 1].
    """
    order = scores.per_head.nanmean(1).nan_to_num(-torch.inf).argsort(descending=True).tolist()
    ranked = [layer for layer in order if scores.mask[layer].any()]
    selected = ranked[: _count(share, len(ranked))]
    heads = [Head(layer, head) for layer in selected for head in scores.mask[layer].nonzero().flatten().tolist()]
    return HeadSet(tuple(heads), f"best {len(selected)} of {len(ranked)} layers by {scores.metric}")


def _count(share: float | int, n: int) -> int:
    if not 0 < share <= 1:
        raise ValueError(f"share must lie in (0, 1], and is {share}.")
    return max(1, round(share * n))
