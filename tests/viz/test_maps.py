"""Heat maps, by their data."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from corelens import HeadScores, HeadSet, agreement
from corelens.metrics import stable_heads
from corelens.viz import (
    binned_head_maps,
    cross_ablation_map,
    depth_length_grid,
    head_map,
    overlap_matrix,
    patching_map,
    stable_head_map,
)
from corelens.viz.maps import AgreementMetric
from tests.helpers.figures import head_scores, panel_titles


@pytest.fixture
def scores() -> HeadScores:
    return HeadScores(torch.arange(12.0).reshape(1, 3, 4) / 12, "mass", ("a",))


def test_the_head_map_outlines_the_marked_heads_and_shows_ranks(scores: HeadScores):
    figure = head_map(scores, scores.top(0.15))
    (heat,) = figure.data
    assert np.allclose(heat.z, scores.per_head)
    assert heat.zmin == 0
    assert heat.text[2][3] == "rank 1"
    assert heat.text[0][0] == "rank 12"
    centres = {((s.x0 + s.x1) / 2, (s.y0 + s.y1) / 2) for s in figure.layout.shapes}
    assert centres == {(3.0, 2.0), (2.0, 2.0)}


def test_heads_that_do_not_exist_are_crossed_out_and_no_sign_is_lost():
    heat, crosses = head_map(head_scores(torch.tensor([[-4.0, 1.0], [math.nan, 2.0]])), HeadSet(())).data
    assert (heat.zmin, heat.zmax) == (-4, 4)
    assert np.isnan(heat.z[1, 0])
    assert (list(crosses.x), list(crosses.y)) == ([0], [1])


def test_binned_maps_are_shares_of_the_highest_of_their_panel(scores: HeadScores):
    other = head_scores(torch.tensor([[-1.0, 4.0], [math.nan, 2.0]]))
    figure = binned_head_maps({"one": scores, "other": other})
    one, two = figure.data
    assert np.allclose(one.z, scores.per_head / scores.per_head.max())
    assert np.array_equal(two.z, np.array([[0, 1], [math.nan, 0.5]], np.float32), equal_nan=True)
    assert two.customdata[0, 0] == -1
    assert panel_titles(figure)[:2] == ["one", "other"]
    bins = figure.layout.coloraxis
    assert list(bins.colorbar.ticktext) == ["0 to 0.2", "0.2 to 0.4", "0.4 to 0.6", "0.6 to 1"]
    edges = [edge for edge, _ in bins.colorscale]
    assert edges == [0, 0.2, 0.2, 0.4, 0.4, 0.6, 0.6, 1]
    assert len({colour for _, colour in bins.colorscale}) == 4
    assert (bins.cmin, bins.cmax) == (0, 1)


def test_the_map_of_stable_heads_has_a_colour_for_every_count():
    values = torch.rand(3, 3, 7, generator=torch.Generator().manual_seed(0))
    values[:, 0, 0] = math.nan
    stable = stable_heads(values)
    figure = stable_head_map(stable)
    (heat,) = figure.data
    assert np.array_equal(heat.z, stable.matrix.numpy(), equal_nan=True)
    assert list(heat.colorbar.tickvals) == [0, 1, 2, 3]
    colours = [colour for _, colour in heat.colorscale]
    assert len(set(colours)) == 4
    # Every count lies in the middle of its colour.
    edges = [edge for edge, _ in heat.colorscale]
    for count in range(4):
        place = (count - heat.zmin) / (heat.zmax - heat.zmin)
        assert place == pytest.approx((edges[2 * count] + edges[2 * count + 1]) / 2)
    assert f"Heads in the top of all 3: {stable.n_heads[3]};" in figure.layout.title.subtitle.text


def test_the_overlap_matrix_holds_the_agreement_of_each_pair():
    torch.manual_seed(0)
    scores = {name: head_scores(torch.rand(3, 8)) for name in "abc"}
    metrics: list[AgreementMetric] = ["jaccard", "spearman", "rank_biased_overlap"]
    for metric in metrics:
        (heat,) = overlap_matrix(scores, metric, 0.25).data
        assert list(heat.x) == list(heat.y) == ["a", "b", "c"]
        for i, row in enumerate(scores.values()):
            for j, column in enumerate(scores.values()):
                assert heat.z[i, j] == pytest.approx(getattr(agreement(row, column, 0.25), metric), abs=1e-6)


def test_the_grid_of_depths_and_lengths_names_its_axes():
    accuracy = np.array([[1, 0.5, math.nan], [0.25, 0, 1]])
    figure = depth_length_grid(accuracy, (0, 0.5), (5, 9, 1_700))
    (heat,) = figure.data
    assert np.array_equal(heat.z, accuracy.astype(np.float32), equal_nan=True)
    assert (list(heat.y), list(heat.x)) == (["0%", "50%"], ["5", "9", "1,700"])
    assert figure.layout.yaxis.autorange == "reversed"  # the beginning is above
    assert "(pictures)" in figure.layout.xaxis.title.text


def test_the_patching_map_keeps_signs_and_places():
    (heat,) = patching_map(torch.tensor([[0.5, -2.0], [1.0, 0.0]]), ["evidence", "last"], "logits").data
    assert heat.z.tolist() == [[0.5, -2.0], [1.0, 0.0]]
    assert list(heat.x) == ["evidence", "last"]
    assert (heat.zmin, heat.zmax) == (-2, 2)


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: head_map(head_scores(torch.full((2, 2), math.nan)), HeadSet(())), "nothing to show"),
        (lambda: head_map(head_scores(torch.tensor([[1, math.inf]])), HeadSet(())), r"\[0, 1\] is infin"),
        (lambda: head_map(head_scores(torch.tensor([[1, math.nan]])), HeadSet.parse("L0H1")), "L0H1 cannot"),
        (lambda: overlap_matrix({"a": head_scores(torch.rand(1, 4))}), "two or more"),
        (lambda: binned_head_maps({}), "no scores"),
        (lambda: binned_head_maps({"a": head_scores(-torch.ones(1, 2))}), "a: no head has a positive score"),
        (
            lambda: overlap_matrix({"a": head_scores(torch.rand(1, 4)), "b": head_scores(torch.rand(2, 4))}, n=1),
            "same heads",
        ),
        (lambda: depth_length_grid(torch.ones(2, 2), (0, 1), (5,)), "1 lengths were named"),
        (lambda: depth_length_grid(torch.full((1, 1), 70.0), (0,), (5,)), r"in \[0, 1\]"),
        (lambda: patching_map(torch.ones(2, 2), ["the", "the"], "nats"), "'the' is there twice"),
    ],
)
def test_errors_name_what_cannot_be_drawn(draw: Callable[[], object], message: str):
    with pytest.raises(ValueError, match=message):
        draw()


def test_costs_by_task_are_points_and_centred_on_zero():
    figure = cross_ablation_map({"x": {"x": 0.5, "y": -0.1}, "y": {"x": 0.0, "y": 0.2}}, "by ram")
    (heat,) = figure.data
    assert heat.z.tolist() == [[50, -10], [0, 20]]
    assert (heat.zmin, heat.zmax) == (-50, 50)
    assert "by ram" in figure.layout.title.text
