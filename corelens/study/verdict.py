"""Verdicts on claims: what a claim needs, what was measured, and bootstrap intervals to compare the two."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int

from corelens.data import Sample
from corelens.experiments.conditions import BASELINE, ConditionResults
from corelens.metrics import bootstrap_means, group_rows
from corelens.scores import HeadScores

Verdict = Literal["supported", "not supported", "inconclusive", "cannot be tested"]

N_DRAWS = 500
"""Bootstrap draws of every interval."""


@dataclass(frozen=True)
class Measurement:
    """A measured number, its 95 % interval, and what a claim needs of it; nothing if it is only reported."""

    name: str
    value: float | int
    low: float | int
    high: float | int
    at_least: float | int | None = None
    at_most: float | int | None = None
    of_test: bool = False
    """True if it is the p-value of a test, which has no interval. A test that is not significant is no evidence against
    the claim, and counts as anything from zero to its p-value."""
    of_premise: bool = False
    """True if the claim says nothing of a model that does not meet it, such as one that answers nothing right."""

    @property
    def needed(self) -> bool:
        """True if the verdict depends on it."""
        return self.at_least is not None or self.at_most is not None

    @property
    def met(self) -> bool | None:
        """True if the whole interval is where the claim needs it; None if only a part is, or if it is not known."""
        if self.at_least is not None:
            return True if self.low >= self.at_least else False if self.high < self.at_least else None
        if self.at_most is not None:
            return True if self.high <= self.at_most else False if self.low > self.at_most else None
        return None

    @property
    def need(self) -> str:
        """Range that the claim needs, in words."""
        if self.at_least is not None:
            return f"at least {self.at_least:.3g}"
        return "" if self.at_most is None else f"at most {self.at_most:.3g}"

    @property
    def need_missed(self) -> str:
        """Range that contradicts the claim, in words."""
        return self.need.replace("at least", "below").replace("at most", "above")

    def __str__(self) -> str:
        if not np.isfinite(self.value):
            return "unknown"
        return f"{self.value:.3g}" + (f" [{self.low:.3g}, {self.high:.3g}]" if not self.of_test else "")


@dataclass(frozen=True)
class Finding:
    """Measurements for one claim, and the verdict that follows from them.

    The verdict follows from the measurements in the same way for every claim. Supported: all intervals lie where the
    claim needs them. Not supported: one lies wholly elsewhere. Inconclusive: neither, or nothing could be measured.
    Cannot be tested: a premise does not hold.
    """

    claim: str
    rule: str
    """Rule that was fixed before the run: the numbers that count, and the reasons for them."""

    measurements: tuple[Measurement, ...]
    notes: tuple[str, ...] = ()
    """Further observations, and limits of the finding."""

    @property
    def verdict(self) -> Verdict:
        if any(measurement.of_premise and measurement.met is False for measurement in self.measurements):
            return "cannot be tested"
        met = [measurement.met for measurement in self.measurements if measurement.needed]
        if False in met:
            return "not supported"
        return "inconclusive" if not met or None in met else "supported"

    @property
    def found(self) -> str:
        """Number of needs that are met, and each of the others with what was measured, in words."""
        needed = [measurement for measurement in self.measurements if measurement.needed]
        if not needed:
            return self.notes[0] if self.notes else ""
        found = f"{sum(measurement.met is True for measurement in needed)} of {len(needed)} needs met."
        for title, outcome in (("Not met", False), ("Cannot tell", None)):
            others = [f"{measurement.name}: {measurement}" for measurement in needed if measurement.met is outcome]
            found += f" {title}: {'; '.join(others)}." if others else ""
        return found

    @property
    def would_change(self) -> str:
        """Numbers that would have to differ for another verdict, in words."""
        needed = [measurement for measurement in self.measurements if measurement.needed]
        if not needed:
            return "Data on which it can be measured."
        if self.verdict == "supported":
            return (
                "Any of: " + "; ".join(f"{measurement.name} {measurement.need_missed}" for measurement in needed) + "."
            )
        missed = [measurement for measurement in needed if measurement.met is not True]
        hint = " More samples narrow the intervals." if self.verdict == "inconclusive" else ""
        return (
            "All of these, with their whole intervals: "
            + "; ".join(f"{measurement.name} {measurement.need}" for measurement in missed)
            + "."
            + hint
        )

    def to_json(self) -> dict[str, Any]:
        """Claim, verdict, rule, measurements and notes, ready for JSON; numbers that are not known are null."""
        return {
            "claim": self.claim,
            "verdict": self.verdict,
            "found": self.found,
            "rule": self.rule,
            "measurements": [
                {
                    "name": measurement.name,
                    **{
                        key: number if np.isfinite(number := float(getattr(measurement, key))) else None
                        for key in ("value", "low", "high")
                    },
                    "text": str(measurement),
                    "needed": measurement.need,
                    "met": measurement.met,
                }
                for measurement in self.measurements
            ],
            "what would change the verdict": self.would_change,
            "notes": list(self.notes),
        }


class Source(NamedTuple):
    """Origin of a sample: samples of a group, such as the questions about a picture, are drawn together."""

    dataset: object
    group: object


Sources = Sequence[object]
"""A `Source` for each sample, or the name of its data set where every sample is a group of its own."""


def sources(results: HeadScores | ConditionResults[Any]) -> list[Source]:
    """Source of each sample of some scores or answers."""
    n_samples = len(results.samples)
    return [*map(Source, results.datasets or [""] * n_samples, results.groups or range(n_samples))]


def paired_rows(one: HeadScores, other: HeadScores) -> tuple[list[int], list[int]]:
    """Numbers, in both scores, of the samples that both have; ids may recur in other data sets."""
    keys, other_keys = (
        list(zip(scores.datasets or [""] * len(scores.samples), scores.samples, strict=True)) for scores in (one, other)
    )
    rows = {key: row for row, key in enumerate(other_keys)}
    pairs = [(row, rows[key]) for row, key in enumerate(keys) if key in rows]
    return [row for row, _ in pairs], [row for _, row in pairs]


def _rows_by_dataset(samples: Sources) -> dict[object, list[Int[np.ndarray, "_row"]]]:
    """Numbers of the samples of each group of each data set."""
    known = [sample if isinstance(sample, Source) else Source(sample, row) for row, sample in enumerate(samples)]
    rows: dict[object, list[np.ndarray]] = {source.dataset: [] for source in known}
    for of_group in group_rows(known, len(known)):
        rows[known[of_group[0]].dataset].append(of_group)
    return rows


def estimate(
    name: str,
    statistic: Callable[[np.ndarray], float],
    samples: Sources,
    at_least: float | None = None,
    at_most: float | None = None,
    within: tuple[float | int, float | int] = (-math.inf, math.inf),
) -> Measurement:
    """Estimate a statistic with bias correction and a basic bootstrap interval over samples.

    Having only so many samples adds noise, which lowers correlations and overlaps; drawing from these again lowers them
    by about as much once more. The estimate is moved up by that, and the interval is mirrored about it. A mean is not
    lowered, and hardly moves. Davison and Hinkley 1997, section 5.2.

    Args:
        name: Name of the number.
        statistic: Computes the number from the samples with these indices.
        samples: Source of each sample; groups are drawn with replacement within each data set.
        at_least: Lower bound that the claim needs.
        at_most: Upper bound that the claim needs.
        within: Range of the number, such as zero and one for a share.
    """
    rng = np.random.default_rng(0)
    datasets = _rows_by_dataset(samples).values()

    def draw() -> np.ndarray:
        return np.concatenate([rows[n] for rows in datasets for n in rng.choice(len(rows), len(rows))])

    draws = np.array([statistic(draw()) for _ in range(N_DRAWS)])
    value = statistic(np.arange(len(samples)))
    mirrored = 2 * value - np.quantile(draws, [0.5, 0.975, 0.025])
    # NaN if any draw has no number.
    return Measurement(name, *_rounded(*np.clip(mirrored, *within)), at_least, at_most)


def estimate_mean(
    name: str,
    per_sample: Float[np.ndarray, "sample draw"],
    samples: Sources,
    extremes: tuple[float | int, float | int],
    at_least: float | None = None,
    weights: Mapping[str, float] | None = None,
) -> Measurement:
    """Estimate the mean of the means of data sets, with an interval over samples and over random draws of heads.

    Groups of samples are drawn from the existing ones and two more of each data set, one at either extreme, for the
    reasons that `bootstrap_means` gives. Where several sets of heads were drawn at random, they are drawn again, too,
    the same for all samples.

    Args:
        name: Name of the number.
        per_sample: Value of each sample, with each set of heads.
        samples: Source of each sample.
        extremes: Smallest and largest value that a sample can have.
        at_least: Lower bound that the claim needs.
        weights: Weights of data sets, if they are not equal.
    """
    rng = np.random.default_rng(0)
    datasets = _rows_by_dataset(samples)
    n_sets = per_sample.shape[1]
    draw_means, value = np.zeros((N_DRAWS, n_sets)), 0.0
    for dataset, parts in datasets.items():
        weight = weights[str(dataset)] if weights else 1 / len(datasets)
        values, groups = per_sample[np.concatenate(parts)], np.repeat(range(len(parts)), [*map(len, parts)]).tolist()
        draw_means += weight * bootstrap_means(torch.from_numpy(values), N_DRAWS, rng, extremes, groups).numpy()
        value += weight * float(values.mean())
    shares = rng.multinomial(n_sets, np.full(n_sets, 1 / n_sets), N_DRAWS) / n_sets
    # A resample of few sets varies less than the mean of as many sets does.
    shares = 1 / n_sets + (shares - 1 / n_sets) * math.sqrt(n_sets / max(1, n_sets - 1))
    low, high = np.quantile((draw_means * shares).sum(1), [0.025, 0.975])
    return Measurement(name, *_rounded(value, min(low, value), max(high, value)), at_least)


def not_measured(name: str, at_least: float | None = None, at_most: float | None = None) -> Measurement:
    """Measurement that a claim needs and that could not be made."""
    return Measurement(name, math.nan, math.nan, math.nan, at_least, at_most)


def p_value(name: str, p: float, at_most: float | None = None) -> Measurement:
    """Measurement of a statistical test."""
    return Measurement(name, p, 0.0, p, at_most=at_most, of_test=True)


def sample_accuracies(
    results: ConditionResults[Any], datasets: Sequence[str], condition: str, minus: str | None = None
) -> tuple[Float[np.ndarray, "sample draw"], list[Source]]:
    """Accuracy on each sample of some data sets, and the source of each sample.

    Args:
        results: Answers under several conditions.
        datasets: Names of the data sets.
        condition: Condition of the accuracy, with each draw of its heads; unreadable answers are wrong.
        minus: A condition whose accuracy is subtracted. At most one of the two conditions has several draws.
    """
    mask = np.array([dataset in datasets for dataset in results.datasets])

    def accuracies(name: str) -> Float[np.ndarray, "sample _draw"]:
        return results.values[name].nan_to_num().double().numpy()[mask]

    values = accuracies(condition) if minus is None else accuracies(condition) - accuracies(minus)
    return values, [source for source in sources(results) if source.dataset in datasets]


def accuracy(results: ConditionResults[Any], condition: str, datasets: Sequence[str]) -> float:
    """Mean accuracy over data sets, which have equal weights."""
    means = [sample_accuracies(results, [dataset], condition)[0].mean() for dataset in dict.fromkeys(datasets)]
    return float(np.mean(means))


def mean_chance(samples: Sequence[Sample]) -> float:
    """Accuracy of guessing among the options that questions have: one half of yes and no, zero of open answers."""
    options = [len(sample.choices) or 2 * (sample.scoring == "yes-no") for sample in samples]
    return float(np.mean([1 / n if n else 0.0 for n in options]))


def premise_of_accuracy(
    name: str, results: ConditionResults[Any], datasets: Sequence[str], at_least: float, chance: Mapping[str, float]
) -> Measurement:
    """Estimate the accuracy above chance with nothing changed on the data set where it is lowest.

    Args:
        name: Name of the number.
        results: Answers under several conditions.
        datasets: Names of the data sets.
        at_least: Share of what is above chance that the claim presupposes, so that there is something to lose.
        chance: Accuracy of guessing, by data set; zero where it is not given.
    """

    chances = {dataset: chance.get(dataset, 0.0) for dataset in datasets}
    # From what guessing reaches to all: zero to one.
    _, hardest = min(
        ((accuracy(results, BASELINE, [dataset]) - guessed) / (1 - guessed), dataset)
        for dataset, guessed in chances.items()
    )
    guessed = chances[hardest]
    values, samples = sample_accuracies(results, [hardest], BASELINE)
    extremes = (-guessed / (1 - guessed), 1.0)
    measured = estimate_mean(name, (values - guessed) / (1 - guessed), samples, extremes, at_least)
    return replace(measured, of_premise=True)


def _rounded(value: float, low: float, high: float) -> tuple[float, float, float]:
    """Round away errors of sums of fractions, which would decide a verdict at a threshold, and the sign of zero."""
    value, low, high = (round(float(number), 12) + 0.0 for number in (value, low, high))
    return value, low, high
