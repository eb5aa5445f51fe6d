"""Figures, by their data."""

import base64
import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image


@pytest.fixture
def scores() -> Any:
    from corelens import HeadScores

    return HeadScores(torch.arange(12.0).reshape(1, 3, 4) / 12, "mass", ("a",))


def test_the_head_map_outlines_the_marked_heads(scores: Any):
    from corelens.viz import head_map

    figure = head_map(scores, scores.top(0.15)).to_dict()
    assert np.allclose(figure["data"][0]["z"], scores.per_head)
    centres = {((s["x0"] + s["x1"]) / 2, (s["y0"] + s["y1"]) / 2) for s in figure["layout"]["shapes"]}
    assert centres == {(3.0, 2.0), (2.0, 2.0)}


def test_attention_lies_over_the_pixels_it_belongs_to():
    from corelens import Box
    from corelens.viz import attention_over_picture

    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8))
    attention = torch.rand(2, 3)
    figure = attention_over_picture(picture, attention, Box(0, 0, 60, 40), "t", [Box(1, 2, 3, 4)], 0.5).to_dict()
    heat = figure["data"][0]
    assert (heat["x0"], heat["dx"], heat["y0"], heat["dy"]) == (10, 20, 10, 20)
    assert np.allclose(heat["z"], attention)
    assert heat["zmax"] == 0.5
    shown = figure["layout"]["images"][0]
    assert (shown["sizex"], shown["sizey"]) == (60, 40)
    png = base64.b64decode(shown["source"].split(",")[1])
    assert Image.open(io.BytesIO(png)).tobytes() == picture.tobytes()
    (box,) = figure["layout"]["shapes"]
    assert (box["x0"], box["y0"], box["x1"], box["y1"]) == (1, 2, 3, 4)
    assert figure["layout"]["yaxis"]["range"] == [40, 0]  # downwards, as in pictures


def test_the_curve_is_sorted_and_colours_the_chosen(scores: Any):
    from corelens.viz import score_curve

    bars = score_curve(scores, scores.top(0.25)).to_dict()["data"][0]
    assert list(bars["y"]) == sorted(bars["y"], reverse=True)
    assert list(bars["customdata"])[:3] == ["L2H3", "L2H2", "L2H1"]
    assert len(set(bars["marker"]["color"][:3])) == 1
    assert bars["marker"]["color"][2] != bars["marker"]["color"][3]


def test_bars_are_means_and_dots_are_seeds():
    from corelens.viz import accuracy_bars

    of_copy = {"nothing": [0.9], "random": [0.9, 0.9]}
    figure = accuracy_bars({"scenes": {"nothing": [1.0], "random": [0.5, 0.7]}, "copy": of_copy}).to_dict()
    bars, dots, *_ = figure["data"]
    assert np.allclose(bars["y"], [1.0, 0.6])
    assert list(zip(dots["x"], dots["y"], strict=True)) == [("random", 0.5), ("random", 0.7)]
    assert bars["offsetgroup"] == dots["offsetgroup"] == "scenes"


def test_text_in_a_page_is_escaped():
    from corelens.viz.report import Page

    page = Page("<b>", "a & b")
    page.table(["<i>"], [["<u>"]], strong=0)
    assert "&lt;b&gt;" in page.html()
    assert "<td>&lt;u&gt;</td>" in page.html()
