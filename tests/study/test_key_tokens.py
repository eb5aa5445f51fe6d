"""Key tokens of made-up heads that attend to the evidence or elsewhere."""

import pytest
import torch

from corelens import Head, HeadSet
from corelens.experiments.key_token_results import KeyTokens
from corelens.study.key_tokens import key_token_finding
from tests.helpers.studies import head_scores


def key_tokens(top_ratio: float, random_ratio: float) -> KeyTokens:
    """Twenty samples of 20 tokens, four of which are evidence; heads of layer 0 have one ratio, others another."""
    ratios = torch.full((20, 2, 8), random_ratio)
    ratios[:, 0] = top_ratio
    layers = [HeadSet(tuple(Head(layer, head) for head in range(8))) for layer in range(2)]
    coverage = {"top": torch.full((20, 1, 8), top_ratio), "random": torch.full((20, 2, 8), random_ratio)}
    coverage["bottom"] = coverage["random"][:, :1]
    rankings = {"top": layers[:1], "random": layers[1:] * 2, "bottom": layers[1:]}
    return KeyTokens(head_scores(ratios), rankings, coverage, torch.full((20,), 20), torch.full((20,), 4))


@pytest.mark.usefixtures("few_draws")
def test_key_tokens_need_top_heads_that_hit_more_than_others():
    untrained = key_tokens(0.25, 0.25)
    finding = key_token_finding(key_tokens(0.75, 0.25), untrained)
    assert finding.verdict == "supported"
    values = {measurement.name: measurement.value for measurement in finding.measurements}
    assert (values["hit rate of 4 top heads"], values["hit rate of 4 random heads"]) == (1, 0)
    assert key_token_finding(key_tokens(0.75, 0.5), untrained).verdict == "not supported"
    assert key_token_finding(key_tokens(0.25, 0.75), untrained).verdict == "not supported"
    assert key_token_finding(key_tokens(0.75, 0.25), key_tokens(0.75, 0.25)).verdict == "not supported"
