"""Panels of a prompt's media: a picture in its tiles or as an overview, a frame of a video."""

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
"""Most pixels of all pictures that are shown together; others are shrunk, so that figures and messages stay small."""

LOSSLESS = 256**2
"""Most pixels of a picture that is sent without loss, since every one of them is visible once browsers enlarge it."""


@dataclass(frozen=True)
class Grid:
    """Visual tokens in rows and columns: a cell between every two neighbouring edges, in pixels of the original."""

    view: int
    """Number of the view in the token map."""

    x: list[float]
    y: list[float]


@dataclass(frozen=True)
class View:
    """One panel: a picture or a frame, and the visual tokens on it."""

    media: int
    name: str
    """Name among the panels of its prompt; empty if it is the only one."""

    picture: Image.Image
    grids: list[Grid]
    """Grids of visual tokens; empty if the model's visual tokens have no boxes."""

    seconds: tuple[float, float] | None = None
    """Start and end of a video's panel."""

    def shows(self, region: Evidence) -> bool:
        """True if the panel shows a part of a region."""
        if region.media != self.media:
            return False
        if self.seconds is None or region.seconds is None:
            return True
        return region.seconds[0] < self.seconds[1] and self.seconds[0] < region.seconds[1]


def media_views(media: Sequence[Picture | Video | Clip], tokens: TokenMap) -> list[View]:
    """Return the panels of one prompt, in its order; `tokens` is the map of it alone."""
    return [view for number, medium in enumerate(media) for view in _views(number, medium, tokens, len(media) > 1)]


def flatten_panels(tokens: TokenMap, views: Sequence[View], values: Float[Tensor, "position"]) -> Float[Tensor, "cell"]:
    """Return the values of all visual tokens, in the order of views, their grids, and the grids' rows."""
    cells = [tokens.grid(values, view.media, grid.view).flatten() for view in views for grid in view.grids]
    return torch.cat(cells) if cells else values[:0]


def data_url(picture: Image.Image, n_pixels: int) -> str:
    """Encode a picture as a data URL, shrunk to at most `n_pixels`."""
    shrunk, scale = picture.convert("RGB"), math.sqrt(n_pixels / (picture.width * picture.height))
    if scale < 1:
        shrunk.thumbnail((max(1, int(shrunk.width * scale)), max(1, int(shrunk.height * scale))))
    file = io.BytesIO()
    shrunk.save(file, "WebP", quality=85, method=2, lossless=shrunk.width * shrunk.height <= LOSSLESS)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()


def _views(number: int, medium: Picture | Video | Clip, tokens: TokenMap, several: bool) -> Iterator[View]:
    has_box = tokens.media_tokens(number)[0] & (tokens.row[0] >= 0) & (not tokens.no_boxes)
    if isinstance(medium, Video | Clip):
        name = f"video {number}" if several else ""
        for view in tokens.view[0, has_box].unique().tolist():
            start, end = tokens.seconds[0, has_box & (tokens.view[0] == view)][0].tolist()
            time = f"{start:.1f} to {end:.1f} s"
            yield View(
                number, _join_names(name, time), _frame(medium, start), [_grid(tokens, number, view)], (start, end)
            )
        if not has_box.any():
            yield View(number, name, _frame(medium, 0), [])
        return
    name, picture = f"picture {number}" if several else "", load_picture(medium)
    overview = has_box & tokens.overview[0]
    tiles = has_box & ~overview
    for kind, mask in (("tiles", tiles), ("overview", overview)):
        if mask.any():
            grids = [_grid(tokens, number, view) for view in tokens.view[0, mask].unique().tolist()]
            yield View(number, _join_names(name, kind if tiles.any() and overview.any() else ""), picture, grids)
    if not has_box.any():
        yield View(number, name, picture, [])


def _join_names(*names: str) -> str:
    return ", ".join(filter(None, names))


def _frame(video: Video | Clip, second: float) -> Image.Image:
    """Frame of a video that is closest to a time."""
    if isinstance(video, Clip):
        times = np.array(video.metadata.frames_indices or [0]) / (video.metadata.fps or 1)
        return Image.fromarray(video.frames[int(np.abs(times - second).argmin())])
    frame = video.frames[min(round(second * video.fps), len(video.frames) - 1)]
    return Image.fromarray(frame) if isinstance(frame, np.ndarray) else load_picture(frame)


def _grid(tokens: TokenMap, media: int, view: int) -> Grid:
    left, top, right, bottom = tokens.grid(tokens.box[0].T, media, view)
    x, y = torch.cat([left[0], right[0, -1:]]), torch.cat([top[:, 0], bottom[-1:, 0]])
    return Grid(view, *([round(edge, 2) for edge in edges.tolist()] for edges in (x, y)))
