"""Key tokens: ratios of top, random and bottom heads, and coverage of growing sets of heads."""

from collections.abc import Mapping

import plotly.graph_objects as go

from corelens.experiments.key_token_results import CoverageCurve, HitRate
from corelens.viz.styles import BLUE, QUIET, VERMILION, add_band, apply_style, bar_marker, colours


def hit_rate_bars(rates: Mapping[str, HitRate], n_heads: int = 15, threshold: float | int = 0.5) -> go.Figure:
    """Draw the key token ratio of some heads, and the share of heads and samples that hit.

    Marks: two bars for every kind of heads: the mean ratio, and the share whose ratio reaches the threshold.

    Args:
        rates: By kind of heads, as returned by `KeyTokens.hit_rates`.
        n_heads: Number of heads that they are of.
        threshold: Ratio from which on a head hits.

    Raises:
        ValueError: If there are no rates.

    Source:
        Figure 6b of arXiv 2606.05843, which shows top and bottom heads. Its axis names the ratio, its appendix E.3 the
        hit rate: both are drawn.
    """
    if not rates:
        raise ValueError("there are no rates to show; pass those that KeyTokens.hit_rates returns.")
    kinds = [kind if kind == "chance" else f"{kind} {n_heads}" for kind in rates]
    figure = go.Figure()
    for name, colour, values in (
        ("key token ratio, mean", BLUE, [rate.ratio for rate in rates.values()]),
        (f"hits: ratio of {threshold:g} or more", VERMILION, [rate.hits for rate in rates.values()]),
    ):
        figure.add_bar(
            name=name,
            x=kinds,
            y=values,
            marker=bar_marker(colour),
            texttemplate="%{y:.1%}",
            textposition="outside",
            cliponaxis=False,
            hovertemplate=f"%{{x}}<br>{name}: %{{y:.2%}}<extra></extra>",
        )
    figure.update_layout(barmode="group", bargap=0.3)
    figure.update_xaxes(title="heads", showgrid=False)
    figure.update_yaxes(title="share", rangemode="tozero", tickformat=".0%")
    return apply_style(
        figure,
        "Evidence among the tokens that heads attend to most",
        "Ratio: share of the evidence in the 5 % of tokens with the most attention.",
    )


def coverage_curves(curves: Mapping[str, CoverageCurve], chance: CoverageCurve) -> go.Figure:
    """Draw key token coverage by the number of heads.

    Marks: a line is a ranking of heads: the share of the evidence that is among the top tokens of at least one of its
    first heads. Bands are 95 % intervals over samples. Dotted: heads whose top tokens are drawn at random.

    Args:
        curves: By kind of ranking, as returned by `KeyTokens.curve`.
        chance: As returned by `KeyTokens.chance_curve`.

    Raises:
        ValueError: If there are no curves.

    Source:
        Figure 6c of arXiv 2606.05843, which shows top heads.
    """
    if not curves:
        raise ValueError("there are no curves to show; pass those that KeyTokens.curve returns, by name.")
    figure = go.Figure()
    for (name, curve), colour in zip(curves.items(), colours(len(curves)), strict=True):
        add_band(figure, name, curve.n_heads, curve.low, curve.high, colour)
        figure.add_scatter(
            name=name,
            legendgroup=name,
            x=curve.n_heads,
            y=curve.mean,
            mode="lines",
            line=dict(color=colour, width=2),
            hovertemplate=f"{name}, %{{x}} heads<br>%{{y:.1%}}<extra></extra>",
        )
    figure.add_scatter(
        name="chance",
        x=chance.n_heads,
        y=chance.mean,
        mode="lines",
        line=dict(color=QUIET, dash="dot"),
        hovertemplate="by chance, %{x} heads<br>%{y:.1%}<extra></extra>",
    )
    figure.update_xaxes(title="number of heads")
    figure.update_yaxes(title="evidence covered", range=[0, 1.02], tickformat=".0%")
    return apply_style(
        figure,
        "Evidence covered by more and more heads",
        "Bands: 95 % intervals over samples. Dotted: top tokens drawn at random.",
    )
