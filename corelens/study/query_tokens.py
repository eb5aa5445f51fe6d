"""Query tokens: which tokens' attention finds the heads that matter."""

from collections.abc import Mapping

import numpy as np

from corelens.experiments.conditions import BASELINE, ConditionResults
from corelens.heads import HeadSet
from corelens.metrics import spearman
from corelens.scores import HeadScores
from corelens.study.verdict import Finding, Measurement, estimate, estimate_mean, sample_accuracies

QUERY_TOKENS = {"ram": "question", "ram_last": "last token", "vrh": "answer"}
"""Retrieval attention mass by query tokens: this paper and MMRetHeads, Elastic Attention, and VRH."""

RULE = (
    "The literature disagrees about the tokens whose attention finds the heads that matter: those of the question (the "
    "paper, MMRetHeads), the last one of the prompt (Elastic Attention) or those that write the answer (VRH). Zeroing "
    "the heads that the question's tokens rank highest, as many as the study's largest number, costs at least as much "
    "accuracy as zeroing those of the last token and those of the answer. Heads are chosen on other samples. The rank "
    "correlation of each score with the effects of single heads is reported, beside that of a score of chance, which is "
    "zero. The rule is corelens's own: the paper compares no query tokens."
)


def query_tokens(
    scores: Mapping[str, HeadScores], ablations: ConditionResults[HeadSet], effects: HeadScores
) -> Finding:
    """Test whether the question's tokens find the heads that matter at least as well as others.

    Args:
        scores: Scores by the metrics of `QUERY_TOKENS`.
        ablations: Accuracy with heads zeroed: `ram 5`, `ram_last 5`, `vrh 5` and so on, smallest number first.
        effects: Drop of the answer's log-probability without each head by itself, on other samples.
    """
    doses = [name.removeprefix("ram ") for name in ablations.conditions if name.startswith("ram ")]
    datasets = list(dict.fromkeys(ablations.datasets))

    def cost(metric: str, dose: str) -> tuple[np.ndarray, list[str]]:
        return sample_accuracies(ablations, datasets, BASELINE, f"{metric} {dose}")

    of_question, sample_datasets = cost("ram", doses[-1])
    measurements = [
        estimate_mean(
            f"cost of the top {doses[-1]} heads of the question, less that of the {label}",
            of_question - cost(metric, doses[-1])[0],
            sample_datasets,
            (-1, 1),
            at_least=0.0,
        )
        for metric, label in QUERY_TOKENS.items()
        if metric != "ram"
    ]
    measurements += [
        estimate_mean(f"cost of the top {dose} heads by the {label}", *cost(metric, dose), (-1, 1))
        for metric, label in QUERY_TOKENS.items()
        for dose in doses
    ]
    measurements += [_correlation(label, scores[metric], effects) for metric, label in QUERY_TOKENS.items()]
    return Finding(
        "Query tokens: the question's tokens find the heads that matter", RULE, tuple(measurements), ()
    )


def _correlation(label: str, scores: HeadScores, effects: HeadScores) -> Measurement:
    """Rank correlation of scores with the mean effect of single heads; the interval is over the samples of effects."""
    return estimate(
        f"rank correlation with single-head effects, {label}",
        lambda indices: spearman(scores.per_head, effects.values[indices].nanmean(0)),
        effects.datasets or ("",) * len(effects.values),
        within=(-1, 1),
    )
