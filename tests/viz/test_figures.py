"""Figures, by their data."""

import base64
import io
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import corelens
from corelens import Box, Evidence, HeadScores, HeadSet, Video, agreement, viz
from corelens.experiments.ablation import AblationCurve
from corelens.reports.page import Page
from corelens.tokens import Role, TokenMap, grid_boxes
from corelens.viz import (
    DARK,
    LIGHT,
    ablation_curves,
    accuracy_bars,
    attention_over_media,
    attention_over_picture,
    depth_length_grid,
    depth_profiles,
    group_distributions,
    head_map,
    heads_by_two,
    lorenz_curves,
    overlap_matrix,
    patching_map,
    score_curve,
    speed_against_accuracy,
)


@pytest.fixture
def scores() -> Any:
    return HeadScores(torch.arange(12.0).reshape(1, 3, 4) / 12, "mass", ("a",))


def made(values: torch.Tensor, name: str = "mass") -> Any:
    return HeadScores(values[None].float(), name, ("a",))


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


def token_map(
    views: list[tuple[int, int, int, Any]],
    sizes: list[tuple[int, int]],
    seconds: list[tuple[float, float]] | None = None,
    overview: int = -1,
) -> Any:
    """A map of one sample: a question of two positions behind views, each (media, rows, columns, region)."""
    columns: dict[str, list[Any]] = {name: [] for name in ("role", "media", "view", "overview", "row", "column")}
    boxes, times = [], []
    for number, (media, n_rows, n_columns, region) in enumerate(views):
        view = sum(one[0] == media for one in views[:number])
        n = n_rows * n_columns
        columns["role"] += [Role.IMAGE if seconds is None else Role.VIDEO] * n
        columns["media"] += [media] * n
        columns["view"] += [view] * n
        columns["overview"] += [number == overview] * n
        columns["row"] += [index // n_columns for index in range(n)]
        columns["column"] += [index % n_columns for index in range(n)]
        boxes.append(grid_boxes(region, n_rows, n_columns))
        times += [(math.nan, math.nan) if seconds is None else seconds[number]] * n
    for name, value in (("role", Role.QUESTION), ("media", -1), ("view", -1), ("row", -1), ("column", -1)):
        columns[name] += [value] * 2
    columns["overview"] += [False] * 2
    return TokenMap(
        **{name: torch.tensor(values)[None] for name, values in columns.items()},
        box=torch.cat([*boxes, torch.full((2, 4), math.nan)])[None],
        seconds=torch.tensor([*times, (math.nan, math.nan), (math.nan, math.nan)])[None],
        sizes=(tuple(sizes),),
    )


def heats(figure: Any) -> list[Any]:
    return [trace for trace in figure.data if trace.type == "heatmap"]


def titles(figure: Any) -> list[str]:
    return [annotation.text for annotation in figure.layout.annotations]


# --- maps ---


def test_the_head_map_outlines_the_marked_heads_and_says_ranks(scores: Any):
    figure = head_map(scores, scores.top(0.15))
    (heat,) = figure.data
    assert np.allclose(heat.z, scores.per_head)
    assert heat.zmin == 0
    assert heat.text[2][3] == "rank 1"
    assert heat.text[0][0] == "rank 12"
    centres = {((s.x0 + s.x1) / 2, (s.y0 + s.y1) / 2) for s in figure.layout.shapes}
    assert centres == {(3.0, 2.0), (2.0, 2.0)}


def test_heads_that_do_not_exist_are_crossed_out_and_no_sign_is_lost():
    heat, crosses = head_map(made(torch.tensor([[-4.0, 1.0], [math.nan, 2.0]])), HeadSet(())).data
    assert (heat.zmin, heat.zmax) == (-4, 4)
    assert np.isnan(heat.z[1, 0])
    assert (list(crosses.x), list(crosses.y)) == ([0], [1])


def test_the_overlap_matrix_holds_the_agreement_of_each_pair():
    torch.manual_seed(0)
    scores = {name: made(torch.rand(3, 8)) for name in "abc"}
    for measure in ("jaccard", "spearman", "rank_biased_overlap"):
        (heat,) = overlap_matrix(scores, measure, 0.25).data
        assert list(heat.x) == list(heat.y) == ["a", "b", "c"]
        for i, one in enumerate(scores.values()):
            for j, other in enumerate(scores.values()):
                assert heat.z[i, j] == pytest.approx(getattr(agreement(one, other, 0.25), measure), abs=1e-6)


def test_the_grid_of_depths_and_lengths_says_which_is_which():
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


# --- curves ---


def test_the_curve_is_sorted_and_colours_the_chosen(scores: Any):
    (bars,) = score_curve(scores, scores.top(0.25)).data
    assert list(bars.y) == sorted(bars.y, reverse=True)
    assert list(bars.customdata)[:3] == ["L2H3", "L2H2", "L2H1"]
    assert len(set(bars.marker.color[:3])) == 1
    assert bars.marker.color[2] != bars.marker.color[3]


def test_lorenz_curves_reach_half_at_their_dots():
    one_head, alike = torch.eye(10)[:1], torch.ones(1, 10)
    first, first_dot, second, second_dot = lorenz_curves({"one": made(one_head), "alike": made(alike)}).data
    assert first.y[1] == 1
    assert (first_dot.x[0], first_dot.y[0]) == (0.1, 1.0)
    assert np.allclose(second.y, second.x)
    assert (second_dot.x[0], second_dot.y[0]) == pytest.approx((0.5, 0.5))


def test_depth_profiles_of_models_of_different_depth_share_one_axis():
    at_the_end = torch.zeros(4, 2)
    at_the_end[3] = 1
    line, centre, even, middle = depth_profiles({"small": made(at_the_end), "large": made(torch.ones(9, 2))}).data
    assert list(line.y) == [0, 0, 0, 4]  # all of the score in a quarter of the layers
    assert centre.x[0] == 1
    assert np.allclose(even.y, 1)
    assert (even.x[0], even.x[-1]) == (0, 1)
    assert middle.x[0] == pytest.approx(0.5)


def test_heads_by_two_measures_stand_at_both_scores():
    across = made(torch.tensor([[1.0, 2.0, 3.0], [4.0, math.nan, 6.0]]), "entropy")
    up = made(torch.tensor([[0.1, 0.2, math.nan], [0.4, 0.5, 0.6]]), "share")
    others, chosen = heads_by_two(across, up, HeadSet.parse("L1H0, L0H1, L0H2")).data
    at = {
        head: (float(x), float(y))
        for dots in (others, chosen)
        for head, x, y in zip(dots.customdata, dots.x, dots.y, strict=True)
    }
    # L0H2 and L1H1 have one of the two scores.
    assert at == {head: pytest.approx(xy) for head, xy in
                  {"L0H0": (1, 0.1), "L0H1": (2, 0.2), "L1H0": (4, 0.4), "L1H2": (6, 0.6)}.items()}  # fmt: skip
    assert list(chosen.customdata) == ["L1H0", "L0H1"]
    assert others.marker.color != chosen.marker.color
    figure = heads_by_two(across, up, HeadSet(()))
    assert (figure.layout.xaxis.title.text, figure.layout.yaxis.title.text) == ("entropy", "share")
    with pytest.raises(ValueError, match=r"entropy is of \(2, 3\) layers and heads and share of \(1, 3\)"):
        heads_by_two(across, made(torch.ones(1, 3), "share"), HeadSet(()))


def test_two_groups_hold_every_head_with_a_finite_score_once():
    entropy = made(torch.tensor([[1.0, 2.0, 3.0], [4.0, math.nan, math.inf]]), "entropy")
    share = made(torch.tensor([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]]), "share")
    figure = group_distributions({"entropy": entropy, "visual_share": share}, HeadSet.parse("L1H0, L0H1"))
    found = [(box.name, sorted(box.y.tolist())) for box in figure.data]
    assert found == [
        ("others", [1, 3]), ("chosen", [2, 4]),
        ("others", pytest.approx([0.1, 0.3, 0.5, 0.6])), ("chosen", pytest.approx([0.2, 0.4])),
    ]  # fmt: skip
    assert [title.text for title in figure.layout.annotations[:2]] == ["entropy", "visual share"]
    with pytest.raises(ValueError, match="there are no scores"):
        group_distributions({}, HeadSet(()))


