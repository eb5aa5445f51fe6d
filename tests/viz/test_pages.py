"""Relevance curves, by their data."""

from typing import Any

import torch

from corelens.metrics.page_ranking import PageRanking
from corelens.viz import relevance_curves


def test_every_head_set_has_a_line_and_every_page_with_evidence_a_band():
    scores = {"top": torch.tensor([[0.1, 0.2], [0.5, torch.nan]]), "all": torch.tensor([[0.3, 0.4], [0.0, torch.nan]])}
    evidence = torch.tensor([[False, True], [False, False]])
    ranking = PageRanking(("a", "b"), scores, evidence, ("a", "b"))
    figure: Any = relevance_curves(ranking)
    assert [(line.name, list(line.x)) for line in figure.data] == [("top", [0, 1]), ("all", [0, 1])]
    assert torch.equal(torch.tensor(figure.data[1].y), scores["all"][0])
    assert [(band.x0, band.x1) for band in figure.layout.shapes] == [(0.5, 1.5)]
    other: Any = relevance_curves(ranking, 1)
    assert len(other.data[0].x) == 1  # the only page that it has
    assert not other.layout.shapes
