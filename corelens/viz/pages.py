"""The figure of retrieval: relevance curves over the pages of a prompt."""

import numpy as np
import plotly.graph_objects as go

from corelens.metrics.page_ranking import PageRanking
from corelens.viz.styles import QUIET, apply_style, colours


def relevance_curves(ranking: PageRanking, sample: int = 0) -> go.Figure:
    """Draw the scores of the pages of one sample, in the order of the prompt.

    Marks: a line is a head set: the score of every picture or frame. Grey bands are the pages with the evidence.

    Args:
        ranking: As returned by `rank_pages`.
        sample: Number of the sample in it.
    """
    figure = go.Figure()
    for (name, of_set), colour in zip(ranking.scores.items(), colours(len(ranking.scores)), strict=True):
        scores = of_set[sample][~of_set[sample].isnan()]
        figure.add_scatter(
            name=name,
            x=np.arange(len(scores), dtype=np.int32),
            y=scores.numpy(),
            mode="lines+markers",
            line=dict(color=colour, width=2),
            hovertemplate=f"{name}, page %{{x}}<br>%{{y:.3f}}<extra></extra>",
        )
    for page in ranking.evidence[sample].nonzero().flatten().tolist():
        figure.add_vrect(x0=page - 0.5, x1=page + 0.5, fillcolor=QUIET, opacity=0.3, line_width=0, layer="below")
    figure.update_xaxes(title="picture or frame, from zero", showgrid=False)
    figure.update_yaxes(title="attention, minus that under N/A")
    return apply_style(
        figure, f"Relevance of the pages of {ranking.samples[sample]}", "Bands: pages with the evidence."
    )
