"""Dose curves: what is left of an accuracy as more heads are ablated."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from tqdm.auto import tqdm

from corelens.heads import HeadSet
from corelens.scores import HeadScores


@dataclass(frozen=True)
class DoseCurve:
    """Accuracy by share of heads ablated, for every way of choosing them."""

    fractions: tuple[float, ...]
    heads: dict[str, list[list[HeadSet]]]
    """By choice, then fraction, then seed; choices without chance have one set, impossible ones none."""

    accuracy: dict[str, list[list[float]]]
    """In the same order."""

    def mean(self, choice: str) -> list[float]:
        """Over seeds, by fraction; NaN where the choice is impossible."""
        return [float(np.mean(values)) if values else float("nan") for values in self.accuracy[choice]]

    def sd(self, choice: str) -> list[float]:
        """Over seeds, by fraction; zero for choices without chance."""
        return [float(np.std(values)) if values else float("nan") for values in self.accuracy[choice]]


def dose_curve(
    scores: HeadScores,
    accuracy: Callable[[HeadSet], float],
    fractions: Sequence[float] = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5),
    seeds: Sequence[int] = range(5),
) -> DoseCurve:
    """Accuracy without more and more heads: the top, next and bottom ones, random ones, random ones of the same layers.

    Random heads are drawn outside the top ones, so that neither they nor the next ones exist beyond one half; of the
    same layers there may be too few earlier.

    Args:
        scores: What heads are ranked by.
        accuracy: Measures it without some heads: `lambda heads: answers(model, batches, ablate(heads)).accuracy`.
        fractions: Shares of all heads.
        seeds: Of the random draws.
    """
    choices: dict[str, Callable[[float], list[HeadSet]]] = {
        "top": lambda fraction: [scores.top(fraction)],
        "next": lambda fraction: [scores.next(fraction)],
        "bottom": lambda fraction: [scores.bottom(fraction)],
        "random": lambda fraction: [scores.random(seed, fraction) for seed in seeds],
        "random, same layers": lambda fraction: [scores.layer_matched_random(seed, fraction) for seed in seeds],
    }
    # Wrong fractions are said before anything runs.
    for fraction in fractions:
        scores.top(fraction)
    heads = {name: [_if_possible(choose, fraction) for fraction in fractions] for name, choose in choices.items()}
    measured: dict[str, list[list[float]]] = {name: [] for name in choices}
    with tqdm(total=sum(len(sets) for by_fraction in heads.values() for sets in by_fraction), desc="doses") as bar:
        for name, by_fraction in heads.items():
            for sets in by_fraction:
                measured[name].append([])
                for some in sets:
                    measured[name][-1].append(accuracy(some))
                    bar.update()
    return DoseCurve(tuple(fractions), heads, measured)


def _if_possible(choose: Callable[[float], list[HeadSet]], fraction: float) -> list[HeadSet]:
    try:
        return choose(fraction)
    except ValueError:
        # Too few other heads.
        return []
