"""One HTML file that holds text, tables and figures, needs no network, and is light or dark as its reader's screen."""

import json
import re
from collections.abc import Mapping, Sequence
from html import escape

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from corelens.viz.style import DARK, LIGHT

_STYLE = """
:root {
  color-scheme: light dark;
  --ink: #1f2430; --quiet: #5c6673; --page: #f6f7f9; --card: #ffffff; --line: #e6e9ee; --strong: #c2334a;
}
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8eaed; --quiet: #a3adb8; --page: #0c0e13; --card: #14171f; --line: #2c313c; --strong: #ff7f93; }
}
body { font: 17px/1.55 system-ui, sans-serif; color: var(--ink); background: var(--page); margin: 0; }
main { max-width: 1080px; margin: 0 auto; padding: 40px 24px 80px; overflow-wrap: break-word; }
h1 { font-size: 28px; line-height: 1.25; margin: 0 0 8px; }
h2 { font-size: 21px; margin: 44px 0 8px; }
h3 { font-size: 17px; line-height: 1.35; margin: 4px 8px 0; }
.lead { font-size: 19px; max-width: 46em; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 12px; margin: 16px 0; }
.table { overflow-x: auto; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 16px; margin: 16px 0; }
.pair .card { min-width: 0; margin: 0; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: 7px 10px; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th { vertical-align: bottom; }
th.number, td.number { text-align: right; }
td.number { white-space: nowrap; }
tr:last-child td { border-bottom: 0; }
tr.strong td { font-weight: 650; color: var(--strong); }
.notes, .below { color: var(--quiet); }
.below { margin: 2px 8px 0; font-size: 15px; }
@media (max-width: 800px) {
  main { padding: 20px 12px 60px; }
  .pair { grid-template-columns: 1fr; }
  .card { padding: 8px 4px; }
  th, td { padding: 6px; font-size: 15px; }
  td:nth-child(2):not(.number) { min-width: 6em; }
  td.number { white-space: normal; }
  .table td:first-child, .table th:first-child { position: sticky; left: 0; background: var(--card); }
}
"""

_FOLLOW = """
const templates = TEMPLATES, dark = matchMedia("(prefers-color-scheme: dark)");
const follow = () => document.querySelectorAll(".js-plotly-plot")
  .forEach((figure) => Plotly.relayout(figure, { template: templates[dark.matches ? "dark" : "light"] }));
dark.addEventListener("change", follow);
follow();
"""
"""Gives figures the template of the page."""


class Page:
    """A page built from top to bottom."""

    def __init__(self, title: str, lead: str) -> None:
        self.title = title
        self.parts = [f"<h1>{escape(title)}</h1>", f'<p class="lead">{escape(lead)}</p>']
        self.n_figures = 0

    def heading(self, text: str) -> None:
        self.parts.append(f"<h2>{escape(text)}</h2>")

    def text(self, text: str) -> None:
        self.parts.append(f'<p class="notes">{escape(text)}</p>')

    def table(self, header: Sequence[str], rows: Sequence[Sequence[str]], strong: int = -1) -> None:
        """A table; `strong` is the row to stress. Columns of numbers stand to the right."""
        kinds = [' class="number"' if _are_numbers(column) else "" for column in zip(*rows, strict=True)]
        lines = [(header, "th", ""), *((row, "td", " class=strong" * (n == strong)) for n, row in enumerate(rows))]
        body = "".join(
            f"<tr{mark}>"
            + "".join(f"<{tag}{kind}>{escape(cell)}</{tag}>" for cell, kind in zip(cells, kinds, strict=True))
            + "</tr>"
            for cells, tag, mark in lines
        )
        self.parts.append(f'<div class="card table"><table>{body}</table></div>')

    def facts(self, facts: Mapping[str, str]) -> None:
        """What belongs to each name."""
        body = "".join(f"<tr><td>{escape(name)}</td><td>{escape(fact)}</td></tr>" for name, fact in facts.items())
        self.parts.append(f'<div class="card table"><table>{body}</table></div>')

    def figures(self, *figures: go.Figure, height: int = 380) -> None:
        """One figure across the page, or several side by side."""
        cards = "".join(_card(figure, height, f"figure-{self.n_figures + n}") for n, figure in enumerate(figures))
        self.n_figures += len(figures)
        self.parts.append(f'<div class="pair">{cards}</div>' if len(figures) > 1 else cards)

    def html(self) -> str:
        templates = {name: one.to_plotly_json() for name, one in (("light", LIGHT), ("dark", DARK))}
        follow = _FOLLOW.replace("TEMPLATES", json.dumps(templates, default=lambda one: one.to_plotly_json()))
        return (
            f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(self.title)}</title>'
            f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style>'
            f"<script>{get_plotlyjs()}</script><main>{''.join(self.parts)}</main><script>{follow}</script></html>"
        )


def _are_numbers(cells: Sequence[str]) -> bool:
    return any(cells) and all(re.match(r"[-+]?[\d.]", cell) for cell in cells if cell)


def _card(figure: go.Figure, height: int, name: str) -> str:
    """A figure whose title is the page's text, which takes as many lines as it needs on any screen."""
    shown, title = go.Figure(figure), figure.layout.title
    panels = bool(list(figure.select_annotations()))  # which have titles of their own
    shown.layout.title = {}
    shown.update_layout(margin_t=16 + 20 * panels, font_size=13)
    above, below = (escape((text or "").replace("<br>", " ")) for text in (title.text, title.subtitle.text))
    return (
        f'<div class="card"><h3>{above}</h3><p class="below">{below}</p>'
        + shown.to_html(
            full_html=False,
            include_plotlyjs=False,
            div_id=name,
            default_height=f"{figure.layout.height or height}px",
            config={"displayModeBar": False, "responsive": True},
        )
        + "</div>"
    )
