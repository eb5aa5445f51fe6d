"""What conditions cost samples, for claims about accuracy."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from corelens.conditions import PLAIN, Conditions
from corelens.study.finding import Effect, estimate_mean


def per_sample(
    found: Conditions[Any], names: Sequence[str], condition: str, less: str | None = None
) -> tuple[Float[np.ndarray, "sample draw"], list[str]]:
    """Accuracy on each sample of some data sets, and the data set of each.

    Args:
        found: What was answered.
        names: Of data sets.
        condition: Under which accuracy is taken, with each draw of its heads; what cannot be read is not right.
        less: A condition whose accuracy is subtracted. Of the two, one at most has several draws.
    """
    wanted = np.array([name in names for name in found.datasets])

    def of(name: str) -> Float[np.ndarray, "sample _draw"]:
        return found.values[name].nan_to_num().double().numpy()[wanted]

    values = of(condition) if less is None else of(condition) - of(less)
    return values, [name for name in found.datasets if name in names]


def accuracy(found: Conditions[Any], condition: str, names: Sequence[str]) -> float:
    """The mean over data sets, which count alike."""
    values, datasets = per_sample(found, names, condition)
    return float(np.mean([values[np.array(datasets) == name].mean() for name in dict.fromkeys(datasets)]))


def lowest_accuracy(name: str, found: Conditions[Any], names: Sequence[str], at_least: float) -> Effect:
    """Accuracy with nothing changed, on the data set where it is lowest."""
    lowest = min(names, key=lambda one: accuracy(found, PLAIN, [one]))
    return estimate_mean(name, *per_sample(found, [lowest], PLAIN), (0, 1), at_least)
