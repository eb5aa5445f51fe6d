"""Style and size of figures."""

import html
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
import torch
from markupsafe import escape

from corelens import Box, HeadScores, HeadSet
from corelens.experiments.key_token_results import HitRate
from corelens.reports.page import Page
from corelens.viz import (
    DARK,
    LIGHT,
    accuracy_bars,
    attention_over_media,
    binned_head_maps,
    depth_profiles,
    head_map,
    hit_rate_bars,
    lorenz_curves,
    overlap_matrix,
    patching_map,
    score_curve,
    speed_against_accuracy,
    speed_by_length,
    style,
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


LABEL = "<image> & <b>bold</b>"
"""A name that is no HTML."""


def labelled() -> dict[str, go.Figure]:
    """Figures, each with the label in all places where it takes a name of the user's."""
    one = HeadScores(torch.arange(12.0).reshape(1, 3, 4) / 12, LABEL, ("a",))
    chosen, named = HeadSet(tuple(one.top(2)), LABEL), {LABEL: one, "other": one}
    page, row = token_map([(0, 2, 2, Box(0, 0, 8, 8))], [(8, 8)]), torch.full((6,), 0.1)
    return {
        "head_map": head_map(one, chosen),
        "binned_head_maps": binned_head_maps(named),
        "overlap_matrix": overlap_matrix(named),
        "score_curve": score_curve(one, chosen),
        "lorenz_curves": lorenz_curves(named),
        "depth_profiles": depth_profiles(named),
        "patching_map": patching_map(torch.rand(2, 3), [LABEL, "b", "c"], LABEL),
        "accuracy_bars": accuracy_bars({LABEL: {LABEL: [0.5, 0.6]}}, LABEL),
        "speed_against_accuracy": speed_against_accuracy({LABEL: {LABEL: (2, 0.5)}}, 1, LABEL),
        "speed_by_length": speed_by_length({LABEL: {8: 2.0}}),
        "hit_rate_bars": hit_rate_bars({LABEL: HitRate(0.5, 0.5)}),
        "attention_over_media": attention_over_media([noise(8, 8)], {LABEL: row}, page, LABEL),
    }


def texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from texts([part for name, part in value.items() if name not in ("template", "images")])
    elif isinstance(value, list | tuple | np.ndarray):
        yield from (text for item in value for text in texts(item))


def test_labels_are_shown_letter_by_letter():
    for name, figure in labelled().items():
        tags = {tag for text in texts(figure.to_plotly_json()) for tag in re.findall("<[^>]*>?", text)}
        assert tags <= {"<br>", "<extra>", "</extra>"}, name
        shown = [html.unescape(text.replace("<br>", " ")) for text in texts(figure.to_plotly_json())]
        assert any(LABEL in text for text in shown), name


def test_a_page_shows_the_title_of_a_figure_letter_by_letter():
    page = Page("t", "l")
    page.figures(score_curve(HeadScores(torch.rand(1, 3, 4), LABEL, ("a",)), HeadSet(())))
    assert f"<h3>Every head by {escape(LABEL)}, best first</h3>" in page.html()


def test_a_talk_has_larger_text_lines_and_dots_until_a_page_is_asked_for(scores: HeadScores):
    def sizes() -> list[float]:
        layout, (line, dot, *_) = (figure := lorenz_curves({"a": scores})).layout, figure.data
        fonts = layout.template.layout
        title = layout.title.font.size or fonts.title.font.size
        return [layout.font.size or fonts.font.size, title, line.line.width, dot.marker.size]

    page = sizes()
    style("talk")
    try:
        talk = sizes()
    finally:
        style("page")
    assert talk == pytest.approx([1.6 * size for size in page])
    assert sizes() == page
