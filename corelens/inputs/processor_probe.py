"""Measurement of the regions of a picture that a processor's outputs show, by a picture of coordinates.

Processors resize, crop, pad and tile in ways of their own, and none of them is worked out here: a picture whose colours
encode the place of each pixel goes the same way, and the colours of the outputs give the region that they show.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from PIL import Image

from corelens.tokens import Box

PROBE_BLUE = 170
"""Blue channel of a picture of coordinates; no processor pads with it."""

_GOLDEN = (math.sqrt(5) - 1) / 2
"""Its multiples, modulo one, are spread evenly over [0, 1)."""


@dataclass(frozen=True)
class ProcessorProbe:
    """The outputs of a processor for pictures or videos of one size, and the regions that they show."""

    processor: Any
    size: tuple[int, int]
    """Width and height in pixels."""

    n_copies: int = 1
    """Number of pictures of coordinates in the prompt: some processors tile a picture only if it is the only one."""

    @cached_property
    def tensors(self) -> Mapping[str, Any]:
        """Outputs of the processor for the picture of coordinates."""
        return self.processor(
            text=[self.processor.image_token * self.n_copies],
            images=[[Image.fromarray(coordinate_image(*self.size))] * self.n_copies],
            do_normalize=False,
            do_rescale=False,
            return_tensors="pt",
        )

    @cached_property
    def tiles(self) -> list[Box]:
        """The region of the picture that each of the processor's tiles shows."""
        tiles = self.tensors["pixel_values"].double().numpy()
        tiles = tiles.reshape(-1, *tiles.shape[-3:])
        return self.regions(tiles[: len(tiles) // self.n_copies])

    @cached_property
    def frame(self) -> Box:
        """The region that every frame of a video shows."""
        output = self.processor.video_processor(
            [coordinate_image(*self.size)[None]], do_normalize=False, do_rescale=False, do_sample_frames=False,
            input_data_format="channels_last", return_tensors="pt",
        )  # fmt: skip
        return self.regions(output["pixel_values_videos"][0][:1].double().numpy())[0]

    def regions(self, tiles: np.ndarray) -> list[Box]:
        """Regions of the picture that the tiles [tile channel y x] of a picture of coordinates show."""
        error = np.abs(tiles[:, 2] - PROBE_BLUE)
        # Where resizing mixes in padding, the coordinates are wrong as well.
        mask = error < error.min() + 1
        lines = [
            [_fit_line(tile, shown, axis) for tile, shown in zip(tiles[:, axis] / 255 * extent, mask, strict=True)]
            for axis, extent in enumerate(self.size)
        ]
        slope, coordinate, position = np.moveaxis(np.array(lines), -1, 0)
        # A tile that is mostly padding: padding keeps the aspect ratio, and the tile before has the same scale.
        slope = np.where(np.isnan(slope), slope[::-1], slope)
        for tile in range(1, len(tiles)):
            slope[:, tile] = np.where(np.isnan(slope[:, tile]), slope[:, tile - 1], slope[:, tile])
        n_pixels = np.array(tiles.shape[:1:-1])[:, None]
        ends = np.stack([coordinate - slope * position, coordinate + slope * (n_pixels - position)], -1)
        ends = [_snap(tile_ends, extent) for tile_ends, extent in zip(ends, self.size, strict=True)]
        return [Box(*corners) for corners in np.stack(ends, -1).reshape(len(tiles), 4).tolist()]


def coordinate_image(width: int, height: int) -> np.ndarray:
    """Draw a picture whose red encodes x and whose green encodes y; its blue tells it from padding.

    A line through the colours of a processor's output gives the region that is shown. Coordinates are dithered along
    the other axis, so that averages over rows and columns are finer than eight bits.
    """
    x, y = np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)[:, None]
    picture = np.full((height, width, 3), PROBE_BLUE, np.uint8)
    picture[..., 0] = (x + 0.5) / width * 255 + y * _GOLDEN % 1
    picture[..., 1] = (y + 0.5) / height * 255 + x * _GOLDEN % 1
    return picture


def _fit_line(coordinates: np.ndarray, mask: np.ndarray, axis: int) -> tuple[float, float, float]:
    """Slope and a point of the line through the coordinates of a tile's pixels along an axis, x or y."""
    # All pixels of a column have the same x, and all pixels of a row the same y.
    counts = mask.sum(axis)
    (positions,) = counts.nonzero()
    if not len(positions):
        return np.nan, np.nan, np.nan
    # Interpolation bends the coordinates at the picture's edges.
    inner = positions[len(positions) // 10 : len(positions) - len(positions) // 10]
    values = np.where(mask, coordinates, 0).sum(axis)[inner] / counts[inner]
    slope = np.polyfit(inner + 0.5, values, 1)[0] if len(positions) > len(counts) / 4 else np.nan
    return slope, values.mean(), inner.mean() + 0.5


def _snap(ends: np.ndarray, extent: int) -> np.ndarray:
    """Snap the ends of tiles [tile end] to the picture's edges, to each other and to whole pixels that are very near.

    Interpolation moves them; neighbours must meet exactly, so that a box up to their edge does not touch the next tile.
    """
    tile = np.nanmin(ends[:, 1] - ends[:, 0])
    ends = np.where(np.abs(ends) < tile / 100, 0, np.where(np.abs(ends - extent) < tile / 100, extent, ends))
    near = np.abs(ends[..., None] - ends.ravel()) < tile / 100
    ends = np.where(near, ends.ravel(), 0).sum(-1) / np.where(near.any(-1), near.sum(-1), np.nan)
    return np.where(np.abs(ends - ends.round()) < tile / 1000, ends.round(), ends)
