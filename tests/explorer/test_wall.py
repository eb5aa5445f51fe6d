"""The wall of all heads: against loops over cells, and a view of every head."""

import base64
from dataclasses import replace

import numpy as np
import torch
from PIL import Image

import corelens as cl
from corelens.explorer import Explorer
from corelens.explorer.state import ExplorerState
from corelens.explorer.wall import MAX_CELLS, wall_json
from corelens.tokens import Role, TokenMap
from corelens.viz.panels import Grid, View


def values_of(wall: dict) -> np.ndarray:
    """Attention of every head on every pooled cell."""
    numbers = np.frombuffer(base64.b64decode(wall["cells"]), np.uint8)
    return (numbers.reshape(len(wall["heads"]), -1) / 255) ** 2


def test_the_wall_is_the_attention_of_every_head(explorer: Explorer, first: ExplorerState):
    assert explorer.view(first)["wall"] is None
    view = explorer.view(replace(first, wall=True))
    assert len(view["wall"]["heads"]) == 96
    values = values_of(view["wall"])
    for name in ("L0H3", "L2H4", "L5H15"):
        (attention,) = explorer.view(replace(first, heads=(cl.Head.parse(name),)))["maps"]
        assert np.allclose(np.sqrt(values[view["wall"]["heads"].index(name)]), np.sqrt(attention["cells"]), atol=0.003)
    (panel,) = explorer.prompt(first)["panels"]
    assert view["wall"]["grids"] == [[{name: panel["grids"][0][name] for name in "xy"}]]


def test_cells_of_large_pictures_are_pooled_by_their_highest():
    n_rows, n_columns = 35, 48
    n = n_rows * n_columns
    row, column = torch.arange(n) // n_columns, torch.arange(n) % n_columns
    box = torch.stack([column * 2, row * 2, column * 2 + 2, row * 2 + 2], 1).float()
    one = torch.zeros(1, n, dtype=torch.long)
    tokens = TokenMap(
        role=torch.full((1, n), int(Role.IMAGE)), media=one, view=one, row=row[None], column=column[None],
        overview=one > 0, box=box[None], seconds=torch.full((1, n, 2), torch.nan), sizes=(((96, 70),),),
    )  # fmt: skip
    grid = Grid(0, [2.0 * edge for edge in range(n_columns + 1)], [2.0 * edge for edge in range(n_rows + 1)])
    attention = {cl.Head(0, head): torch.rand(n).softmax(0) * 9 for head in range(3)}
    wall = wall_json(tokens, [View(0, "", Image.new("RGB", (96, 70)), [grid])], attention)
    ((pooled,),) = wall["grids"]
    values = values_of(wall)
    assert values.shape == (3, 16 * 16)
    assert values.shape[1] <= MAX_CELLS
    assert (pooled["x"][0], pooled["x"][-1], pooled["y"][-1]) == (0, 96, 70)
    for number, by_position in enumerate(attention.values()):
        cells = by_position.reshape(n_rows, n_columns)
        highest = [
            float(cells[int(top) // 2 : int(bottom) // 2, int(left) // 2 : int(right) // 2].max())
            for top, bottom in zip(pooled["y"], pooled["y"][1:], strict=False)
            for left, right in zip(pooled["x"], pooled["x"][1:], strict=False)
        ]
        assert np.allclose(np.sqrt(values[number]), np.sqrt(highest), atol=0.003)
