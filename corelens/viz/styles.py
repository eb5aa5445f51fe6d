"""The style that all figures share, on white and on dark pages."""

import re
import textwrap
from collections.abc import Iterable
from itertools import cycle, islice
from typing import Any, Literal

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float32, Shaped
from plotly.colors import hex_to_rgb
from torch import Tensor

from corelens.errors import check_choice

BLUE, VERMILION, GREEN, PINK, ORANGE, SKY = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"
"""Colours that colour-blind readers can tell apart (Okabe and Ito 2008)."""

ACCENT, QUIET = VERMILION, "#9aa5b1"
"""Chosen heads, such as CoRe heads, and all others; both are visible on white and on dark."""

ABLATED = PINK
"""Ablated heads, and what the model answers without them."""

HEAT = [[0, "rgba(255,214,10,0)"], [0.25, "rgba(255,190,11,0.45)"], [1, "rgba(255,0,84,0.8)"]]
"""Attention over pictures: clear where there is none, so that the picture shows through."""


def _template(ink: str, paper: str, grid: str, low: str, middle: str, high: str) -> go.layout.Template:
    axis = dict(gridcolor=grid, linecolor=grid, zeroline=False, automargin=True, ticks="", ticklabelstandoff=4)
    bar = dict(thickness=12, outlinewidth=0)
    return go.layout.Template(
        layout=dict(
            font=dict(family="system-ui, sans-serif", color=ink, size=12),
            title=dict(
                font=dict(size=15),
                subtitle=dict(font=dict(size=12)),
                x=0,
                xanchor="left",
                y=1,
                yanchor="top",
                pad=dict(l=16, t=12),
            ),
            paper_bgcolor=paper,
            plot_bgcolor=paper,
            colorway=[BLUE, VERMILION, GREEN, PINK, ORANGE, SKY],
            colorscale=dict(
                sequential=[[0, low], [0.5, middle], [1, high]], diverging=[[0, VERMILION], [0.5, low], [1, BLUE]]
            ),
            coloraxis=dict(colorbar=bar),
            xaxis=axis,
            yaxis=axis,
            hoverlabel=dict(bgcolor=paper, bordercolor=QUIET, font=dict(color=ink)),
            legend=dict(orientation="h", x=0, xanchor="left", yref="container", y=0, yanchor="bottom"),
        ),
        data=dict(heatmap=[go.Heatmap(colorbar=bar, autocolorscale=True)]),
    )


LIGHT = _template("#1f2430", "#ffffff", "#e6e9ee", "#edf2f7", "#6aaed6", "#08306b")
"""Dark ink on white: the default of figures."""

DARK = _template("#e8eaed", "#14171f", "#2c313c", "#20262f", "#2f7fb5", "#d9f0ff")
"""Light ink on a dark page: `figure.update_layout(template=DARK)`."""


Use = Literal["page", "talk"]
"""Figures for a page, or for a projector."""

_SCALES: dict[Use, float] = {"page": 1.0, "talk": 1.6}
_use: Use = "page"


def style(use: Use) -> None:
    """Set the size of text, lines and dots in all figures that are drawn from now on.

    Args:
        use: `page` for notebooks and documents, as from the start; `talk` for a projector, read from the last row.
    """
    global _use
    check_choice("use", use, Use)
    _use = use


def colours(n: int) -> list[str]:
    """Return `n` colours; they repeat after six."""
    return list(islice(cycle((BLUE, VERMILION, GREEN, PINK, ORANGE, SKY)), n))


def literal(text: str) -> str:
    """Return a text as plotly shows it letter by letter: it reads HTML, and leaves out tags that it does not know.

    The tags of our own templates, `<br>` and `<extra>`, stay tags.
    """
    return re.sub(r"<(?!br>|/?extra>)", "&lt;", text.replace("&", "&amp;"))


def _literal_texts(value: Any) -> Any:
    """The same value with all texts within it `literal`."""
    match value:
        case str():
            return literal(value)
        case dict():
            return {name: _literal_texts(item) for name, item in value.items()}
        case list() | tuple():
            return [_literal_texts(item) for item in value]
        case np.ndarray() if value.dtype.kind in "OU":
            return _literal_texts(value.tolist())
    return value


