"""Budgets of full heads, spent on the best heads and on controls."""

import pytest
import torch

from corelens.heads import Head
from corelens.scores import HeadScores
from corelens.sparse import Streaming, StreamingBlocks, best_groups, best_layers, plans_and_controls


def head_scores(values: list[list[float]]) -> HeadScores:
    return HeadScores(torch.tensor([values]), "ram", ("a",))


def test_budgets_are_spent_as_they_say():
    scores = head_scores([[0.9, 0.0, 0.5, 0.5], [0.1, 0.2, 0.3, 0.4]])
    assert str(best_groups(scores, 0.25, 2)) == "L0H0, L0H1"
    assert str(best_groups(scores, 0.25, 2, "mean")) == "L0H2, L0H3"
    assert str(best_groups(scores, 0.5, 2)) == "L0H0, L0H1, L0H2, L0H3"
    assert str(best_layers(scores, 0.5)) == "L0H0, L0H1, L0H2, L0H3"
    with pytest.raises(ValueError, match=r"share must lie in \(0, 1\], and is 0"):
        best_groups(scores, 0, 2)
    plans = plans_and_controls(scores, 2, Streaming(1, 4), [0.25, 1.0], seeds=[0, 1])
    assert list(plans["none"][0].rules) == []
    assert list(plans["core 25%"][0].rules) == [Head(0, 0), Head(0, 2)]
    of_equal_size = [name for name in plans if "25%" in name and "lay" not in name]
    assert {len(plan.rules) for name in of_equal_size for plan in plans[name]} == {2}
    assert len(plans["random 25%"]) == 2
    # No other head is left to draw.
    assert "random 100%" not in plans
    assert len(plans["core 100%"][0].rules) == 8
    small = plans_and_controls(scores, 2, Streaming(1, 4), [0.001, 0.0025])
    assert {"core 0.1%", "core 0.25%"} <= small.keys()
    by_count = plans_and_controls(scores, 2, StreamingBlocks(), [2, 4], seeds=[0])
    assert by_count["core 2"][0].rules == plans["core 25%"][0].rules
    assert by_count["core 2"][0].default == StreamingBlocks()
    assert by_count["best groups 4"][0].rules.keys() == set(best_groups(scores, 0.5, 2))
    assert {len(by_count[f"{way} 4"][0].rules) for way in ("core", "random", "bottom", "whole layers")} == {4}
    with pytest.raises(ValueError, match="n=9 means 9 of 8 heads"):
        plans_and_controls(scores, 2, Streaming(1, 4), [9])
    with pytest.raises(ValueError, match=r"fraction=1\.5 is outside"):
        plans_and_controls(scores, 2, Streaming(1, 4), [1.5])
