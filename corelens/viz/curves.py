"""Curves of head scores: by rank, concentration, depth, and pairs and groups of them."""

from collections.abc import Mapping

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from corelens.heads import Head, HeadSet
from corelens.metrics import depth_profile, lorenz_curve, rho
from corelens.scores import HeadScores
from corelens.viz.styles import ACCENT, BLUE, QUIET, apply_style, colours


def score_curve(scores: HeadScores, chosen: HeadSet) -> go.Figure:
    """Draw every head's score, best first.

    Marks: a bar is a head; those of `chosen` are vermilion, all others grey.

    Raises:
        ValueError: If a chosen head has no score.
    """
    ranked = scores.ranked()
    if missing := [str(head) for head in chosen if head not in ranked]:
        raise ValueError(f"{', '.join(missing)} cannot be coloured: they have no score.")
    figure = go.Figure(
        go.Bar(
            x=np.arange(1, len(ranked) + 1, dtype=np.int32),
            y=np.array([float(scores.per_head[head]) for head in ranked], np.float32),
            marker=dict(color=[ACCENT if head in chosen else QUIET for head in ranked], line_width=0),
            customdata=[str(head) for head in ranked],
            hovertemplate="%{customdata}, rank %{x}<br>%{y:.3f}<extra></extra>",
        )
    )
    figure.update_xaxes(title="rank of the head", showgrid=False)
    figure.update_yaxes(title=scores.metric, rangemode="tozero")
    return apply_style(figure, f"Every head by {scores.metric}, best first", f"Coloured: {chosen.name}.")


def lorenz_curves(scores: Mapping[str, HeadScores]) -> go.Figure:
    """Draw Lorenz curves: the share of a score that the best heads hold.

    Marks: a line is a score: the share that the best heads hold (up) by their share of all heads (right). Its dot is
    where half is reached, `corelens.metrics.rho`. On the dotted line all heads hold the same.

    Args:
        scores: By the name that the figure shows.

    Raises:
        ValueError: If there is none, or one has no positive score.
    """
    _require_scores(scores)
    figure = go.Figure()
    for (name, head_scores), colour in zip(scores.items(), colours(len(scores)), strict=True):
        shares = lorenz_curve(head_scores.per_head).cpu().numpy()
        figure.add_scatter(
            name=name,
            legendgroup=name,
            x=np.linspace(0, 1, len(shares), dtype=np.float32),
            y=shares,
            mode="lines",
            line=dict(color=colour, width=2),
            hovertemplate=f"{name}<br>%{{x:.1%}} of heads hold %{{y:.1%}}<extra></extra>",
        )
        half = rho(head_scores.per_head, 0.5)
        figure.add_scatter(
            legendgroup=name,
            x=[half],
            y=[float(shares[round(half * (len(shares) - 1))])],
            mode="markers",
            marker=dict(color=colour, size=9),
            showlegend=False,
            hovertemplate=f"{name}<br>half is held by {half:.1%} of heads<extra></extra>",
        )
    figure.add_shape(type="line", x0=0, y0=0, x1=1, y1=1, line=dict(color=QUIET, dash="dot"))
    figure.update_xaxes(title="share of heads, best first", range=[0, 1], tickformat=".0%")
    figure.update_yaxes(title="share of the score held", range=[0, 1.02], tickformat=".0%")
    return apply_style(figure, "How few heads hold how much", "Dots: where half is reached. Dotted: all heads alike.")


def depth_profiles(scores: Mapping[str, HeadScores]) -> go.Figure:
    """Draw the distribution of a score over the depth of models; models of different depth can be compared.

    Marks: a line is a model (or a score), a dot on it a layer: how many times as much of all positive scores the layer
    holds as it would if all layers held the same. The triangle on the axis is the mean depth, weighted by the scores.

    Args:
        scores: By the name that the figure shows.

    Raises:
        ValueError: If there is none, or one has no positive score.
    """
    _require_scores(scores)
    figure = go.Figure()
    for (name, head_scores), colour in zip(scores.items(), colours(len(scores)), strict=True):
        profile = depth_profile(head_scores.per_head)
        figure.add_scatter(
            name=f"{name} ({len(profile.depth)} layers)",
            legendgroup=name,
            x=profile.depth.numpy(),
            y=(profile.share * len(profile.share)).numpy(),
            customdata=np.arange(len(profile.depth), dtype=np.int32),
            mode="lines+markers",
            line=dict(color=colour, width=2),
            marker=dict(color=colour, size=6),
            hovertemplate=f"{name}, layer %{{customdata}}<br>%{{y:.2f}} times its share<extra></extra>",
        )
        figure.add_scatter(
            legendgroup=name,
            x=[profile.centre],
            y=[0],
            mode="markers",
            marker=dict(color=colour, size=12, symbol="triangle-up"),
            showlegend=False,
            cliponaxis=False,
            hovertemplate=f"{name}<br>mean depth {profile.centre:.0%}<extra></extra>",
        )
    figure.add_hline(y=1, line=dict(color=QUIET, dash="dot"))
    figure.update_xaxes(title="depth in the model (first to last layer)", tickformat=".0%", range=[-0.02, 1.02])
    figure.update_yaxes(title="share, times an even share", rangemode="tozero")
    return apply_style(
        figure, "Where in the depth the score lies", "Dotted: all layers alike. Triangles: mean depth, by the score."
    )


