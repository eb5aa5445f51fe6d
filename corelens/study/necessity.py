"""Claim 4, necessity: the model cannot see without its CoRe heads, and can without others."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import count

import numpy as np
from scipy.stats import norm

from corelens.experiments.conditions import BASELINE, MATCHED, ConditionResults, low_to_high
from corelens.experiments.controls import write_matched_random
from corelens.heads import HeadSet
from corelens.metrics import stability_curve
from corelens.scores import HeadScores
from corelens.study.verdict import (
    Finding,
    Measurement,
    Source,
    estimate_mean,
    not_measured,
    premise_of_accuracy,
    sample_accuracies,
)

CONTROLS = ("next-ranked", MATCHED, "bottom")
REPORTED = ("random", "random, same layers")

NEEDED_COST = 0.1
"""Accuracy that removing the top heads must cost."""

EXPECTED_COST = 0.2
"""Cost of which the notes say how probably the run would have seen it: twice what the rule needs."""

RULE = (
    "Premise: of the accuracy above chance, the model has at least 25 % on every data set and 50 % on text, so that "
    "there is something to lose. Zeroing the top 5 % of heads, in prefill and decoding, costs at least 10 points of "
    "accuracy on questions about pictures, as does putting their mean in their place; at least twice what zeroing as "
    "many next-ranked heads costs, and bottom heads, and random heads that write as much (write-matched: each stands "
    "for one of the top heads, writes half to twice as much at the question's tokens, and is of its layer or the "
    "nearest that has one); and at least twice what it costs on text-only questions. The paper's own mask (algorithm "
    "2), on the most heads of 5, 10, 20 and 30 that leave as many to compare with, costs at least 10 points, and at "
    "least twice what it costs on random heads and on bottom heads. Heads are chosen on other samples, and premise is, "
    "too, that half of these choose at least half of the heads that the other half chooses, whichever halves (5th to "
    "95th percentile of 100 splits): heads that chance chose need not be needed. Data sets count alike; intervals are "
    "over samples, paired, and over draws of random heads. Random heads without matching may write nothing: what they "
    "cost is reported and not in the rule, as are other operations, phases and sufficiency. The paper has accuracies "
    "under its mask (section 4.4, figure 6a) and no rule: thresholds are corelens's own."
)


def matched_controls(core: HeadSet, write_norm: HeadScores, n_draws: int) -> tuple[dict[str, list[HeadSet]], str]:
    """Draws of heads that write as much as the CoRe heads, as a condition; or none, and the reason why."""
    try:
        return {MATCHED: write_matched_random(core, write_norm, range(n_draws))}, ""
    except ValueError as cause:
        return {}, str(cause)


def reliability(scores: HeadScores, share: float) -> Measurement:
    """Measure how many of the top heads of one half of the samples are in the top of the other."""
    name = "share of the top heads that another half of the samples chooses, too"
    try:
        curve = stability_curve(scores.values, share, groups=scores.groups, datasets=scores.datasets)
    except ValueError:  # one sample, or one group of them
        return replace(not_measured(name, 0.5), of_premise=True)
    return Measurement(name, curve.mean[-1], curve.low[-1], curve.high[-1], 0.5, of_premise=True)


def power(n_samples: int, cost: float, needed: float) -> float:
    """Probability that a cost is seen to be what is needed: that its 95 % interval lies above that.

    By normal approximation, for the interval of `estimate_mean`, which draws from two more samples at the extremes.

    Args:
        n_samples: Number of questions with right or wrong answers.
        cost: Share of them that are answered no more; none is gained.
        needed: Cost that the interval must lie above.
    """
    with_extremes = n_samples / (n_samples + 2)
    centre, mean_square = cost * with_extremes, cost * with_extremes + 2 / (n_samples + 2)
    half_width = norm.ppf(0.975) * math.sqrt((mean_square - centre**2) / n_samples)
    spread = with_extremes * math.sqrt(cost * (1 - cost) / n_samples)
    return float(norm.cdf((centre - half_width - needed) / spread))


def samples_for_power(cost: float, needed: float, probability: float = 0.8) -> int:
    """Smallest number of samples with which a cost is seen so probably."""
    return next(n for n in count(2) if power(n, cost, needed) >= probability)


def necessity(
    ablations: ConditionResults[HeadSet],
    text_ablations: ConditionResults[HeadSet] | None,
    other_ablations: Mapping[str, ConditionResults[HeadSet]],
    masked: ConditionResults[HeadSet],
    chosen_again: Measurement,
    chance: Mapping[str, float] | None = None,
    no_controls: str = "",
) -> Finding:
    """Test whether the top heads are needed to see.

    Args:
        ablations: Accuracy with heads zeroed: `top`, `CONTROLS` and `REPORTED`.
        text_ablations: The same of text-only questions: `top`. None if there are none.
        other_ablations: Accuracy with heads ablated by another method or in one phase, by that; `mean` is in the rule.
        masked: Accuracy under the paper's mask: `top 5`, `random 5`, `bottom 5` and so on, smallest number first.
        chosen_again: What `reliability` measures of the scores that chose the heads.
        chance: Accuracy of guessing, by data set; zero where it is not given.
        no_controls: Reason why there are no write-matched heads, if there are none.
    """
    chance = chance or {}
    visual_sets = list(dict.fromkeys(ablations.datasets))
    text_sets = list(dict.fromkeys(text_ablations.datasets)) if text_ablations else []

    def cost(
        name: str, results: ConditionResults[HeadSet], condition: str, at_least: float | None = None
    ) -> Measurement:
        costs, sample_datasets = sample_accuracies(results, visual_sets, BASELINE, condition)
        return estimate_mean(name, costs, sample_datasets, (-1, 1), at_least)

    name = "accuracy above chance with nothing changed, on the hardest data set"
    measurements = [premise_of_accuracy(name, ablations, visual_sets, 0.25, chance)]
    name = "accuracy above chance on text with nothing changed, on the hardest task"
    measurements.append(
        premise_of_accuracy(name, text_ablations, text_sets, 0.5, chance) if text_ablations else not_measured(name, 0.5)
    )
    measurements.append(chosen_again)
    measurements.append(cost("cost of zeroing the top heads", ablations, "top", NEEDED_COST))
    name, mean = "cost of the mean in their place", other_ablations.get("mean")
    measurements.append(cost(name, mean, "top", NEEDED_COST) if mean is not None else not_measured(name, NEEDED_COST))
    top_costs, sample_datasets = sample_accuracies(ablations, visual_sets, BASELINE, "top")
    for control in CONTROLS:
        name = f"cost of top less twice that of {control}"
        if control not in ablations.conditions:
            measurements.append(not_measured(name, 0.0))
            continue
        differences = top_costs - 2 * sample_accuracies(ablations, visual_sets, BASELINE, control)[0]
        measurements.append(estimate_mean(name, differences, sample_datasets, (-2, 2), at_least=0.0))
    name = "cost of top less twice that on text"
    if text_ablations:
        text_costs, text_datasets = sample_accuracies(text_ablations, text_sets, BASELINE, "top")
        costs, sample_datasets = np.concatenate([top_costs, text_costs]), [*sample_datasets, *text_datasets]
        weights = dict.fromkeys(visual_sets, 1 / len(visual_sets)) | dict.fromkeys(text_sets, -2 / len(text_sets))
        measurements.append(estimate_mean(name, costs, sample_datasets, (-1, 1), 0.0, weights))
    else:
        measurements.append(not_measured(name, 0.0))
    measurements += _costs_of_mask(masked, visual_sets)
    for control in (*CONTROLS, *REPORTED):
        if control in ablations.conditions:
            of_set = ablations.n_writing.get(control, ())
            writing = f", of which {low_to_high(of_set)} write" if of_set else ""
            measurements.append(cost(f"cost of zeroing {control} heads{writing}", ablations, control))
    for method, results in other_ablations.items():
        if method == "mean":
            continue  # measured above
        measurements += [
            cost(f"{method}: cost of {condition}", results, condition)
            for condition in results.conditions
            if condition != BASELINE
        ]
    notes = []
    if MATCHED in ablations.conditions:
        top, *draws = (
            np.mean([ablations.accuracies(name, dataset) for dataset in visual_sets], axis=0)
            for name in ("top", MATCHED)
        )
        n_as_costly = int((draws[0] <= top).sum())
        notes.append(
            f"{n_as_costly} of {len(draws[0])} draws of write-matched heads cost as much as the top heads or more."
        )
    else:
        notes.append(
            f"There are no write-matched heads, so that no control could do as much harm, and the claim cannot be "
            f"supported: random heads that write nothing show nothing. {no_controls}".strip()
        )
    n_independent = len({*ablations.groups}) or len(top_costs)
    probability = power(n_independent, EXPECTED_COST, NEEDED_COST)
    enough = samples_for_power(EXPECTED_COST, NEEDED_COST)
    notes.append(
        f"On {n_independent} independent samples, a true cost of {EXPECTED_COST:.0%} is seen to be above "
        f"{NEEDED_COST:.0%} with a probability of {probability:.0%}; for 80 % it takes {enough} to test on, twice as "
        f"many in all."
    )
    if "sufficiency" in other_ablations:
        notes.append("Blinding heads hides all visual tokens from them: what is left to see goes through the others.")
    return Finding("Necessity: the top heads are needed to see", RULE, tuple(measurements), tuple(notes))


def _costs_of_mask(masked: ConditionResults[HeadSet], datasets: Sequence[str]) -> Iterator[Measurement]:
    """Measure the costs of the paper's mask by number of heads, and compare those of the largest number."""
    doses = [name.removeprefix("top ") for name in masked.conditions if name.startswith("top ")]
    if not doses:
        yield not_measured("cost of the paper's mask on the top heads", NEEDED_COST)
        return

    def costs(condition: str) -> tuple[np.ndarray, list[Source]]:
        return sample_accuracies(masked, datasets, BASELINE, condition)

    top_costs, sample_datasets = costs(f"top {doses[-1]}")
    name = "cost of the paper's mask on the top {} heads"
    yield estimate_mean(name.format(doses[-1]), top_costs, sample_datasets, (-1, 1), NEEDED_COST)
    for control in ("random", "bottom"):
        differences = top_costs - 2 * costs(f"{control} {doses[-1]}")[0]
        label = f"cost of the paper's mask on the top {doses[-1]} less twice that on {control} heads"
        yield estimate_mean(label, differences, sample_datasets, (-2, 2), at_least=0.0)
    for dose in doses:
        if dose != doses[-1]:
            yield estimate_mean(name.format(dose), *costs(f"top {dose}"), (-1, 1))
        for control in ("random", "bottom"):
            yield estimate_mean(
                f"cost of the paper's mask on {dose} {control} heads", *costs(f"{control} {dose}"), (-1, 1)
            )