# --- effects ---


def doses() -> Any:
    some = HeadSet.parse("L0H0, L0H1")
    return AblationCurve(
        (0.1, 0.2),
        {"top": [[some], [some]], "random": [[some, some], []]},
        {"top": [[0.5], [0.25]], "random": [[0.8, 1.0], []]},
    )


def test_dose_curves_show_means_seeds_and_intervals():
    top, band, random = ablation_curves(doses()).data
    assert (list(top.x), list(top.y)) == ([0.1, 0.2], [0.5, 0.25])
    assert list(top.customdata) == [2, 2]
    assert (list(random.x), list(random.y)) == ([0.1], [0.9])  # no other heads for the larger dose
    assert list(band.y) == [0.8, 1.0]
    interval, *_ = ablation_curves(doses(), n_samples=100).data
    assert list(interval.x) == [0.1, 0.2, 0.2, 0.1]
    # Wilson: (p + z² / 2n ± z sqrt(p (1 - p) / n + z² / 4n²)) / (1 + z² / n)
    p, n, z = 0.5, 100, 1.959964
    half = z * math.sqrt(p * (1 - p) / n + z**2 / 4 / n**2)
    low, high = ((p + z**2 / 2 / n + sign * half) / (1 + z**2 / n) for sign in (-1, 1))
    assert (interval.y[0], interval.y[3]) == pytest.approx((low, high), abs=1e-5)


