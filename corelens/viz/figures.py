"""Plotly figures of head scores, of attention over pictures, and of accuracies."""

import base64
import io
from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from corelens.heads import HeadSet
from corelens.scores import HeadScores
from corelens.tokens import Box

INK, ACCENT, QUIET, GRID = "#1f2430", "#d1495b", "#9aa5b1", "#e6e9ee"
_HEAT = [[0, "rgba(255,214,10,0)"], [0.25, "rgba(255,190,11,0.45)"], [1, "rgba(255,0,84,0.9)"]]
"""Clear where there is no attention, so that the picture shows through."""


def head_map(scores: HeadScores, marked: HeadSet) -> go.Figure:
    """Every head as a cell, layers upwards; darker means a higher mean score. `marked` heads are outlined."""
    mean = scores.per_head
    figure = go.Figure(
        go.Heatmap(
            z=mean.tolist(),
            colorscale="Blues",
            zmin=0,
            colorbar=dict(title=dict(text=scores.metric, side="right"), thickness=12),
            hovertemplate="L%{y}H%{x}<br>%{z:.3f}<extra></extra>",
            xgap=2,
            ygap=2,
        )
    )
    for layer, head in marked:
        figure.add_shape(
            type="rect", x0=head - 0.5, x1=head + 0.5, y0=layer - 0.5, y1=layer + 0.5, line=dict(color=ACCENT, width=3)
        )
    figure.update_xaxes(title="head", dtick=1, showgrid=False, zeroline=False)
    figure.update_yaxes(title="layer", dtick=1, showgrid=False, zeroline=False)
    return _styled(figure, f"{scores.metric}, mean of {len(scores.samples)} samples; outlined: {marked.name}")


def attention_over_picture(
    picture: Image.Image,
    attention: Float[Tensor, "row column"],
    region: Box,
    title: str,
    evidence: Sequence[Box] = (),
    highest: float | None = None,
) -> go.Figure:
    """One head's attention over a picture, a cell per visual token; redder means more, clear means none.

    Args:
        picture: The original picture.
        attention: Attention of one query token, or the mean of several, as it stands in the picture.
        region: The pixels that the grid covers.
        title: What is shown.
        evidence: Regions to outline.
        highest: Attention that gets the strongest colour; the highest in the picture by default.
    """
    rows, columns = attention.shape
    width, height = (region.right - region.left) / columns, (region.bottom - region.top) / rows
    figure = go.Figure(
        go.Heatmap(
            z=attention.tolist(),
            x0=region.left + width / 2,
            dx=width,
            y0=region.top + height / 2,
            dy=height,
            colorscale=_HEAT,
            zmin=0,
            zmax=highest or max(float(attention.max()), 1e-9),
            colorbar=dict(title=dict(text="attention", side="right"), thickness=12),
            hovertemplate="%{z:.3f}<extra></extra>",
        )
    )
    png = io.BytesIO()
    picture.save(png, "PNG")
    figure.add_layout_image(
        source="data:image/png;base64," + base64.b64encode(png.getvalue()).decode(),
        x=0,
        y=0,
        sizex=picture.width,
        sizey=picture.height,
        xref="x",
        yref="y",
        sizing="stretch",
        layer="below",
    )
    for box in evidence:
        figure.add_shape(
            type="rect", x0=box.left, x1=box.right, y0=box.top, y1=box.bottom, line=dict(color="white", width=3)
        )
    figure.update_xaxes(range=[0, picture.width], visible=False, constrain="domain")
    figure.update_yaxes(range=[picture.height, 0], visible=False, scaleanchor="x", constrain="domain")
    return _styled(figure, title)


def score_curve(scores: HeadScores, chosen: HeadSet) -> go.Figure:
    """Mean score of every head, best first; `chosen` heads are coloured."""
    ranked = scores.ranked()
    values = [float(scores.per_head[layer, head]) for layer, head in ranked]
    colours = [ACCENT if head in chosen else QUIET for head in ranked]
    figure = go.Figure(
        go.Bar(
            x=list(range(1, len(ranked) + 1)),
            y=values,
            marker=dict(color=colours, line_width=0),
            customdata=[str(head) for head in ranked],
            hovertemplate="%{customdata}, rank %{x}<br>%{y:.3f}<extra></extra>",
        )
    )
    figure.update_xaxes(title="rank of the head")
    figure.update_yaxes(title=scores.metric, rangemode="tozero")
    return _styled(figure, f"Every head, best first; coloured: {chosen.name}")


def accuracy_bars(accuracies: Mapping[str, Mapping[str, Sequence[float]]]) -> go.Figure:
    """Accuracy by what was removed, a bar per task; dots are seeds where there are several.

    Args:
        accuracies: Task, then condition, then one accuracy in [0, 1] per seed.
    """
    palette = [ACCENT, "#3d5a80", "#6c9a8b", "#c9ada7"]
    figure = go.Figure()
    for (task, conditions), colour in zip(accuracies.items(), palette, strict=False):
        figure.add_bar(
            name=task,
            offsetgroup=task,
            x=list(conditions),
            y=[float(np.mean(values)) for values in conditions.values()],
            marker_color=colour,
            hovertemplate="%{x}<br>" + task + " %{y:.1%}<extra></extra>",
        )
        seeds = [(name, value) for name, values in conditions.items() if len(values) > 1 for value in values]
        figure.add_scatter(
            name=f"{task}, each seed",
            offsetgroup=task,
            x=[name for name, _ in seeds],
            y=[value for _, value in seeds],
            mode="markers",
            marker=dict(color=INK, size=5, opacity=0.6),
            showlegend=False,
            hovertemplate="%{x}<br>" + task + " %{y:.1%}, one seed<extra></extra>",
        )
    figure.update_layout(
        barmode="group", scattermode="group", bargap=0.25, legend=dict(orientation="h", y=1.1, x=1, xanchor="right")
    )
    figure.update_yaxes(title="accuracy", range=[0, 1.02], tickformat=".0%")
    return _styled(figure, "Accuracy by which heads are removed; bars are means, dots single seeds")


def _styled(figure: go.Figure, title: str) -> go.Figure:
    figure.update_layout(
        title=dict(text=title, font=dict(size=14)),
        template="plotly_white",
        font=dict(family="system-ui, sans-serif", color=INK, size=12),
        margin=dict(l=56, r=24, t=56, b=48),
    )
    figure.update_yaxes(gridcolor=GRID)
    return figure
