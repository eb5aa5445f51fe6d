"""Control heads that could do harm: random heads that write as much as those that they stand for."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

import numpy as np

from corelens.experiments.conditions import MATCHED, Condition
from corelens.heads import Head, HeadSet
from corelens.scores import HeadScores
from corelens.sparse.plan import HeadPlan
from corelens.sparse.rules import Full

WRITE_NORM = "question_write_norm"
"""Metric by which heads are matched."""

FACTOR = 2.0
"""A control head writes at most this many times as much as the head that it stands for, and at least one part in so
many."""

N_ATTEMPTS = 100
"""Times that a draw is begun again where its first heads took the only partners of later ones."""


def write_matched_random(heads: HeadSet, write_norm: HeadScores, seeds: Sequence[int]) -> list[HeadSet]:
    """Draw sets of other heads, each of which stands for one of `heads`: it writes about as much in a near layer.

    A random head may write nothing, as most of `corelens/toy` do, and ablating it then shows nothing. Here each head is
    replaced by one outside the set that writes half to twice as much, drawn from the nearest layer that has one.

    Args:
        heads: The heads to be replaced, such as those with the highest scores.
        write_norm: Length of what each head writes: a scan by `WRITE_NORM`, say.
        seeds: One draw each.

    Returns:
        One set for each seed, of as many heads, in the order of `heads`.

    Raises:
        ValueError: If there is no such head for one of them; it names the head.

    Source:
        corelens's own; the paper draws random heads from all (arXiv 2606.05843, section 4.4).
    """
    sizes = {head: float(write_norm.per_head[head]) for head in write_norm.ranked()}
    if missing := [str(head) for head in heads if head not in sizes]:
        raise ValueError(f"{', '.join(missing)} has no {write_norm.metric}: scan the model that the heads are of.")
    partners = {
        head: [
            other
            for other, size in sizes.items()
            if size > 0 and other not in heads and sizes[head] / FACTOR <= size <= sizes[head] * FACTOR
        ]
        for head in heads
    }
    return [
        HeadSet(
            tuple(_draw(partners, sizes, np.random.default_rng(seed))),
            f"{len(heads)} random heads that write as much as the {heads.name}, seed {seed}",
        )
        for seed in seeds
    ]


def with_write_matched(
    conditions: Mapping[str, Sequence[HeadSet]], write_norm: HeadScores, seeds: Sequence[int]
) -> dict[str, Sequence[HeadSet]]:
    """Add write-matched controls after the top heads of every dose, where there are such heads.

    Args:
        conditions: As `dose_conditions` names them: `top 5` gets `write-matched 5`.
        write_norm: As for `write_matched_random`.
        seeds: As for `write_matched_random`.
    """
    return _with_controls(conditions, "top", lambda top: write_matched_random(top, write_norm, seeds))


def with_write_matched_plans(
    plans: Mapping[str, Sequence[HeadPlan]], write_norm: HeadScores, seeds: Sequence[int] = range(3)
) -> dict[str, Sequence[HeadPlan]]:
    """Add write-matched controls after the best heads of every budget, where there are such heads.

    Args:
        plans: As `plans_and_controls` names them: `core 5%` gets `write-matched 5%`.
        write_norm: As for `write_matched_random`.
        seeds: As for `write_matched_random`.
    """

    def controls(core: HeadPlan) -> list[HeadPlan]:
        matched = write_matched_random(HeadSet(tuple(full_heads(core)), core.name), write_norm, seeds)
        return [replace(core, rules=dict.fromkeys(heads, Full()), name=heads.name) for heads in matched]

    return _with_controls(plans, "core", controls)


def _with_controls(
    conditions: Mapping[str, Sequence[Condition]], kind: str, controls: Callable[[Condition], list[Condition]]
) -> dict[str, Sequence[Condition]]:
    """Add controls after every condition of a kind, where there are any."""
    added: dict[str, Sequence[Condition]] = {}
    for name, draws in conditions.items():
        added[name] = draws
        of_kind, _, dose = name.rpartition(" ")
        if of_kind == kind:
            with suppress(ValueError):
                added[f"{MATCHED} {dose}"] = controls(draws[0])
    return added


def full_heads(plan: HeadPlan) -> list[Head]:
    """Heads that a plan names as attending to everything."""
    return [head for head, rule in plan.rules.items() if isinstance(rule, Full)]


def n_writing(heads: Iterable[Head], write_norm: HeadScores) -> int:
    """Number of heads that write anything at all; what happens to the others changes nothing."""
    return sum(bool(write_norm.per_head[head] > 0) for head in heads)


def _draw(partners: Mapping[Head, list[Head]], sizes: Mapping[Head, float], rng: np.random.Generator) -> list[Head]:
    """One partner for each head, none twice; heads with the fewest free partners choose first."""
    drawn: dict[Head, Head] = {}
    attempts = 1
    while left := [head for head in partners if head not in drawn]:
        free = {head: [other for other in partners[head] if other not in drawn.values()] for head in left}
        head = min(free, key=lambda head: len(free[head]))
        if not free[head]:
            if attempts < N_ATTEMPTS and all(partners.values()):
                drawn, attempts = {}, attempts + 1
                continue
            raise ValueError(
                f"there is no control for {len(partners)} heads: {head} writes {sizes[head]:.3g}, and no other head "
                f"that is left writes {1 / FACTOR:g} to {FACTOR:g} times as much. Take fewer heads."
            )
        nearest = min(abs(other.layer - head.layer) for other in free[head])
        candidates = [other for other in free[head] if abs(other.layer - head.layer) == nearest]
        drawn[head] = candidates[rng.integers(len(candidates))]
    return [drawn[head] for head in partners]
