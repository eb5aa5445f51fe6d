"""Heat maps: heads, overlaps of scores, depths and lengths, layers and positions."""

from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any, Literal

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float
from torch import Tensor

from corelens.errors import check_choice
from corelens.heads import Head, HeadSet
from corelens.scores import HeadScores, agreement
from corelens.viz.style import ACCENT, QUIET, apply_style, cells, colour_bar, colour_range, require_names

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
    figure.update_xaxes(title="head", range=[-0.5, n_heads - 0.5], dtick=_step(n_heads, 16), showgrid=False)
    figure.update_yaxes(title="layer", range=[-0.5, n_layers - 0.5], dtick=_step(n_layers, 12), showgrid=False)
    outlined = f" Outlined: {marked.name}." if len(marked) else ""
    return apply_style(
        figure,
        f"{scores.metric[:1].upper()}{scores.metric[1:]} of every head",
        f"{_aggregation_label(scores)} over {len(scores.samples)} samples.{outlined}",
    )


def overlap_matrix(
    scores: Mapping[str, HeadScores], metric: AgreementMetric = "jaccard", n: float | int = 0.05
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


def _step(n: int, max_ticks: int) -> int:
    """Distance of ticks, a power of two, with at most `max_ticks` of them."""
    return next(2**power for power in count() if n <= max_ticks * 2**power)


def _aggregation_label(scores: HeadScores) -> str:
    return scores.aggregation.replace("_", " ").capitalize()
