"""What a model sees, panel by panel: a picture in its tiles or as a whole, a video at a time."""

import base64
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from corelens.data import Evidence
from corelens.inputs.media import Clip, Picture, Video, load_picture
from corelens.tokens import TokenMap

PIXELS = 800_000
"""Of all pictures that are shown together; larger ones are shrunk, so that figures and messages stay small."""

LOSSLESS = 256**2
"""Pixels up to which a picture is shown as it is, since every one of them is seen; browsers enlarge it."""


@dataclass(frozen=True)
class Grid:
    """Visual tokens in rows and columns: a cell between every two neighbouring edges, in pixels of the original."""

    view: int
    """Which view of the token map."""

    x: list[float]
    y: list[float]


@dataclass(frozen=True)
class View:
    """What one panel shows."""

    media: int
    name: str
    """What tells it from the other panels of its prompt; empty if it is the only one."""

    picture: Image.Image
    grids: list[Grid]
    """None if the model's visual tokens have no place in the picture."""

    seconds: tuple[float, float] | None = None
    """When, of a video."""

    def shows(self, region: Evidence) -> bool:
        """Whether some of a region can be seen here."""
        if region.media != self.media:
            return False
        if self.seconds is None or region.seconds is None:
            return True
        return region.seconds[0] < self.seconds[1] and self.seconds[0] < region.seconds[1]


def media_views(media: Sequence[Picture | Video | Clip], tokens: TokenMap) -> list[View]:
    """The panels of one prompt, in its order; `tokens` is the map of it alone."""
    return [view for number, one in enumerate(media) for view in _views(number, one, tokens, len(media) > 1)]


def flatten_panels(tokens: TokenMap, views: Sequence[View], values: Float[Tensor, "position"]) -> Float[Tensor, "cell"]:
    """Values of all visual tokens in the order in which views, their grids and these grids' rows list them."""
    cells = [tokens.grid(values, view.media, grid.view).flatten() for view in views for grid in view.grids]
    return torch.cat(cells) if cells else values[:0]


def data_url(picture: Image.Image, n_pixels: int) -> str:
    """A picture as a data URL, shrunk to at most so many pixels."""
    shown, scale = picture.convert("RGB"), math.sqrt(n_pixels / (picture.width * picture.height))
    if scale < 1:
        shown.thumbnail((max(1, int(shown.width * scale)), max(1, int(shown.height * scale))))
    file = io.BytesIO()
    shown.save(file, "WebP", quality=85, method=2, lossless=shown.width * shown.height <= LOSSLESS)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()


def _views(number: int, one: Picture | Video | Clip, tokens: TokenMap, several: bool) -> Iterator[View]:
    placed = tokens.media_tokens(number)[0] & (tokens.row[0] >= 0) & (not tokens.no_boxes)
    if isinstance(one, Video | Clip):
        name = f"video {number}" if several else ""
        for view in tokens.view[0, placed].unique().tolist():
            start, end = tokens.seconds[0, placed & (tokens.view[0] == view)][0].tolist()
            time = f"{start:.1f} to {end:.1f} s"
            yield View(number, _joined(name, time), _frame(one, start), [_grid(tokens, number, view)], (start, end))
        if not placed.any():
            yield View(number, name, _frame(one, 0), [])
        return
    name, picture = f"picture {number}" if several else "", load_picture(one)
    overview = placed & tokens.overview[0]
    tiles = placed & ~overview
    for kind, shown in (("tiles", tiles), ("overview", overview)):
        if shown.any():
            grids = [_grid(tokens, number, view) for view in tokens.view[0, shown].unique().tolist()]
            yield View(number, _joined(name, kind if tiles.any() and overview.any() else ""), picture, grids)
    if not placed.any():
        yield View(number, name, picture, [])


def _joined(*names: str) -> str:
    return ", ".join(filter(None, names))


def _frame(video: Video | Clip, second: float) -> Image.Image:
    """The frame that stands for what begins at a time."""
    if isinstance(video, Clip):
        times = np.array(video.metadata.frames_indices or [0]) / (video.metadata.fps or 1)
        return Image.fromarray(video.frames[int(np.abs(times - second).argmin())])
    frame = video.frames[min(round(second * video.fps), len(video.frames) - 1)]
    return Image.fromarray(frame) if isinstance(frame, np.ndarray) else load_picture(frame)


def _grid(tokens: TokenMap, media: int, view: int) -> Grid:
    left, top, right, bottom = tokens.grid(tokens.box[0].T, media, view)
    x, y = torch.cat([left[0], right[0, -1:]]), torch.cat([top[:, 0], bottom[-1:, 0]])
    return Grid(view, *([round(edge, 2) for edge in edges.tolist()] for edges in (x, y)))