def heads_by_two(across: HeadScores, up: HeadScores, chosen: HeadSet) -> go.Figure:
    """Draw every head by two metrics at once.

    Marks: a dot is a head, at its score of one metric (right) and of another (up); those of `chosen` are vermilion,
    all others grey. Heads without a score in both are left out.

    Raises:
        ValueError: If the two do not score heads of one model.
    """
    if across.per_head.shape != up.per_head.shape:
        raise ValueError(
            f"{across.metric} is of {tuple(across.per_head.shape)} layers and heads and {up.metric} of "
            f"{tuple(up.per_head.shape)}: both must be of one model."
        )
    figure = go.Figure()
    scored = [head for head in across.ranked() if up.mask[head]]
    for name, colour, heads in (
        ("others", QUIET, [head for head in scored if head not in chosen]),
        (chosen.name, ACCENT, [head for head in scored if head in chosen]),
    ):
        figure.add_scatter(
            name=name,
            x=np.array([float(across.per_head[head]) for head in heads], np.float32),
            y=np.array([float(up.per_head[head]) for head in heads], np.float32),
            customdata=[str(head) for head in heads],
            mode="markers",
            marker=dict(color=colour, size=8),
            hovertemplate="%{customdata}<br>%{x:.3f}, %{y:.3f}<extra></extra>",
        )
    figure.update_xaxes(title=across.metric)
    figure.update_yaxes(title=up.metric)
    return apply_style(figure, f"Every head by {across.metric} and {up.metric}", f"Coloured: {chosen.name}.")


def group_distributions(scores: Mapping[str, HeadScores], chosen: HeadSet) -> go.Figure:
    """Draw the distributions of two groups of heads, by several metrics.

    Marks: one panel per metric, two in a row; a dot is a head, a box the middle half of a group with its median.
    `chosen` is vermilion, all others grey. Heads without a finite score are left out.

    Raises:
        ValueError: If there are no scores.
    """
    _require_scores(scores)
    titles = [name.replace("_", " ") for name in scores]
    figure = make_subplots(-(-len(titles) // 2), min(len(titles), 2), subplot_titles=titles)
    for number, head_scores in enumerate(scores.values()):
        for name, colour, is_chosen in (("others", QUIET, False), ("chosen", ACCENT, True)):
            group = [head_scores.per_head[head] for head in head_scores.ranked() if (head in chosen) == is_chosen]
            figure.add_box(
                y=np.array([float(score) for score in group if score.isfinite()], np.float32),
                name=name,
                boxpoints="all",
                pointpos=0,
                marker=dict(color=colour, size=4),
                showlegend=False,
                row=1 + number // 2,
                col=1 + number % 2,
            )
    return apply_style(figure, "Heads of two groups by each metric", f"Chosen: {chosen.name}.")


def sample_distribution(scores: HeadScores, head: Head) -> go.Figure:
    """Draw the scores of one head over samples.

    Marks: a dot is a sample, a box the middle half of a data set with its median. Samples without a finite score are
    left out.

    Raises:
        ValueError: If the head has no score.
    """
    if head not in scores.ranked():
        raise ValueError(f"{head} has no score by {scores.metric}.")
    values = scores.values[:, head.layer, head.head]
    datasets = scores.datasets or [""] * len(scores.samples)
    figure = go.Figure()
    for name in reversed(dict.fromkeys(datasets)):
        rows = [row for row, dataset in enumerate(datasets) if dataset == name and values[row].isfinite()]
        figure.add_box(
            x=values[rows].numpy(),
            text=[scores.samples[row] for row in rows],
            name=name or "samples",
            boxpoints="all",
            pointpos=0,
            marker=dict(color=BLUE, size=5, opacity=0.6),
            hovertemplate="%{text}<br>%{x:.3f}<extra></extra>",
            hoveron="points",
            showlegend=False,
        )
    figure.update_xaxes(title=scores.metric)
    return apply_style(figure, f"{scores.metric[:1].upper()}{scores.metric[1:]} of {head} in every sample")


def _require_scores(scores: Mapping[str, HeadScores]) -> None:
    if not scores:
        raise ValueError("there are no scores to show; pass them by name, e.g. {'ram': scores}.")
