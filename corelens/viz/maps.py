"""Heat maps: heads, overlaps of scores, depths and lengths, layers and positions."""

from collections.abc import Mapping, Sequence
from itertools import count, pairwise
from typing import Any, Literal

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float
from plotly.colors import hex_to_rgb
from plotly.subplots import make_subplots
from torch import Tensor

from corelens.errors import check_choice
from corelens.heads import Head, HeadSet
from corelens.metrics.score_distribution import Amount
from corelens.metrics.stability import StableHeads
from corelens.scores import HeadScores, agreement
from corelens.viz.styles import (
    ACCENT,
    BLUE,
    QUIET,
    VERMILION,
    apply_style,
    cells,
    colour_bar,
    colour_range,
    require_names,
)

AgreementMetric = Literal["jaccard", "shared", "spearman", "rank_biased_overlap"]
_TITLES = {
    "jaccard": "Share of the heads in either top set that are in both",
    "shared": "Share of one's top heads that are in the other's",
    "spearman": "Rank correlation over all heads",
    "rank_biased_overlap": "Rank-biased overlap of the rankings",
}


def head_map(scores: HeadScores, marked: HeadSet) -> go.Figure:
    """Draw every head as a cell, layers upwards.

    Marks: the stronger the colour of a cell, the higher the head's score (`per_head`); where some scores are negative,
    blue is above zero and vermilion below. `marked` heads are outlined. Crosses mark
    cells without a head or a score.

    Raises:
        ValueError: If no head has a score, one is infinite, or a marked head is not in the map.
    """
    values = cells(scores.per_head, "layer head")
    n_layers, n_heads = values.shape
    ranked = {head: rank for rank, head in enumerate(scores.ranked(), 1)}
    for head in marked:
        if head not in ranked:
            raise ValueError(f"{head} cannot be marked: it has no score in {n_layers} layers of {n_heads} heads.")
    labels = [[f"rank {ranked.get(Head(layer, head))}" for head in range(n_heads)] for layer in range(n_layers)]
    gap = 2 if n_heads <= 24 else 1
    figure = go.Figure(
        go.Heatmap(
            z=values,
            text=labels,
            **colour_range(values),
            colorbar=colour_bar(scores.metric),
            hovertemplate=f"L%{{y}}H%{{x}}<br>%{{z:.3f}}, %{{text}} of {len(ranked)}<extra></extra>",
            hoverongaps=False,
            xgap=gap,
            ygap=gap,
        )
    )
    layer, head = np.nonzero(np.isnan(values))
    if len(layer):
        figure.add_scatter(
            x=head.astype(np.int32),
            y=layer.astype(np.int32),
            mode="markers",
            marker=dict(symbol="x-thin", size=6, line=dict(color=QUIET, width=1)),
            hovertemplate="L%{y}H%{x}<br>no score<extra></extra>",
            showlegend=False,
        )
    line = dict(color=ACCENT, width=gap + 1)
    # All at once, since plotly validates all of them again whenever one is added.
    figure.layout.shapes = [
        dict(type="rect", x0=head - 0.5, x1=head + 0.5, y0=layer - 0.5, y1=layer + 0.5, line=line)
        for layer, head in marked
    ]
    _head_axes(figure, values.shape)
    outlined = f" Outlined: {marked.name}." if len(marked) else ""
    return apply_style(
        figure,
        f"{scores.metric[:1].upper()}{scores.metric[1:]} of every head",
        f"{_aggregation_label(scores)} over {len(scores.samples)} samples.{outlined}",
    )


def binned_head_maps(scores: Mapping[str, HeadScores]) -> go.Figure:
    """Draw head scores of one model side by side, or of several, in four bins.

    Marks: a panel is a score, a cell a head, layers upwards; scores are divided by the highest of their panel, and the
    colour is the bin: 0 to 0.2, to 0.4, to 0.6, to 1. Negative scores are in the lowest. Heads without a score are
    empty.

    Args:
        scores: By the name that the figure shows, e.g. those of retrieval attention mass and of attention to all visual
            tokens.

    Raises:
        ValueError: If there are no scores, or a panel has no positive one.

    Source:
        Figures 4 and 9 of arXiv 2606.05843. The paper does not say how it scales scores; the division is corelens's.
    """
    if not scores:
        raise ValueError("there are no scores to show; pass them by name, e.g. {'ram': scores}.")
    edges = (0.0, 0.2, 0.4, 0.6, 1.0)
    figure = make_subplots(1, len(scores), subplot_titles=list(scores), horizontal_spacing=0.08)
    for column, (name, of_heads) in enumerate(scores.items(), 1):
        values = cells(of_heads.per_head, "layer head")
        if not (highest := float(np.nanmax(values))) > 0:
            raise ValueError(f"{name}: no head has a positive score, so they cannot be scaled by the highest.")
        trace = go.Heatmap(
            z=np.clip(values / highest, 0, 1),
            customdata=values,
            hovertemplate="L%{y}H%{x}<br>%{customdata:.3f}, %{z:.2f} of the highest<extra></extra>",
            hoverongaps=False,
            coloraxis="coloraxis",
            xgap=1,
            ygap=1,
        )
        figure.add_trace(trace, 1, column)
        _head_axes(figure, values.shape, 1, column)
    texts = [f"{low:g} to {high:g}" for low, high in pairwise(edges)]
    middles = [(low + high) / 2 for low, high in pairwise(edges)]
    figure.update_layout(
        coloraxis=dict(
            cmin=0, cmax=1, colorscale=_steps(edges), colorbar=dict(tickvals=middles, ticktext=texts, thickness=12)
        )
    )
    return apply_style(figure, "Head scores, as a share of the highest", "Colour: the score over the panel's highest.")


