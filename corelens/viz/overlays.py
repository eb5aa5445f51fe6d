"""Attention over the media of a prompt: pictures, pages and the frames of videos."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
import torch
from jaxtyping import Float
from PIL import Image
from plotly.subplots import make_subplots
from torch import Tensor

from corelens.data import Evidence
from corelens.inputs.media import Clip, Picture, Video, load_picture
from corelens.tokens import Box, TokenMap
from corelens.viz.panels import PIXELS, Grid, data_url, media_views
from corelens.viz.styles import HEAT, apply_style, colour_bar


def attention_over_picture(
    picture: Picture,
    attention: Float[Tensor, "row column"],
    region: Box,
    title: str,
    evidence: Sequence[Box] = (),
    highest: float | None = None,
) -> go.Figure:
    """Draw one map of attention over one picture, a cell per visual token; `attention_over_media` takes token maps.

    Marks: the redder a cell, the more attention it gets; clear means none. Evidence is outlined in white.

    Args:
        picture: The original picture.
        attention: Attention of one query token, or the mean of several, laid out as in the picture.
        region: The part of the picture that the grid covers.
        title: Title of the figure.
        evidence: Regions to outline.
        highest: Attention that gets the strongest colour; the highest in the picture by default.

    Raises:
        ValueError: If some attention is negative or NaN, or the region is empty.
    """
    _require_attention("attention", attention)
    if not (region.left < region.right and region.top < region.bottom):
        raise ValueError(f"{region} is empty: it needs left < right and top < bottom.")
    rows, columns = attention.shape
    across = torch.linspace(region.left, region.right, columns + 1)
    down = torch.linspace(region.top, region.bottom, rows + 1)
    figure = make_subplots(1, 1)
    _draw(
        figure, (1, 1), load_picture(picture), [(attention, Grid(0, across.tolist(), down.tolist()))], evidence, PIXELS
    )
    return _with_heat(figure, highest or float(attention.max()), title)


def attention_over_media(
    media: Sequence[Picture | Video | Clip],
    attention: Mapping[str, Float[Tensor, "position"]],
    tokens: TokenMap,
    title: str,
    evidence: Sequence[Evidence] = (),
    n_pixels: int = PIXELS,
) -> go.Figure:
    """Draw attention over all pictures, pages and frames of a prompt; of one head, or of several side by side.

    Marks: a panel is a picture, an overview of it, or a frame of a video. In it a cell is a visual token over the
    pixels that it stands for; the redder, the more attention it gets, on one scale for all panels; clear means none.
    Titles state the share of the attention that falls on a panel; the rest goes to text and delimiters. Evidence is
    outlined in white. Large pictures are shrunk.

    Args:
        media: The pictures and videos of the prompt, in its order.
        attention: By the name that the figure shows, e.g. `L3H14`: attention of one query token, or the mean of
            several, to every position.
        tokens: The map of the prompt.
        title: Title of the figure.
        evidence: Regions to outline; of a video, in the panels that show some of their time.
        n_pixels: Most pixels of all panels together.

    Raises:
        ValueError: If the map is of several samples, does not fit media or attention, or has no boxes.
    """
    _require_match(media, attention, tokens)
    views = [view for view in media_views(media, tokens) if view.grids]
    n_panels = len(attention) * len(views)
    columns = len(views) if len(attention) > 1 and len(views) > 1 else min(n_panels, 4)
    panels = [
        (name, view, [(tokens.grid(row, view.media, grid.view), grid) for grid in view.grids])
        for name, row in attention.items()
        for view in views
    ]
    titles = [
        ", ".join(filter(None, [name, view.name, f"{sum(float(values.sum()) for values, _ in maps):.1%}"]))
        for name, view, maps in panels
    ]
    rows = math.ceil(n_panels / columns)
    figure = make_subplots(
        rows, columns, subplot_titles=titles, horizontal_spacing=0.02, vertical_spacing=min(0.08, 0.3 / rows)
    )
    for number, (_, view, maps) in enumerate(panels):
        outlined = [region.box or Box(0, 0, *view.picture.size) for region in evidence if view.shows(region)]
        cell = (number // columns + 1, number % columns + 1)
        _draw(figure, cell, view.picture, maps, outlined, n_pixels // n_panels)
    figure.update_annotations(font_size=12)
    tallest = max(view.picture.height / view.picture.width for view in views)
    figure.update_layout(height=110 + rows * min(30 + 760 / columns * tallest, 420))
    highest = max(float(row[tokens.visual[0]].max()) for row in attention.values())
    return _with_heat(figure, highest, title, "Percentages: share of all attention that falls on the panel.")


def _draw(
    figure: go.Figure,
    cell: tuple[int, int],
    picture: Image.Image,
    maps: Sequence[tuple[Float[Tensor, "row column"], Grid]],
    outlined: Sequence[Box],
    n_pixels: int,
) -> None:
    """Draw a picture, maps over it and outlines into a panel."""
    row, column = cell
    for values, grid in maps:
        figure.add_trace(
            go.Heatmap(
                z=values.float().cpu().numpy(),
                x=grid.x,
                y=grid.y,
                coloraxis="coloraxis",
                hovertemplate="%{z:.4f} at (%{x:.0f}, %{y:.0f}) px<extra></extra>",
            ),
            row,
            column,
        )
    place = dict(x=0, y=0, sizex=picture.width, sizey=picture.height, sizing="stretch", layer="below")
    figure.add_layout_image(source=data_url(picture, n_pixels), **place, row=row, col=column)
    for box in outlined:
        # Dark around white, to be visible on any picture.
        for colour, width in (("rgba(0,0,0,0.75)", 5), ("white", 2.5)):
            sides = dict(x0=box.left, x1=box.right, y0=box.top, y1=box.bottom)
            figure.add_shape(type="rect", **sides, line=dict(color=colour, width=width), row=row, col=column)
    panel: Any = figure.data[-1]  # plotly's annotation is too narrow
    figure.update_xaxes(range=[0, picture.width], visible=False, constrain="domain", row=row, col=column)
    figure.update_yaxes(
        range=[picture.height, 0],
        visible=False,
        scaleanchor=panel.xaxis,
        constrain="domain",
        constraintoward="top",
        row=row,
        col=column,
    )


def _with_heat(figure: go.Figure, highest: float, title: str, below: str = "") -> go.Figure:
    figure.update_layout(coloraxis=dict(colorscale=HEAT, cmin=0, cmax=highest or 1.0, colorbar=colour_bar("attention")))
    return apply_style(figure, title, below).update_layout(margin_b=16)


def _require_attention(name: str, attention: Float[Tensor, "*axes"]) -> None:
    if not (attention >= 0).all() or attention.isinf().any():
        raise ValueError(f"{name} holds negative numbers, NaN or infinity; attention is a number from 0 up.")


def _require_match(
    media: Sequence[Picture | Video | Clip], attention: Mapping[str, Float[Tensor, "..."]], tokens: TokenMap
) -> None:
    if len(tokens) != 1:
        raise ValueError(f"this map holds {len(tokens)} samples; choose one first, e.g. tokens[0].")
    if len(media) != len(tokens.sizes[0]):
        raise ValueError(f"{len(media)} pictures and videos were given for a prompt with {len(tokens.sizes[0])}.")
    if not media or not attention:
        raise ValueError("there is nothing to show: it needs a picture or video, and attention by name.")
    if tokens.no_boxes:
        raise ValueError(f"attention cannot be laid over the picture: {tokens.no_boxes}")
    for number, (medium, (width, height)) in enumerate(zip(media, tokens.sizes[0], strict=True)):
        is_video = isinstance(medium, Video | Clip)
        if is_video != bool((tokens.video & (tokens.media == number)).any()):
            raise ValueError(f"media {number} is no {'video' if is_video else 'picture'} in the prompt.")
        if not is_video and (size := load_picture(medium).size) != (width, height):
            raise ValueError(
                f"picture {number} has {size[0]} x {size[1]} pixels, and in the prompt {width} x {height}."
            )
    for name, row in attention.items():
        if row.shape != tokens.role.shape[1:]:
            raise ValueError(
                f"{name} has the shape {list(row.shape)}, and the prompt has {tokens.role.shape[1]} positions."
            )
        _require_attention(name, row)
