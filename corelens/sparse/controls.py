"""Ways to spend a budget of heads that attend to everything: the best ones, and the controls to compare them with."""

from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import torch

from corelens.heads import Head, HeadSet
from corelens.scores import HeadScores
from corelens.sparse.plan import Full, HeadPlan, Streaming

BUDGETS = (0.05, 0.1, 0.25, 0.5)
"""Shares of heads that attend to everything."""


def plans_and_controls(
    scores: HeadScores,
    group_size: int,
    streaming: Streaming,
    budgets: Iterable[float | int] = BUDGETS,
    seeds: Sequence[int] = range(3),
) -> dict[str, list[HeadPlan]]:
    """Plans by score at every budget, and the same budgets spent in other ways.

    Every head follows its own rule (`granularity="query"`), so that equal budgets are equal numbers of heads; choices
    of groups that share keys spend the same share on groups.

    Args:
        scores: What ranks heads.
        group_size: Query heads that share a head of keys.
        streaming: What the other heads keep.
        budgets: Shares of all heads, or of all groups, that attend to everything.
        seeds: Of random heads.

    Returns:
        By name and budget, as in `core 5%`: `core` (the best heads), `random`, `random, same layers`, `bottom`, `best
        groups` (a group is as good as its best head), `groups by mean` (as good as its heads' mean, which is how
        DuoAttention chooses, whose gates are learned instead), `whole layers`; and `none` without a budget. Controls
        that need more heads than there are beside the best are left out.
    """

    def plans(choose: Callable[[], list[HeadSet]]) -> list[HeadPlan]:
        try:
            sets = choose()
        except ValueError:
            # Too few other heads.
            return []
        return [HeadPlan(dict.fromkeys(heads, Full()), streaming, "query", name=heads.name) for heads in sets]

    def at(budget: float | int) -> dict[str, list[HeadPlan]]:
        return {
            "core": plans(lambda: [scores.top(budget)]),
            "random": plans(lambda: [scores.random(seed, budget) for seed in seeds]),
            "random, same layers": plans(lambda: [scores.layer_matched_random(seed, budget) for seed in seeds]),
            "bottom": plans(lambda: [scores.bottom(budget)]),
            "best groups": plans(lambda: [best_groups(scores, budget, group_size)]),
            "groups by mean": plans(lambda: [best_groups(scores, budget, group_size, "mean")]),
            "whole layers": plans(lambda: [best_layers(scores, budget)]),
        }

    found = {"none": plans(lambda: [HeadSet((), "no head")])}
    found |= {f"{name} {100 * budget:g}%": own for budget in budgets for name, own in at(budget).items()}
    return {name: own for name, own in found.items() if own}


def best_groups(
    scores: HeadScores, share: float | int, group_size: int, by: Literal["best", "mean"] = "best"
) -> HeadSet:
    """The heads of the best groups that share keys, for a budget of memory.

    Args:
        scores: One number per head.
        share: Share of all groups, in (0, 1].
        group_size: Query heads that share a head of keys.
        by: Whether a group counts as much as its best head, so that a single head that sees is not lost among
            neighbours that do not, or as their mean.

    Returns:
        All heads of the chosen groups, best group first.
    """
    groups: dict[tuple[int, int], list[float]] = {}
    for head in scores.ranked():
        groups.setdefault((head.layer, head.head // group_size), []).append(scores.per_head[head].item())
    # In the order of their best heads.
    ranked = list(groups)
    if by == "mean":
        ranked.sort(key=lambda group: -sum(groups[group]) / len(groups[group]))
    chosen = ranked[: _count(share, len(ranked))]
    heads = [Head(layer, group * group_size + own) for layer, group in chosen for own in range(group_size)]
    return HeadSet(tuple(heads), f"best {len(chosen)} of {len(ranked)} groups by {by} {scores.metric}")


def best_layers(scores: HeadScores, share: float | int) -> HeadSet:
    """All heads of the layers that score most in the mean, best layer first.

    Args:
        scores: One number per head.
        share: Share of the layers that have heads, in (0, 1].
    """
    ranked = scores.per_head.nanmean(1).nan_to_num(-torch.inf).argsort(descending=True).tolist()
    existing = [layer for layer in ranked if scores.mask[layer].any()]
    chosen = existing[: _count(share, len(existing))]
    heads = [Head(layer, head) for layer in chosen for head in scores.mask[layer].nonzero().flatten().tolist()]
    return HeadSet(tuple(heads), f"best {len(chosen)} of {len(existing)} layers by {scores.metric}")


def _count(share: float | int, n: int) -> int:
    if not 0 < share <= 1:
        raise ValueError(f"share must lie in (0, 1], and is {share}.")
    return max(1, round(share * n))