def test_bars_are_means_and_dots_are_seeds():
    of_copy = {"nothing": [0.9], "random": [0.9, 0.9]}
    bars, dots, *_ = accuracy_bars({"scenes": {"nothing": [1.0], "random": [0.5, 0.7]}, "copy": of_copy}).data
    assert np.allclose(bars.y, [1.0, 0.6])
    assert list(zip(dots.x, dots.y, strict=True)) == [("random", 0.5), ("random", 0.7)]
    assert bars.offsetgroup == dots.offsetgroup == "scenes"


def test_speed_and_accuracy_stand_where_they_were_measured():
    line, plain = speed_against_accuracy({"sparse": {"half": (1.5, 0.9), "tenth": (2, 0.8)}}, 1).data
    assert (list(line.x), list(line.y), list(line.text)) == ([1.5, 2], [0.9, 0.8], ["half", "tenth"])
    assert (plain.x[0], plain.y[0]) == (1, 1)


def test_a_setting_close_to_another_is_named_when_pointed_at():
    crowded = {"one": {"half": (3, 0.9), "tenth": (2, 0.9)}, "other": {"half": (2.95, 0.85), "tenth": (2, 0.5)}}
    one, other, _ = speed_against_accuracy(crowded, 1).data
    assert (list(one.text), list(other.text)) == (["half", "tenth"], ["", "tenth"])
    assert list(other.customdata) == ["half", "tenth"]


# --- pictures ---


def test_attention_lies_over_the_pixels_it_belongs_to():
    picture = Image.new("RGB", (60, 40), (200, 30, 60))
    attention = torch.rand(2, 3)
    figure = attention_over_picture(picture, attention, Box(0, 0, 60, 40), "t", [Box(1, 2, 3, 4)], 0.5)
    (heat,) = figure.data
    assert (list(heat.x), list(heat.y)) == ([0, 20, 40, 60], [0, 20, 40])
    assert np.allclose(heat.z, attention)
    assert figure.layout.coloraxis.cmax == 0.5
    (shown,) = figure.layout.images
    assert (shown.sizex, shown.sizey) == (60, 40)
    decoded = Image.open(io.BytesIO(base64.b64decode(shown.source.split(",")[1])))
    assert np.abs(np.asarray(decoded.convert("RGB")).astype(int) - np.asarray(picture)).max() < 10
    assert {(box.x0, box.y0, box.x1, box.y1) for box in figure.layout.shapes} == {(1, 2, 3, 4)}
    assert list(figure.layout.yaxis.range) == [40, 0]  # downwards, as in pictures