def apply_style(figure: go.Figure, title: str, below: str = "") -> go.Figure:
    """Apply the shared style to a figure, and return it; to be called once, when all else is in the figure.

    All its texts, names of data sets and words of prompts among them, are shown letter by letter.

    Args:
        figure: The figure.
        title: Title, which is wrapped.
        below: Subtitle: how to read the figure.
    """
    scale = _SCALES[_use]
    widths = {title: round(56 / scale), below: round(72 / scale)}
    lines, small = ([literal(line) for line in textwrap.wrap(text, width)] for text, width in widths.items())
    has_panel_titles = bool(list(figure.select_annotations()))
    layout = figure.layout.to_plotly_json()
    for name in ("images", "shapes", "template"):  # without texts
        layout.pop(name, None)
    figure.layout.update(_literal_texts(layout))
    for trace in figure.data:
        trace.update(_literal_texts(trace.to_plotly_json()))
    figure.update_layout(
        template=LIGHT,
        title=dict(
            text="<br>".join(lines), subtitle=dict(text="<br>".join(small)), pad=dict(t=12 + 12 * (len(lines) - 1))
        ),
        margin=dict(
            l=56, r=24, t=22 + 19 * len(lines) + (8 + 16 * len(small)) * bool(small) + 20 * has_panel_titles, b=48
        ),
    )
    return figure if scale == 1 else _scaled(figure, scale)


def _scaled(figure: go.Figure, scale: float) -> go.Figure:
    """The same figure with larger text, lines and dots."""
    layout: Any = figure.layout  # plotly does not type it
    fonts, margin = layout.template.layout, layout.margin
    figure.update_layout(
        font_size=scale * fonts.font.size,
        title=dict(
            font_size=scale * fonts.title.font.size,
            subtitle_font_size=scale * fonts.title.subtitle.font.size,
            pad_t=scale * layout.title.pad.t,
        ),
        margin={side: scale * margin[side] for side in ("l", "r", "t", "b")},
    )
    figure.update_annotations(font_size=scale * fonts.font.size)
    for trace in figure.select_traces(dict(type="scatter")):
        for name, default in (("line.width", 2), ("marker.size", 6)):
            trace[name] = scale * (default if trace[name] is None else trace[name])
    return figure


def bar_marker(colour: str) -> dict[str, Any]:
    """Return the marker of bars whose edge is seen where their height is zero."""
    return dict(color=colour, line=dict(color=colour, width=2))


def add_band(
    figure: go.Figure, name: str, x: Iterable[Any], low: Iterable[Any], high: Iterable[Any], colour: str
) -> None:
    """Add the band of a line, in its colour; the legend shows and hides both together."""
    x, low, high = list(x), list(low), list(high)
    figure.add_scatter(
        legendgroup=name,
        x=[*x, *x[::-1]],
        y=[*low, *high[::-1]],
        mode="lines",
        fill="toself",
        fillcolor="rgba({}, {}, {}, 0.18)".format(*hex_to_rgb(colour)),
        line=dict(width=0),
        showlegend=False,
        hoverinfo="skip",
    )


def colour_bar(title: str) -> dict[str, Any]:
    """Return a colour bar whose title runs beside it, wrapped to its length."""
    return dict(title=dict(text="<br>".join(textwrap.wrap(title, 32)), side="right"))


def cells(values: Any, axes: str) -> Float32[np.ndarray, "row column"]:
    """Return the numbers of a map in float32, which keeps figures small.

    Raises:
        ValueError: If they are not a map, are infinite, or all missing.
    """
    numbers = np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values, np.float32)
    if numbers.ndim != 2 or not numbers.size:
        raise ValueError(f"a map has the axes [{axes}], and these numbers have the shape {list(numbers.shape)}.")
    if np.isinf(numbers).any():
        row, column = np.argwhere(np.isinf(numbers))[0]
        raise ValueError(
            f"the number at [{axes}] = [{row}, {column}] is infinite, and no colour can show it; leave it out (NaN)."
        )
    if np.isnan(numbers).all():
        raise ValueError(f"all of these numbers [{axes}] are NaN: there is nothing to show.")
    return numbers


def colour_range(values: Shaped[np.ndarray, "..."]) -> dict[str, float]:
    """Return the range of colours: from zero up, or around zero if some values are negative."""
    highest = float(np.nanmax(np.abs(values))) or 1.0
    return dict(zmin=-highest if np.nanmin(values) < 0 else 0.0, zmax=highest)


def require_names(axis_names: Any, shape: tuple[int, int], axes: tuple[str, str]) -> None:
    """Raise a ValueError unless every row and column has a name of its own."""
    for names, n, axis in zip(axis_names, shape, axes, strict=True):
        if len(names) != n:
            raise ValueError(f"{len(names)} {axis} were named for {n} of them.")
        if repeated := [name for name in dict.fromkeys(names) if list(names).count(name) > 1]:
            raise ValueError(f"{axis} need different names, and {repeated[0]!r} is there twice.")
