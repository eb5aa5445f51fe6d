"""Verdicts: what a claim needs, what was measured, and what that makes of the claim."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from corelens.experiments.conditions import BASELINE, ConditionResults

Verdict = Literal["supported", "not supported", "inconclusive"]

N_DRAWS = 500
"""Bootstrap draws of every interval."""


@dataclass(frozen=True)
class Measurement:
    """A measured number, its 95 % interval, and what a claim needs of it; nothing if it is only reported."""

    name: str
    value: float
    low: float
    high: float
    at_least: float | None = None
    at_most: float | None = None
    of_test: bool = False
    """Whether it is the p-value of a test, which has no interval: one that finds nothing is no evidence against the
    claim, and counts as anything from zero to it."""

    @property
    def needed(self) -> bool:
        """Whether the verdict depends on it."""
        return self.at_least is not None or self.at_most is not None

    @property
    def met(self) -> bool | None:
        """Whether the whole interval is where the claim needs it; None if only a part is, or it is not known."""
        if self.at_least is not None:
            return True if self.low >= self.at_least else False if self.high < self.at_least else None
        if self.at_most is not None:
            return True if self.high <= self.at_most else False if self.low > self.at_most else None
        return None

    @property
    def need(self) -> str:
        """What the claim needs, in words."""
        if self.at_least is not None:
            return f"at least {self.at_least:.3g}"
        return "" if self.at_most is None else f"at most {self.at_most:.3g}"

    @property
    def need_missed(self) -> str:
        """Where the claim does not need it, in words."""
        return self.need.replace("at least", "below").replace("at most", "above")

    def __str__(self) -> str:
        if not np.isfinite(self.value):
            return "unknown"
        return f"{self.value:.3g}" + (f" [{self.low:.3g}, {self.high:.3g}]" if not self.of_test else "")


@dataclass(frozen=True)
class Finding:
    """What a study found about one claim.

    The verdict of every claim follows from its effects alike. Supported: all intervals lie where the claim needs them.
    Not supported: one lies wholly elsewhere. Inconclusive: neither, or nothing could be measured.
    """

    claim: str
    rule: str
    """What was decided before the run: the numbers that count, and why these."""

    measurements: tuple[Measurement, ...]
    notes: tuple[str, ...] = ()
    """What else was seen, and what limits it."""

    @property
    def verdict(self) -> Verdict:
        met = [effect.met for effect in self.measurements if effect.needed]
        if False in met:
            return "not supported"
        return "inconclusive" if not met or None in met else "supported"

    @property
    def would_change(self) -> str:
        """Which numbers would have to be others for another verdict."""
        needed = [effect for effect in self.measurements if effect.needed]
        if not needed:
            return "Data on which it can be measured."
        if self.verdict == "supported":
            return "Any of: " + "; ".join(f"{one.name} {one.need_missed}" for one in needed) + "."
        wrong = [one for one in needed if one.met is not True]
        more = " More samples narrow the intervals." if self.verdict == "inconclusive" else ""
        return (
            "All of these, with their whole intervals: "
            + "; ".join(f"{one.name} {one.need}, was {one}" for one in wrong)
            + "."
            + more
        )

    def to_json(self) -> dict[str, Any]:
        """All of it, ready for JSON; what is not known is null."""
        return {
            "claim": self.claim,
            "verdict": self.verdict,
            "rule": self.rule,
            "effects": [
                {
                    "name": one.name,
                    **{
                        key: number if np.isfinite(number := float(getattr(one, key))) else None
                        for key in ("value", "low", "high")
                    },
                    "said": str(one),
                    "needed": one.need,
                    "met": one.met,
                }
                for one in self.measurements
            ],
            "what would change the verdict": self.would_change,
            "notes": list(self.notes),
        }


def estimate(
    name: str,
    statistic: Callable[[np.ndarray], float],
    strata: Sequence[object],
    at_least: float | None = None,
    at_most: float | None = None,
    within: tuple[float | int, float | int] = (-math.inf, math.inf),
) -> Measurement:
    """A number and its basic bootstrap interval over samples, both without what drawing samples adds.

    Having only so many samples adds noise, which lowers correlations and overlaps; drawing from these again lowers them
    by about as much once more. The number is moved up by that, and the interval is mirrored about it. A mean is not
    lowered, and hardly moves. Davison and Hinkley 1997, section 5.2.

    Args:
        name: What the number is.
        statistic: The number, of the samples with these indices.
        strata: What each sample belongs to, e.g. its data set; samples are drawn with replacement within each.
        at_least: What the claim needs.
        at_most: What the claim needs.
        within: What the number can be at least and at most, such as nought and one of a share.
    """
    rng = np.random.default_rng(0)
    every = np.arange(len(strata))
    groups = [every[[own == stratum for own in strata]] for stratum in dict.fromkeys(strata)]
    draws = np.array(
        [statistic(np.concatenate([rng.choice(group, len(group)) for group in groups])) for _ in range(N_DRAWS)]
    )
    value = statistic(every)
    mirrored = 2 * value - np.quantile(draws, [0.5, 0.975, 0.025])
    # Where a draw has no number, nothing is known.
    return Measurement(name, *_exact(*np.clip(mirrored, *within)), at_least, at_most)


def estimate_mean(
    name: str,
    per_sample: Float[np.ndarray, "sample draw"],
    datasets: Sequence[str],
    extremes: tuple[float | int, float | int],
    at_least: float | None = None,
    weights: Mapping[str, float] | None = None,
) -> Measurement:
    """The mean of the means of data sets, and its interval over samples and over heads drawn by chance.

    Samples are drawn from those that there are and two more of each data set, one at either extreme: if all of twenty
    samples are alike, that does not say that all others are. For shares this is near to what Agresti and Coull (1998)
    do. Where several sets of heads were drawn by chance, they are drawn again, too, the same for all samples.

    Args:
        name: What the number is.
        per_sample: Of each sample, with each set of heads.
        datasets: Of each sample.
        extremes: What a sample's number can be at least and at most.
        at_least: What the claim needs.
        weights: Of data sets, if not all count alike.
    """
    rng = np.random.default_rng(0)
    names = list(dict.fromkeys(datasets))
    n_sets = per_sample.shape[1]
    drawn, value = np.zeros((N_DRAWS, n_sets)), 0.0
    for dataset in names:
        weight = weights[dataset] if weights else 1 / len(names)
        own = per_sample[np.array(datasets) == dataset]
        more = np.concatenate([own, np.repeat(np.array(extremes)[:, None], n_sets, 1)])
        drawn += weight * rng.choice(more, (N_DRAWS, len(own))).mean(1)
        value += weight * float(own.mean())
    shares = rng.multinomial(n_sets, np.full(n_sets, 1 / n_sets), N_DRAWS) / n_sets
    # Draws of so few vary less than the mean of so few does.
    shares = 1 / n_sets + (shares - 1 / n_sets) * math.sqrt(n_sets / max(1, n_sets - 1))
    low, high = np.quantile((drawn * shares).sum(1), [0.025, 0.975])
    return Measurement(name, *_exact(value, min(low, value), max(high, value)), at_least)


def _exact(value: float, low: float, high: float) -> tuple[float, float, float]:
    """Without what sums of fractions miss a threshold by, which would decide a verdict, and without a sign of zero."""
    value, low, high = (round(float(number), 12) + 0.0 for number in (value, low, high))
    return value, low, high


def not_measured(name: str, at_least: float) -> Measurement:
    """What a claim needs, where it could not be measured."""
    return Measurement(name, math.nan, math.nan, math.nan, at_least)


def p_value(name: str, p: float, at_most: float | None = None) -> Measurement:
    """The result of a test."""
    return Measurement(name, p, 0.0, p, at_most=at_most, of_test=True)


def per_sample(
    found: ConditionResults[Any], names: Sequence[str], condition: str, less: str | None = None
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


def accuracy(found: ConditionResults[Any], condition: str, names: Sequence[str]) -> float:
    """The mean over data sets, which count alike."""
    values, datasets = per_sample(found, names, condition)
    return float(np.mean([values[np.array(datasets) == name].mean() for name in dict.fromkeys(datasets)]))


def lowest_accuracy(name: str, found: ConditionResults[Any], names: Sequence[str], at_least: float) -> Measurement:
    """Accuracy with nothing changed, on the data set where it is lowest."""
    lowest = min(names, key=lambda one: accuracy(found, BASELINE, [one]))
    return estimate_mean(name, *per_sample(found, [lowest], BASELINE), (0, 1), at_least)
