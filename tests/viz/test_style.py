"""Style and size of figures."""

import pytest
import torch

from corelens import Box, HeadScores
from corelens.viz import (
    DARK,
    LIGHT,
    attention_over_media,
    head_map,
    lorenz_curves,
    patching_map,
    score_curve,
)
from tests.helpers.figures import noise, token_map


@pytest.fixture
def scores() -> HeadScores:
    return HeadScores(torch.arange(12.0).reshape(1, 3, 4) / 12, "mass", ("a",))


def test_large_figures_stay_below_a_megabyte():
    large = HeadScores(torch.randn(4, 32, 32), "mass", ("a", "b", "c", "d"))
    pages = [(page, 32, 32, Box(0, 0, 900, 1200)) for page in range(4)]
    tokens = token_map(pages, [(900, 1200)] * 4)
    rows = {name: torch.rand(4098) for name in ("L0H0", "L0H1")}
    figures = [
        head_map(large, large.top(0.5)),
        score_curve(large, large.top(0.5)),
        lorenz_curves({"a": large, "b": large}),
        patching_map(torch.randn(32, 4096), [f"token {number}" for number in range(4096)], "nats"),
        attention_over_media([noise(900, 1200)] * 4, rows, tokens, "t"),
    ]
    assert max(len(figure.to_json()) for figure in figures) < 1_000_000


def test_a_figure_takes_either_template(scores: HeadScores):
    figure = head_map(scores, scores.top(1))
    assert figure.layout.template == LIGHT
    assert figure.data[0].colorscale is None  # so that the template's is used
    figure.update_layout(template=DARK)
    assert figure.layout.template.layout.paper_bgcolor == DARK.layout.paper_bgcolor != LIGHT.layout.paper_bgcolor
