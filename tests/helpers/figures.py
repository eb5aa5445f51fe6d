"""Scores, pictures and token maps that figures are drawn of."""

import math
from typing import Any

import numpy as np
import plotly.graph_objects as go
import torch
from PIL import Image

from corelens import Box, HeadScores
from corelens.tokens import Role, TokenMap, grid_boxes


def head_scores(values: torch.Tensor, name: str = "mass") -> HeadScores:
    """Scores of one sample."""
    return HeadScores(values[None].float(), name, ("a",))


def noise(width: int, height: int) -> Image.Image:
    """A picture of noise."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


def token_map(
    views: list[tuple[int, int, int, Box]],
    sizes: list[tuple[int, int]],
    seconds: list[tuple[float, float]] | None = None,
    overview: int = -1,
) -> TokenMap:
    """Token map of one sample: views (media, rows, columns, region), then a question of two positions."""
    columns: dict[str, list[Any]] = {name: [] for name in ("role", "media", "view", "overview", "row", "column")}
    boxes, times = [], []
    for number, (media, n_rows, n_columns, region) in enumerate(views):
        view = sum(earlier[0] == media for earlier in views[:number])
        n = n_rows * n_columns
        columns["role"] += [Role.IMAGE if seconds is None else Role.VIDEO] * n
        columns["media"] += [media] * n
        columns["view"] += [view] * n
        columns["overview"] += [number == overview] * n
        columns["row"] += [index // n_columns for index in range(n)]
        columns["column"] += [index % n_columns for index in range(n)]
        boxes.append(grid_boxes(region, n_rows, n_columns))
        times += [(math.nan, math.nan) if seconds is None else seconds[number]] * n
    for name, value in (("role", Role.QUESTION), ("media", -1), ("view", -1), ("row", -1), ("column", -1)):
        columns[name] += [value] * 2
    columns["overview"] += [False] * 2
    return TokenMap(
        **{name: torch.tensor(values)[None] for name, values in columns.items()},
        box=torch.cat([*boxes, torch.full((2, 4), math.nan)])[None],
        seconds=torch.tensor([*times, (math.nan, math.nan), (math.nan, math.nan)])[None],
        sizes=(tuple(sizes),),
    )


def heatmaps(figure: go.Figure) -> list[Any]:
    """Heat maps of a figure."""
    return [trace for trace in figure.data if trace.type == "heatmap"]


def panel_titles(figure: go.Figure) -> list[str]:
    """Titles of a figure's panels."""
    layout: Any = figure.layout
    return [annotation.text for annotation in layout.annotations]
