"""Attention over pictures, tiles and frames, by the data of figures."""

import base64
import io
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from corelens import Box, Evidence, Video
from corelens.inputs.media import ORIENTATION
from corelens.viz import attention_over_media, attention_over_picture
from tests.helpers.figures import heatmaps, noise, panel_titles, token_map


def test_attention_lies_over_the_pixels_it_belongs_to():
    picture = Image.new("RGB", (60, 40), (200, 30, 60))
    attention = torch.rand(2, 3)
    figure = attention_over_picture(picture, attention, Box(0, 0, 60, 40), "t", [Box(1, 2, 3, 4)], 0.5)
    (heat,) = figure.data
    assert (list(heat.x), list(heat.y)) == ([0, 20, 40, 60], [0, 20, 40])
    assert np.allclose(heat.z, attention)
    assert figure.layout.coloraxis.cmax == 0.5
    (background,) = figure.layout.images
    assert (background.sizex, background.sizey) == (60, 40)
    decoded = Image.open(io.BytesIO(base64.b64decode(background.source.split(",")[1])))
    assert np.abs(np.asarray(decoded.convert("RGB")).astype(int) - np.asarray(picture)).max() < 10
    assert {(box.x0, box.y0, box.x1, box.y1) for box in figure.layout.shapes} == {(1, 2, 3, 4)}
    assert list(figure.layout.yaxis.range) == [40, 0]  # downwards, as in pictures


def test_a_picture_that_is_stored_turned_is_drawn_upright():
    turned = Image.new("RGB", (60, 40))
    turned.getexif()[ORIENTATION] = 6
    (background,) = attention_over_picture(turned, torch.ones(3, 2), Box(0, 0, 40, 60), "t").layout.images
    assert (background.sizex, background.sizey) == (40, 60)


def test_tiles_lie_on_one_panel_and_the_overview_on_another():
    views = [
        (0, 1, 2, Box(0, 0, 40, 40)), (0, 1, 2, Box(40, 0, 80, 40)), (0, 2, 2, Box(0, 0, 80, 40)),
        (1, 2, 1, Box(0, -5, 30, 35)),
    ]  # fmt: skip
    tokens = token_map(views, [(80, 40), (30, 30)], overview=2)
    row = torch.arange(12.0) / 66
    evidence = [Evidence(Box(1, 1, 9, 9)), Evidence(None, media=1)]
    figure = attention_over_media([noise(80, 40), noise(30, 30)], {"L0H0": row}, tokens, "t", evidence)
    first, second, overview, second_picture = heatmaps(figure)
    assert (list(first.x), list(second.x)) == ([0, 20, 40], [40, 60, 80])
    assert first.xaxis == second.xaxis != overview.xaxis
    assert np.allclose(overview.z, row[4:8].view(2, 2))
    assert list(second_picture.y) == [-5, 15, 35]  # padded by the processor
    shares = [row[:4].sum(), row[4:8].sum(), row[8:10].sum()]
    names = ["picture 0, tiles", "picture 0, overview", "picture 1"]
    assert panel_titles(figure) == [f"L0H0, {name}, {share:.1%}" for name, share in zip(names, shares, strict=True)]
    outlined = {(box.xref, box.x1) for box in figure.layout.shapes}
    assert outlined == {("x", 9), ("x2", 9), ("x3", 30)}


def test_two_heads_are_side_by_side_on_one_scale():
    tokens = token_map([(0, 2, 2, Box(0, 0, 8, 8))], [(8, 8)])
    rows = {"L0H0": torch.tensor([0.1, 0.2, 0.3, 0.4, 0, 0]), "L1H1": torch.tensor([0.0, 0, 0, 0.1, 0.9, 0])}
    figure = attention_over_media([noise(8, 8)], rows, tokens, "t")
    assert [heat.coloraxis for heat in heatmaps(figure)] == ["coloraxis"] * 2
    assert figure.layout.coloraxis.cmax == pytest.approx(0.4)  # of visual tokens, not of text
    assert panel_titles(figure) == ["L0H0, 100.0%", "L1H1, 10.0%"]
    assert len(figure.layout.images) == 2


def test_frames_of_a_video_are_those_that_the_views_begin_with():
    frames = np.stack([np.full((8, 8, 3), 40 * number, np.uint8) for number in range(6)])
    views = [(0, 1, 2, Box(0, 0, 8, 8)), (0, 1, 2, Box(0, 0, 8, 8))]
    tokens = token_map(views, [(8, 8)], seconds=[(0.0, 1.5), (1.5, 3.0)])
    evidence = [Evidence(Box(0, 0, 2, 2), seconds=(2, 3))]
    figure = attention_over_media([Video(frames, 2.0)], {"a": torch.full((6,), 0.1)}, tokens, "t", evidence)
    assert panel_titles(figure) == ["a, 0.0 to 1.5 s, 20.0%", "a, 1.5 to 3.0 s, 20.0%"]
    frames_shown = [
        Image.open(io.BytesIO(base64.b64decode(image.source.split(",")[1]))) for image in figure.layout.images
    ]
    assert [round(np.asarray(frame).mean() / 40) for frame in frames_shown] == [0, 3]
    assert {box.xref for box in figure.layout.shapes} == {"x2"}


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: attention_over_picture(noise(8, 8), torch.full((2, 2), math.nan), Box(0, 0, 8, 8), "t"), "NaN"),
        (lambda: attention_over_picture(noise(8, 8), torch.ones(2, 2), Box(0, 0, 0, 8), "t"), "is empty"),
    ],
)
def test_errors_name_what_cannot_be_drawn(draw: Callable[[], object], message: str):
    with pytest.raises(ValueError, match=message):
        draw()


def test_attention_that_does_not_fit_the_prompt_is_an_error():
    tokens = token_map([(0, 2, 2, Box(0, 0, 8, 8))], [(8, 8)])
    picture, row = noise(8, 8), torch.ones(6)
    cases: list[tuple[Any, ...]] = [
        ([picture], {"a": torch.ones(5)}, tokens, r"shape \[5\], and the prompt has 6"),
        ([picture], {"a": -row}, tokens, "a holds negative"),
        ([picture, picture], {"a": row}, tokens, "2 pictures and videos were given for a prompt with 1"),
        ([noise(9, 8)], {"a": row}, tokens, "9 x 8 pixels, and in the prompt 8 x 8"),
        ([Video(np.zeros((2, 8, 8, 3), np.uint8), 1.0)], {"a": row}, tokens, "media 0 is no video"),
        ([picture], {}, tokens, "nothing to show"),
        ([picture], {"a": row}, replace(tokens, no_boxes="boxes are unknown."), "boxes are unknown"),
    ]
    for media, attention, token_map_of_case, message in cases:
        with pytest.raises(ValueError, match=message):
            attention_over_media(media, attention, token_map_of_case, "t")
