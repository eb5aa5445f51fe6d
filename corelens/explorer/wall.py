"""The wall: attention of all heads over the pictures, small enough to be sent at once."""

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from corelens.heads import Head
from corelens.tokens import TokenMap
from corelens.viz.panels import Grid, View

MAX_CELLS = 256
"""Most cells of a head: a thumbnail shows no more."""


def wall_json(
    tokens: TokenMap, views: Sequence[View], rows: Mapping[Head, Float[Tensor, "position"]]
) -> dict[str, Any]:
    """Pool attention of every head to few cells, by their highest, as JSON.

    Args:
        tokens: Map of the positions of `rows`.
        views: Panels of the prompt.
        rows: Attention of one query, by head.

    Returns:
        `heads`, their names; `grids`, edges of the cells of every panel as in the prompt's panels; and `cells` in
        base64, a byte each, by head, panel, grid and row: 255 times the root of the attention.
    """
    n_grids = sum(len(view.grids) for view in views)
    side = max(2, int((MAX_CELLS / max(n_grids, 1)) ** 0.5))
    stacked = torch.stack(list(rows.values()))
    grids: list[list[dict[str, list[float]]]] = []
    cells = [np.zeros((len(rows), 0))]
    for view in views:
        grids.append([])
        for grid in view.grids:
            y, x = _starts(len(grid.y) - 1, side), _starts(len(grid.x) - 1, side)
            values = tokens.grid(stacked, view.media, grid.view).float().numpy()
            pooled = np.maximum.reduceat(np.maximum.reduceat(values, y, 1), x, 2)
            cells.append(pooled.reshape(len(rows), -1))
            grids[-1].append(_edges(grid, x, y))
    quantised = np.round(255 * np.sqrt(np.concatenate(cells, 1).clip(0, 1))).astype(np.uint8)
    return {
        "heads": [str(head) for head in rows],
        "grids": grids,
        "cells": base64.b64encode(quantised.tobytes()).decode(),
    }


def _starts(n: int, most: int) -> Int[np.ndarray, "cell"]:
    """First of the neighbours that each pooled cell takes together, of `n`."""
    count = min(n, most)
    return np.arange(count) * n // count


def _edges(grid: Grid, x: Int[np.ndarray, "column"], y: Int[np.ndarray, "row"]) -> dict[str, list[float]]:
    return {
        "x": [*(grid.x[start] for start in x), grid.x[-1]],
        "y": [*(grid.y[start] for start in y), grid.y[-1]],
    }