def test_tiles_lie_on_one_panel_and_the_overview_on_another():
    views = [
        (0, 1, 2, Box(0, 0, 40, 40)), (0, 1, 2, Box(40, 0, 80, 40)), (0, 2, 2, Box(0, 0, 80, 40)),
        (1, 2, 1, Box(0, -5, 30, 35)),
    ]  # fmt: skip
    tokens = token_map(views, [(80, 40), (30, 30)], overview=2)
    row = torch.arange(12.0) / 66
    evidence = [Evidence(Box(1, 1, 9, 9)), Evidence(None, media=1)]
    figure = attention_over_media([noise(80, 40), noise(30, 30)], {"L0H0": row}, tokens, "t", evidence)
    first, second, overview, other = heats(figure)
    assert (list(first.x), list(second.x)) == ([0, 20, 40], [40, 60, 80])
    assert first.xaxis == second.xaxis != overview.xaxis
    assert np.allclose(overview.z, row[4:8].view(2, 2))
    assert list(other.y) == [-5, 15, 35]  # padded by the processor
    shares = [row[:4].sum(), row[4:8].sum(), row[8:10].sum()]
    names = ["picture 0, tiles", "picture 0, overview", "picture 1"]
    assert titles(figure) == [f"L0H0, {name}, {share:.1%}" for name, share in zip(names, shares, strict=True)]
    outlined = {(box.xref, box.x1) for box in figure.layout.shapes}
    assert outlined == {("x", 9), ("x2", 9), ("x3", 30)}


def test_two_heads_stand_side_by_side_on_one_scale():
    tokens = token_map([(0, 2, 2, Box(0, 0, 8, 8))], [(8, 8)])
    rows = {"L0H0": torch.tensor([0.1, 0.2, 0.3, 0.4, 0, 0]), "L1H1": torch.tensor([0.0, 0, 0, 0.1, 0.9, 0])}
    figure = attention_over_media([noise(8, 8)], rows, tokens, "t")
    assert [heat.coloraxis for heat in heats(figure)] == ["coloraxis"] * 2
    assert figure.layout.coloraxis.cmax == pytest.approx(0.4)  # of visual tokens, not of text
    assert titles(figure) == ["L0H0, 100.0%", "L1H1, 10.0%"]
    assert len(figure.layout.images) == 2


def test_frames_of_a_video_are_those_that_the_views_begin_with():
    frames = np.stack([np.full((8, 8, 3), 40 * number, np.uint8) for number in range(6)])
    views = [(0, 1, 2, Box(0, 0, 8, 8)), (0, 1, 2, Box(0, 0, 8, 8))]
    tokens = token_map(views, [(8, 8)], seconds=[(0.0, 1.5), (1.5, 3.0)])
    evidence = [Evidence(Box(0, 0, 2, 2), seconds=(2, 3))]
    figure = attention_over_media([Video(frames, 2.0)], {"a": torch.full((6,), 0.1)}, tokens, "t", evidence)
    assert titles(figure) == ["a, 0.0 to 1.5 s, 20.0%", "a, 1.5 to 3.0 s, 20.0%"]
    shown = [Image.open(io.BytesIO(base64.b64decode(one.source.split(",")[1]))) for one in figure.layout.images]
    assert [round(np.asarray(one).mean() / 40) for one in shown] == [0, 3]
    assert {box.xref for box in figure.layout.shapes} == {"x2"}


# --- all of them ---


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


def test_every_figure_wears_either_template(scores: Any):
    figure = head_map(scores, scores.top(1))
    assert figure.layout.template == LIGHT
    assert figure.data[0].colorscale is None  # so that the template's is used
    figure.update_layout(template=DARK)
    assert figure.layout.template.layout.paper_bgcolor == DARK.layout.paper_bgcolor != LIGHT.layout.paper_bgcolor


