"""Rules from a box in pixels to visual tokens.

Token maps know which pixels each token stands for; a rule says which of the tokens a box means. `as_published` alone
looks at the grid of patches and not at these pixels: it is the map that the paper prints, which is not where the
patches of a merged token lie. See `TokenMap.in_box`.
"""

from collections.abc import Sequence
from math import floor
from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

BoxRule = Literal["overlap", "centre", "cover", "fraction", "as_published"]
"""Rule that turns a region of pixels into positions; see `TokenMap.in_box`."""


def tokens_in_box(
    pixels: Float[Tensor, "*shape 4"], box: Sequence[float | int], rule: BoxRule
) -> Bool[Tensor, "*shape"] | Float[Tensor, "*shape"]:
    """Select tokens by the rectangles of pixels that they stand for; NaN stands for none.

    Args:
        pixels: Left, top, right, bottom of every token.
        box: Likewise.
        rule: Any but `as_published`.
    """
    left, top, right, bottom = box
    x0, y0, x1, y1 = pixels.unbind(-1)
    width = torch.minimum(x1, torch.tensor(right)) - torch.maximum(x0, torch.tensor(left))
    height = torch.minimum(y1, torch.tensor(bottom)) - torch.maximum(y0, torch.tensor(top))
    covered = (width.clamp(min=0) * height.clamp(min=0) / ((x1 - x0) * (y1 - y0))).nan_to_num(0)
    if rule == "centre":
        x, y = (x0 + x1) / 2, (y0 + y1) / 2
        return (left <= x) & (x < right) & (top <= y) & (y < bottom)
    return covered if rule == "fraction" else covered > (0.5 if rule == "cover" else 0)


def published_tokens(
    box: Sequence[float | int], size: tuple[int, int], rows: int, columns: int, merge: int
) -> Int[Tensor, "token"]:
    r"""Return the numbers of the tokens of a box in their view, as the paper prints the map.

    $$\left\{\left\lfloor \frac{y' W_\text{grid} + x'}{c} \right\rfloor :
    x' \in [x'_\text{min}, x'_\text{max}],\ y' \in [y'_\text{min}, y'_\text{max}]\right\}$$

    The corners are those of the box in the grid of patches, rounded down and inclusive, so that every patch that the
    box touches counts, and c is the number of patches in a token. These are not the tokens in which the patches lie: c
    patches in a row of patches get one number, while the model merges a square of them.

    Args:
        box: Left, top, right, bottom in pixels, within the picture.
        size: Width and height of the picture.
        rows: Rows of visual tokens of the view, which shows the whole picture.
        columns: Columns likewise.
        merge: Patches along a side of the square that becomes a token.

    Returns:
        In ascending order; tokens are counted from zero, row by row.

    Source:
        Equations 2 to 5 (appendix C.1) of arXiv 2606.05843, as published.
    """
    n_across, n_down = columns * merge, rows * merge
    left, right = (min(n_across - 1, floor(x * n_across / size[0])) for x in (box[0], box[2]))
    top, bottom = (min(n_down - 1, floor(y * n_down / size[1])) for y in (box[1], box[3]))
    patches = torch.arange(top, bottom + 1)[:, None] * n_across + torch.arange(left, right + 1)
    return (patches // merge**2).unique()


def grid_boxes(region: Sequence[float | int], rows: int, columns: int) -> Float[Tensor, "token 4"]:
    """Rectangles of a grid of visual tokens that tile a region, row by row."""
    left, top, right, bottom = region
    x = torch.linspace(left, right, columns + 1)
    y = torch.linspace(top, bottom, rows + 1)
    corners = [
        rearrange(edge.expand(rows, columns), "row column -> (row column)")
        for edge in (x[:-1], y[:-1, None], x[1:], y[1:, None])
    ]
    return torch.stack(corners, -1)
