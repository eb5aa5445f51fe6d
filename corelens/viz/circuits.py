"""The figure of circuits: faithfulness over the share of heads that is kept."""

import numpy as np
import plotly.graph_objects as go

from corelens.metrics.circuits import CircuitCurves
from corelens.viz.styles import QUIET, add_band, apply_style, colours


def faithfulness_curves(curves: CircuitCurves) -> go.Figure:
    """Draw the faithfulness of circuits of growing size, by several rankings.

    Marks: a line is a ranking, with its CPR, a dot on it a circuit: the share of what the model does that its first
    heads do alone. A ranking of several draws, the random control, is grey: their mean, and a band from the lowest to
    the highest. On the dotted line a circuit does what the model does.

    Args:
        curves: As returned by `circuit_curves`.

    Raises:
        ValueError: If there is no ranking.
    """
    if not curves.values:
        raise ValueError("there are no rankings to show.")
    figure = go.Figure()
    shares = curves.shares.numpy().astype(np.float32)
    named = [name for name, values in curves.values.items() if len(values) == 1]
    colour_of = dict(zip(named, colours(len(named)), strict=True))
    for name in curves.values:
        draws = curves.faithfulness(name).numpy().astype(np.float32)
        colour = colour_of.get(name, QUIET)
        if len(draws) > 1:
            add_band(figure, name, shares, draws.min(0), draws.max(0), colour)
        figure.add_scatter(
            name=f"{name}, {float(curves.area(name, 'cpr').mean()):.2f}",
            legendgroup=name,
            x=shares,
            y=draws.mean(0),
            customdata=np.array(curves.sizes, np.int32),
            mode="lines+markers",
            line=dict(color=colour, width=2, dash="solid" if name not in named[6:] else "dash"),
            hovertemplate=f"{name}, %{{customdata}} heads<br>%{{y:.2f}}<extra></extra>",
        )
    figure.add_hline(y=1, line=dict(color=QUIET, dash="dot"))
    figure.update_xaxes(title="share of heads that is kept", tickformat=".0%", range=[0, 1.02])
    figure.update_yaxes(title="faithfulness")
    return apply_style(
        figure,
        "What the first heads of a ranking do alone",
        f"{curves.metric[:1].upper() + curves.metric[1:]}, all other heads ablated ({curves.method}). Numbers: area "
        f"under the line (CPR).",
    )
