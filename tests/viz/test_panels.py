"""Panels of a prompt's media."""

from dataclasses import replace

import torch
from PIL import Image

from corelens.tokens import TokenMap
from corelens.viz.panels import flatten_panels, media_views


def test_tiles_and_an_overview_are_panels_of_their_own():
    tiled = TokenMap(
        role=torch.tensor([[5, 5, 5, 5, 5]]),
        media=torch.tensor([[0, 0, 0, 0, 0]]),
        view=torch.tensor([[0, 1, 2, 2, 2]]),
        overview=torch.tensor([[False, False, True, True, True]]),
        row=torch.tensor([[0, 0, 0, 0, 0]]),
        column=torch.tensor([[0, 0, 0, 1, 2]]),
        box=torch.tensor([[[0.0, 0, 5, 8], [5, 0, 10, 8], [0, 0, 3, 8], [3, 0, 6, 8], [6, 0, 10, 8]]]),
        seconds=torch.full((1, 5, 2), torch.nan),
        sizes=(((10, 8),),),
    )
    picture = Image.new("RGB", (10, 8))
    tiles, overview = media_views([picture], tiled)
    assert (tiles.name, overview.name) == ("tiles", "overview")
    assert [grid.x for grid in tiles.grids] == [[0, 5], [5, 10]]
    assert [grid.x for grid in overview.grids] == [[0, 3, 6, 10]]
    assert flatten_panels(tiled, [tiles, overview], torch.arange(5.0)).tolist() == [0, 1, 2, 3, 4]
    without_boxes = replace(
        tiled, view=-torch.ones_like(tiled.view), row=-torch.ones_like(tiled.row), no_boxes="learned"
    )
    (view,) = media_views([picture], without_boxes)
    assert view.grids == []
