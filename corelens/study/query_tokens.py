"""Query tokens: which tokens' attention finds the heads that matter."""

from collections.abc import Mapping

import numpy as np

from corelens.experiments.conditions import BASELINE, ConditionResults
from corelens.heads import HeadSet
from corelens.metrics import spearman
from corelens.scores import HeadScores
from corelens.study.verdict import (
    Finding,
    Measurement,
    Source,
    estimate,
    estimate_mean,
    not_measured,
    sample_accuracies,
    sources,
)

QUERY_TOKENS = {"ram": "question", "ram_last": "last token", "vrh": "answer"}
"""Retrieval attention mass by query tokens: this paper and MMRetHeads, Elastic Attention, and VRH."""

CLAIM = "Query tokens: the question's tokens find the heads that matter"

RULE = (
    "The literature disagrees about the tokens whose attention finds the heads that matter: those of the question (the "
    "paper, MMRetHeads), the last one of the prompt (Elastic Attention) or those that write the answer (VRH). Zeroing "
    "the heads that the question's tokens rank highest costs at least as much accuracy, in the mean over the numbers "
    "of heads, as zeroing those of the last token and those of the answer. Heads are chosen on other samples. The rank "
    "correlation of each score with the effects of single heads, which is zero by chance, and the cost of random heads "
    "are reported. The rule is corelens's own: the paper compares no query tokens."
)


def query_tokens(
    scores: Mapping[str, HeadScores],
    ablations: ConditionResults[HeadSet],
    random_ablations: ConditionResults[HeadSet],
    effects: HeadScores,
) -> Finding:
    """Test whether the question's tokens find the heads that matter at least as well as others.

    Args:
        scores: Scores by the metrics of `QUERY_TOKENS`.
        ablations: Accuracy with heads zeroed: `ram 5`, `ram_last 5`, `vrh 5` and so on, smallest number first.
        random_ablations: Accuracy with random heads zeroed: `random 5` and so on.
        effects: Drop of the answer's log-probability without each head by itself, on other samples.
    """
    datasets = list(dict.fromkeys(ablations.datasets))
    doses = [name.removeprefix("ram ") for name in ablations.conditions if name.startswith("ram ")]
    name = "cost of the top heads of the question, less that of the {}, mean over numbers of heads"
    others = [metric for metric in QUERY_TOKENS if metric != "ram"]
    if not doses:
        needs = tuple(not_measured(name.format(QUERY_TOKENS[metric]), 0.0) for metric in others)
        return Finding(CLAIM, RULE, needs, ("The model has too few heads to zero five and compare with five others.",))

    def costs(metric: str, dose: str) -> tuple[np.ndarray, list[Source]]:
        results = random_ablations if metric == "random" else ablations
        return sample_accuracies(results, datasets, BASELINE, f"{metric} {dose}")

    mean_costs = {metric: np.mean([costs(metric, dose)[0] for dose in doses], axis=0) for metric in QUERY_TOKENS}
    _, sample_datasets = costs("ram", doses[0])
    measurements = [
        estimate_mean(
            name.format(QUERY_TOKENS[metric]), mean_costs["ram"] - mean_costs[metric], sample_datasets, (-1, 1), 0.0
        )
        for metric in others
    ]
    kinds = {metric: f"heads of the {label}" for metric, label in QUERY_TOKENS.items()} | {"random": "random heads"}
    for metric, heads in kinds.items():
        for dose in doses:
            measurements.append(estimate_mean(f"cost of {dose} {heads}", *costs(metric, dose), (-1, 1)))
    measurements += [_correlation(label, scores[metric], effects) for metric, label in QUERY_TOKENS.items()]
    return Finding(CLAIM, RULE, tuple(measurements))


def _correlation(label: str, scores: HeadScores, effects: HeadScores) -> Measurement:
    """Rank correlation of scores with the mean effect of single heads; the interval is over the samples of effects."""
    return estimate(
        f"rank correlation with single-head effects, {label}",
        lambda indices: spearman(scores.per_head, effects.values[indices].nanmean(0)),
        sources(effects),
        within=(-1, 1),
    )