def stable_head_map(stable: StableHeads) -> go.Figure:
    """Draw the number of data sets on which each head is in the top share.

    Marks: a cell is a head, layers upwards; its colour is the number, from none to all. Heads that the model does not
    have are empty.

    Args:
        stable: As returned by `corelens.metrics.stable_heads`.

    Source:
        Figure 5b of arXiv 2606.05843.
    """
    values = cells(stable.matrix, "layer head")
    n = len(stable.n_heads) - 1
    trace = go.Heatmap(
        z=values,
        zmin=-0.5,
        zmax=n + 0.5,
        autocolorscale=False,
        colorscale=_steps([count / (n + 1) for count in range(n + 2)]),
        colorbar=colour_bar("data sets") | dict(tickvals=list(range(n + 1))),
        hovertemplate=f"L%{{y}}H%{{x}}<br>in the top of %{{z:.0f}} of {n} data sets<extra></extra>",
        hoverongaps=False,
        xgap=1,
        ygap=1,
    )
    figure = go.Figure(trace)
    _head_axes(figure, values.shape)
    in_all, by_chance = stable.n_heads[-1], stable.by_chance[-1]
    return apply_style(
        figure,
        "Number of data sets on which a head is in the top",
        f"Heads in the top of all {n}: {in_all}; by chance, {by_chance:.2g}.",
    )


def overlap_matrix(
    scores: Mapping[str, HeadScores], metric: AgreementMetric = "jaccard", n: Amount = 0.05
) -> go.Figure:
    """Draw the pairwise agreement of scores of the same heads: metrics, data sets, or tasks.

    Marks: a cell is a pair; its number is the `agreement` of the two, and a stronger colour is more. Positive rank
    correlations are blue, negative ones vermilion.

    Args:
        scores: By the name that the figure shows.
        metric: A field of `corelens.agreement`.
        n: Size of the top sets, for `jaccard` and `shared`.

    Raises:
        ValueError: If there are fewer than two, the metric is not known, or they score other heads.
    """
    check_choice("metric", metric, AgreementMetric)
    if len(scores) < 2:
        raise ValueError(f"{len(scores)} scores have nothing to agree with; an overlap matrix needs two or more.")
    names = list(scores)
    values = cells(
        [[getattr(agreement(row, column, n), metric) for column in scores.values()] for row in scores.values()],
        "score score",
    )
    has_sets = metric in ("jaccard", "shared")
    below = f"Top sets: {scores[names[0]].top(n).name.rpartition(' by ')[0]}." if has_sets else ""
    return apply_style(
        _table(values, names, names, metric.replace("_", " "), ".2f", dict(zmin=min(0.0, *values.flat), zmax=1.0)),
        _TITLES[metric],
        below,
    ).update_yaxes(autorange="reversed")


def cross_ablation_map(costs: Mapping[str, Mapping[str, float]], ranking: str = "") -> go.Figure:
    """Draw what the heads of each task cost in each task.

    Marks: a cell is the loss of accuracy, in points, in the task of its column without the heads of the task of its
    row; blue is a loss, vermilion a gain. Strong cells on the diagonal alone: each task has heads of its own.

    Args:
        costs: Loss of accuracy, from -1 to 1, by heads, then questions.
        ranking: How heads were ranked, for the title.
    """
    rows, columns = list(costs), list(next(iter(costs.values())))
    values = 100 * cells([[costs[row][column] for column in columns] for row in rows], "heads questions")
    largest = max(10.0, float(np.nanmax(np.abs(values))))
    limits = dict(
        zmin=-largest, zmax=largest, colorscale=[[0, VERMILION], [0.5, "rgba(128, 128, 128, 0.1)"], [1, BLUE]]
    )
    figure = _table(values, rows, columns, "points lost", ".0f", limits)
    figure.update_xaxes(title="questions").update_yaxes(title="heads ablated", autorange="reversed")
    title = " ".join(("Accuracy lost without the heads of each task", ranking)).strip()
    return apply_style(figure, title, "Points. On the diagonal the heads of the task itself.")


