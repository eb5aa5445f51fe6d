"""Pictures as an explorer shows them: what is drawn, and where its visual tokens lie on it."""

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from corelens.data import Sample
from corelens.media import load_clip, load_picture
from corelens.tokens import TokenMap

LONGEST_SIDE = 900
"""Pixels of what is drawn: a message holds pictures, and tokens are placed in the pixels of the original anyway."""


@dataclass(frozen=True)
class Grid:
    """The visual tokens of one view: a cell between every two neighbouring edges, in pixels of the original."""

    view: int
    x: list[float]
    y: list[float]


@dataclass(frozen=True)
class Panel:
    """A picture, its overview, or the frame that stands for one view of a video."""

    media: int
    label: str
    src: str
    """A data URL."""

    width: int
    """Of the original."""

    height: int
    seconds: tuple[float, float] | None
    """When, of a video."""

    grids: list[Grid]
    """None if the model's visual tokens have no place in the picture."""


def panels_of(sample: Sample, tokens: TokenMap, processor: Any) -> list[Panel]:
    """What is drawn for one sample, in the order of its prompt; `tokens` is the map of it alone."""
    shown = list(_shown(sample, tokens, processor))
    side = int(max(LONGEST_SIDE / max(len(shown), 1) ** 0.5, 160))
    return [
        Panel(media, label, data_url(picture, side), *picture.size, seconds, grids)
        for media, label, picture, seconds, grids in shown
    ]


def spread(tokens: TokenMap, panels: Sequence[Panel], values: Float[Tensor, "position"]) -> Float[Tensor, "cell"]:
    """Values of all visual tokens in the order in which panels, their grids and these grids' rows list them."""
    cells = [tokens.grid(values, panel.media, grid.view).flatten() for panel in panels for grid in panel.grids]
    return torch.cat(cells) if cells else values[:0]


def data_url(picture: Image.Image, side: int) -> str:
    """A picture no longer or wider than some pixels, as a data URL."""
    # Small pictures are as they are, since every pixel of them is seen; browsers enlarge them.
    kind = "png" if max(picture.size) <= min(side, 256) else "jpeg"
    picture = picture.convert("RGB")
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    picture.save(file, kind, quality=85)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def _shown(sample: Sample, tokens: TokenMap, processor: Any) -> Iterator[tuple[int, str, Image.Image, Any, list[Grid]]]:
    n = len(sample.images)
    for media, picture in enumerate(sample.images):
        name = f"picture {media + 1}" if n + len(sample.videos) > 1 else ""
        loaded = load_picture(picture)
        views = _views(tokens, media)
        tiles = [view for view in views if not _is_overview(tokens, media, view)]
        for label, own in (("tiles", tiles), ("overview", [view for view in views if view not in tiles])):
            if own or (not views and label == "tiles"):
                both = 0 < len(tiles) < len(views)
                grids = [_grid(tokens, media, view) for view in own]
                yield media, ", ".join(filter(None, [name, label if both else ""])), loaded, None, grids
    for media, video in enumerate(sample.videos, n):
        clip = load_clip(video, processor)
        fps = clip.metadata.fps or 1
        times = torch.tensor([index / fps for index in clip.metadata.frames_indices or []])
        for view in _views(tokens, media) or [-1]:
            if view < 0:
                yield media, f"video {media + 1}", Image.fromarray(clip.frames[0]), None, []
                continue
            of_view = (tokens.media == media) & (tokens.view == view)
            start, end = tokens.seconds[of_view][0].tolist()
            frame = int((times - start).abs().argmin())
            yield (
                media, f"{start:.1f} to {end:.1f} s", Image.fromarray(clip.frames[frame]), (start, end),
                [_grid(tokens, media, view)],
            )  # fmt: skip


def _views(tokens: TokenMap, media: int) -> list[int]:
    """The views of a picture or video whose tokens have a place."""
    placed = tokens.visual & (tokens.media == media) & (tokens.row >= 0)
    return [] if tokens.no_boxes else tokens.view[placed].unique().tolist()


def _is_overview(tokens: TokenMap, media: int, view: int) -> bool:
    return bool(tokens.overview[(tokens.media == media) & (tokens.view == view)].any())


def _grid(tokens: TokenMap, media: int, view: int) -> Grid:
    own = (tokens.media == media) & (tokens.view == view) & (tokens.row >= 0)
    edges = []
    for first_of, along, low in ((tokens.row, tokens.column, 0), (tokens.column, tokens.row, 1)):
        line = own & (first_of == 0)
        order = along[line].argsort()
        boxes = tokens.box[line][order]
        edges.append([*boxes[:, low].tolist(), float(boxes[-1, low + 2])])
    return Grid(view, *[[round(edge, 2) for edge in own_edges] for own_edges in edges])
