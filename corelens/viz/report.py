"""One HTML file that holds text, tables and figures and needs no network."""

from collections.abc import Sequence
from html import escape

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.55 system-ui, sans-serif; color: #1f2430; background: #f6f7f9; margin: 0; }
main { max-width: 1080px; margin: 0 auto; padding: 40px 24px 80px; }
h1 { font-size: 28px; line-height: 1.25; margin: 0 0 8px; }
h2 { font-size: 19px; margin: 40px 0 8px; }
.lead { font-size: 18px; max-width: 46em; }
.card { background: #fff; border: 1px solid #e6e9ee; border-radius: 10px; padding: 12px; margin: 16px 0; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 16px; }
@media (max-width: 800px) { .pair { grid-template-columns: 1fr; } }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: 7px 10px; border-bottom: 1px solid #e6e9ee; text-align: right; }
th:first-child, td:first-child, th:last-child, td:last-child { text-align: left; }
td:last-child { color: #5c6673; font-size: 13px; }
tr.strong td { font-weight: 650; color: #d1495b; }
small, .notes { color: #5c6673; }
"""


class Page:
    """A page built from top to bottom."""

    def __init__(self, title: str, lead: str) -> None:
        self.title = title
        self.parts = [f"<h1>{escape(title)}</h1>", f'<p class="lead">{escape(lead)}</p>']

    def heading(self, text: str) -> None:
        self.parts.append(f"<h2>{escape(text)}</h2>")

    def text(self, text: str) -> None:
        self.parts.append(f'<p class="notes">{escape(text)}</p>')

    def table(self, header: Sequence[str], rows: Sequence[Sequence[str]], strong: int) -> None:
        """A table; `strong` is the row to stress."""
        head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
        body = "".join(
            f"<tr{' class=strong' if index == strong else ''}>"
            + "".join(f"<td>{escape(c)}</td>" for c in row)
            + "</tr>"
            for index, row in enumerate(rows)
        )
        self.parts.append(f'<div class="card"><table><tr>{head}</tr>{body}</table></div>')

    def figures(self, *figures: go.Figure, height: int = 380) -> None:
        """One figure across the page, or two side by side."""
        cards = [
            '<div class="card">'
            + figure.to_html(
                full_html=False, include_plotlyjs=False, default_height=f"{height}px", config={"displayModeBar": False}
            )
            + "</div>"
            for figure in figures
        ]
        self.parts.append(f'<div class="pair">{"".join(cards)}</div>' if len(cards) > 1 else cards[0])

    def html(self) -> str:
        return (
            f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(self.title)}</title>'
            f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style>'
            f"<script>{get_plotlyjs()}</script><main>{''.join(self.parts)}</main></html>"
        )