NAN = math.nan
BAD: list[tuple[str, Any, str]] = [
    ("head_map", lambda viz, c: viz.head_map(made(torch.full((2, 2), NAN)), c.HeadSet(())), "nothing to show"),
    ("head_map", lambda viz, c: viz.head_map(made(torch.tensor([[1, math.inf]])), c.HeadSet(())), r"\[0, 1\] is infin"),
    ("head_map", lambda viz, c: viz.head_map(made(torch.tensor([[1, NAN]])), c.HeadSet.parse("L0H1")), "L0H1 cannot"),
    ("score_curve", lambda viz, c: viz.score_curve(made(torch.ones(1, 2)), c.HeadSet.parse("L3H1")), "L3H1 cannot"),
    ("lorenz_curves", lambda viz, c: viz.lorenz_curves({}), "no scores"),
    ("lorenz_curves", lambda viz, c: viz.lorenz_curves({"a": made(-torch.ones(1, 2))}), "no head has a positive"),
    ("depth_profiles", lambda viz, c: viz.depth_profiles({}), "no scores"),
    ("overlap_matrix", lambda viz, c: viz.overlap_matrix({"a": made(torch.rand(1, 4))}), "two or more"),
    (
        "overlap_matrix",
        lambda viz, c: viz.overlap_matrix({"a": made(torch.rand(1, 4)), "b": made(torch.rand(2, 4))}, n=1),
        "same heads",
    ),
    ("depth_length_grid", lambda viz, c: viz.depth_length_grid(torch.ones(2, 2), (0, 1), (5,)), "1 lengths were named"),
    ("depth_length_grid", lambda viz, c: viz.depth_length_grid(torch.full((1, 1), 70.0), (0,), (5,)), r"in \[0, 1\]"),
    ("patching_map", lambda viz, c: viz.patching_map(torch.ones(2, 2), ["the", "the"], "nats"), "'the' is there twice"),
    ("ablation_curves", lambda viz, c: viz.ablation_curves(doses(), n_samples=0), "n_samples=0"),
    ("accuracy_bars", lambda viz, c: viz.accuracy_bars({"a": {"b": [97.0]}}), "a, b: 97"),
    ("accuracy_bars", lambda viz, c: viz.accuracy_bars({"a": {"b": [NAN]}}), "a, b: nan"),
    ("accuracy_bars", lambda viz, c: viz.accuracy_bars({"a": {"b": []}}), "a, b: there is no accuracy"),
    ("speed_against_accuracy", lambda viz, c: viz.speed_against_accuracy({"a": {"b": (0, 1)}}, 1), "speed-up of 0"),
    (
        "attention_over_picture",
        lambda viz, c: viz.attention_over_picture(noise(8, 8), torch.full((2, 2), NAN), c.Box(0, 0, 8, 8), "t"),
        "NaN",
    ),
    (
        "attention_over_picture",
        lambda viz, c: viz.attention_over_picture(noise(8, 8), torch.ones(2, 2), c.Box(0, 0, 0, 8), "t"),
        "is empty",
    ),
]


@pytest.mark.parametrize(("name", "call", "said"), BAD, ids=[f"{name}-{said}" for name, _, said in BAD])
def test_what_cannot_be_shown_is_said(name: str, call: Any, said: str):
    with pytest.raises(ValueError, match=said):
        call(viz, corelens)


def test_attention_that_does_not_fit_the_prompt_is_refused():
    tokens = token_map([(0, 2, 2, Box(0, 0, 8, 8))], [(8, 8)])
    picture, row = noise(8, 8), torch.ones(6)
    wrong: list[tuple[Any, ...]] = [
        ([picture], {"a": torch.ones(5)}, tokens, r"shape \[5\], and the prompt has 6"),
        ([picture], {"a": -row}, tokens, "a holds negative"),
        ([picture, picture], {"a": row}, tokens, "2 pictures and videos were given for a prompt with 1"),
        ([noise(9, 8)], {"a": row}, tokens, "9 x 8 pixels, and in the prompt 8 x 8"),
        ([Video(np.zeros((2, 8, 8, 3), np.uint8), 1.0)], {"a": row}, tokens, "media 0 is no video"),
        ([picture], {}, tokens, "nothing to show"),
        ([picture], {"a": row}, replace(tokens, no_boxes="nobody knows them."), "nobody knows them"),
    ]
    for media, attention, own, said in wrong:
        with pytest.raises(ValueError, match=said):
            attention_over_media(media, attention, own, "t")


def test_text_in_a_page_is_escaped():
    page = Page("<b>", "a & b")
    page.table(["<i>"], [["<u>"]], strong=0)
    assert "&lt;b&gt;" in page.html()
    assert "<td>&lt;u&gt;</td>" in page.html()
