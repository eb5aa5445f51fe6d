"""Query tokens from made-up accuracies and effects."""

import pytest
import torch

from corelens import ConditionResults, HeadScores, HeadSet
from corelens.study.query_tokens import QUERY_TOKENS, query_tokens
from tests.helpers.studies import head_scores


def condition_results(**accuracies: float) -> ConditionResults[HeadSet]:
    """Results on forty questions, by accuracy of each condition: `ram_5` is the condition `ram 5`."""
    values = {
        "plain" if name == "plain" else " ".join(name.rsplit("_", 1)): (torch.arange(40) < round(40 * accuracy))[
            :, None
        ]
        for name, accuracy in accuracies.items()
    }
    numbers = tuple(map(str, range(40)))
    floats = {name: correct.float() for name, correct in values.items()}
    return ConditionResults({name: [HeadSet(())] for name in values}, floats, numbers, ("a",) * 40, {})


@pytest.mark.usefixtures("few_draws")
def test_question_tokens_must_cost_as_much_as_others_in_the_mean_over_doses():
    generator = torch.Generator().manual_seed(0)
    effects = head_scores(torch.rand(8, 4, 10, generator=generator))
    alike = head_scores(effects.values.mean(0).expand(4, 4, 10))
    opposite = head_scores(-effects.values.mean(0).expand(4, 4, 10))
    scores: dict[str, HeadScores] = dict(zip(QUERY_TOKENS, (alike, opposite, alike), strict=True))
    chance = condition_results(plain=0.9, random_5=0.9, random_10=0.9)
    others = {"ram_last_5": 0.9, "ram_last_10": 0.5, "vrh_5": 0.9, "vrh_10": 0.9}
    finding = query_tokens(scores, condition_results(plain=0.9, ram_5=0.5, ram_10=0.2, **others), chance, effects)
    assert finding.verdict == "supported"
    values = {measurement.name: measurement.value for measurement in finding.measurements}
    correlations = [values[f"rank correlation with single-head effects, {label}"] for label in QUERY_TOKENS.values()]
    assert correlations == pytest.approx([1, -1, 1])
    assert values["cost of 10 heads of the question"] == pytest.approx(0.7)
    assert values["cost of 10 random heads"] == 0
    # The last token costs less with ten heads and more with five: .1 more in the mean.
    others |= {"ram_last_5": 0.1, "ram_last_10": 0.4}
    finding = query_tokens(scores, condition_results(plain=0.9, ram_5=0.5, ram_10=0.2, **others), chance, effects)
    values = {measurement.name: measurement.value for measurement in finding.measurements}
    name = "cost of the top heads of the question, less that of the last token, mean over numbers of heads"
    assert values[name] == pytest.approx(-0.1)
    assert finding.verdict != "supported"
    few_heads = query_tokens(scores, condition_results(plain=0.9), condition_results(plain=0.9), effects)
    assert few_heads.verdict == "inconclusive"
