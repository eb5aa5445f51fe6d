"""One HTML file of text, tables and figures that needs no network and follows its reader's light or dark screen."""

import base64
import html
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

import plotly.graph_objects as go
from jinja2 import Environment, PackageLoader
from markupsafe import Markup
from plotly.io.json import to_json_plotly

from corelens.viz.styles import DARK, LIGHT

_ENVIRONMENT = Environment(
    loader=PackageLoader("corelens", "reports"), autoescape=True, trim_blocks=True, lstrip_blocks=True
)

PLOTLY = files("corelens.reports") / "plotly-cartesian.min.js.gz"
"""The part of plotly.js 4.1.1 that draws axes, bars, lines, boxes and heatmaps (MIT licence): a tenth of the whole."""


class Page:
    """A page built from top to bottom."""

    def __init__(self, title: str, lead: str) -> None:
        self.title, self.lead = title, lead
        self.parts: list[dict[str, Any]] = []

    def heading(self, text: str) -> None:
        """Add a heading."""
        self.parts.append({"heading": text})

    def text(self, text: str) -> None:
        """Add a paragraph."""
        self.parts.append({"text": text})

    def table(self, header: Sequence[str], rows: Sequence[Sequence[str]], strong: int = -1) -> None:
        """Add a table; `strong` is the row to stress. Columns of numbers are aligned right."""
        kinds = [Markup(' class="number"') if _are_numbers(column) else "" for column in zip(*rows, strict=True)]
        self.parts.append({"header": header, "rows": rows, "kinds": kinds, "strong": strong})

    def facts(self, facts: Mapping[str, str]) -> None:
        """Add a table of names and their values."""
        self.parts.append({"rows": list(facts.items()), "kinds": ["", ""], "strong": -1})

    def figures(self, *figures: go.Figure, height: int = 380) -> None:
        """Add one figure across the page, or several side by side."""
        self.parts.append({"figures": [_card(figure, height) for figure in figures]})

    def html(self, library: str = "") -> str:
        """Return the page.

        Args:
            library: Address of a file with `plotly_script`, for pages that share it; the page holds it by default.
        """
        return _ENVIRONMENT.get_template("page.html.jinja").render(
            title=self.title,
            lead=self.lead,
            parts=self.parts,
            library=library,
            plotly=Markup("" if library else plotly_script()),
            light=Markup(to_json_plotly(LIGHT)),
            dark=Markup(to_json_plotly(DARK)),
        )


def plotly_script() -> str:
    """Return the JavaScript that holds plotly.js, which pages unpack."""
    return f'const PLOTLY = "{base64.b64encode(PLOTLY.read_bytes()).decode()}";'


def link(text: str, address: str) -> Markup:
    """Return a link, as a paragraph or cell of a page."""
    return Markup('<a href="{}">{}</a>').format(address, text)


def _are_numbers(cells: Sequence[str]) -> bool:
    return any(cells) and all(re.match(r"[-+]?[\d.]", cell) for cell in cells if cell)


def _card(figure: go.Figure, height: int) -> dict[str, Any]:
    """Title, subtitle, height and JSON of a figure; its title is text of the page, which wraps on any screen."""
    untitled = go.Figure(figure)
    layout: Any = untitled.layout  # plotly does not type it
    title, subtitle = (
        html.unescape((text or "").replace("<br>", " ")) for text in (layout.title.text, layout.title.subtitle.text)
    )
    has_panel_titles = bool(list(figure.select_annotations()))
    layout.title = {}
    untitled.update_layout(margin_t=16 + 20 * has_panel_titles, font_size=13)
    # plotly escapes "<" in JSON, so that no text of a figure can end the script that holds it.
    code = Markup(to_json_plotly(untitled))
    return {"title": title, "subtitle": subtitle, "height": layout.height or height, "json": code}