def depth_length_grid(
    accuracy: Float[Tensor, "depth length"] | Float[np.ndarray, "depth length"],
    depths: Sequence[float | int],
    lengths: Sequence[int],
    unit: str = "pictures",
) -> go.Figure:
    """Draw accuracy by length of the prompt and depth of the evidence in it: a needle in a haystack.

    Marks: a cell is a length and a depth; its number is the accuracy in percent, and a stronger colour is better. Cells
    without a measurement (NaN) are empty.

    Args:
        accuracy: In [0, 1].
        depths: Positions of the evidence: 0 for the beginning, 1 for the end.
        lengths: Lengths of prompts.
        unit: Unit of the lengths.

    Raises:
        ValueError: If shapes and names do not match, or an accuracy is outside [0, 1].
    """
    values = cells(accuracy, "depth length")
    require_names((depths, lengths), values.shape, ("depths", "lengths"))
    if np.nanmin(values) < 0 or np.nanmax(values) > 1:
        raise ValueError(f"accuracies are in [0, 1]; these go from {np.nanmin(values):g} to {np.nanmax(values):g}.")
    rows, columns = [f"{depth:.0%}" for depth in depths], [f"{length:,}" for length in lengths]
    figure = _table(values, rows, columns, "accuracy", ".0%", dict(zmin=0, zmax=1))
    figure.update_xaxes(title=f"length of the prompt ({unit})")
    figure.update_yaxes(title="depth of the evidence", autorange="reversed")
    return apply_style(
        figure, "Accuracy by length of the prompt and depth of the evidence", "Depth 0 % is the beginning."
    )


def patching_map(
    effects: Float[Tensor, "layer place"] | Float[np.ndarray, "layer place"], places: Sequence[str], effect: str
) -> go.Figure:
    """Draw effects of patching the residual stream (or heads, or edges), by layer and place in the prompt.

    Marks: a cell is a layer and a place, layers upwards; the stronger its colour, the larger the effect; where some
    effects are negative, blue is above zero and vermilion below. NaN, not measured, is empty.

    Args:
        effects: Mean effect of each patch.
        places: Tokens, or groups of tokens such as `evidence`, in the order of the prompt.
        effect: Name of the numbers, with their unit.

    Raises:
        ValueError: If shapes and names do not match, or names repeat.
    """
    values = cells(effects, "layer place")
    require_names((range(len(values)), places), values.shape, ("layers", "places"))
    figure = go.Figure(
        go.Heatmap(
            z=values,
            x=list(places),
            **colour_range(values),
            colorbar=colour_bar(effect),
            hovertemplate="layer %{y}, %{x}<br>%{z:.3f}<extra></extra>",
            hoverongaps=False,
            xgap=1 if len(places) <= 128 else 0,
            ygap=1,
        )
    )
    figure.update_xaxes(title="place in the prompt", type="category", showgrid=False)
    figure.update_yaxes(title="layer", dtick=_step(len(values), 12), showgrid=False)
    return apply_style(figure, "What a patch does, by layer and place", f"Colour: {effect}.")


def _table(
    values: np.ndarray, rows: list[str], columns: list[str], title: str, number: str, limits: dict[str, Any]
) -> go.Figure:
    """Draw a heat map whose cells show their numbers."""
    figure = go.Figure(
        go.Heatmap(
            z=values,
            x=columns,
            y=rows,
            **limits,
            texttemplate=f"%{{z:{number}}}",
            colorbar=colour_bar(title) | dict(tickformat=number),
            hovertemplate=f"%{{y}}, %{{x}}<br>%{{z:{number}}}<extra></extra>",
            hoverongaps=False,
            xgap=2,
            ygap=2,
        )
    )
    figure.update_xaxes(type="category", showgrid=False)
    figure.update_yaxes(type="category", showgrid=False)
    return figure


def _head_axes(figure: go.Figure, shape: tuple[int, ...], row: int | None = None, column: int | None = None) -> None:
    """Name the axes of a map of heads, layers upwards."""
    n_layers, n_heads = shape
    place: dict[str, Any] = dict(row=row, col=column)
    figure.update_xaxes(title="head", range=[-0.5, n_heads - 0.5], dtick=_step(n_heads, 16), showgrid=False, **place)
    figure.update_yaxes(title="layer", range=[-0.5, n_layers - 0.5], dtick=_step(n_layers, 12), showgrid=False, **place)


def _steps(edges: Sequence[float]) -> list[list[Any]]:
    """Colour scale with one colour between every two edges, from faint to strong on white and on dark."""
    red, green, blue = hex_to_rgb(BLUE)
    alphas = np.linspace(0.08, 1, len(edges) - 1)
    return [
        [edge, f"rgba({red}, {green}, {blue}, {alpha:.2f})"]
        for ends, alpha in zip(pairwise(edges), alphas, strict=True)
        for edge in ends
    ]


def _step(n: int, max_ticks: int) -> int:
    """Distance of ticks, a power of two, with at most `max_ticks` of them."""
    return next(2**power for power in count() if n <= max_ticks * 2**power)


def _aggregation_label(scores: HeadScores) -> str:
    return scores.aggregation.replace("_", " ").capitalize()
