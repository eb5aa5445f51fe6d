"""How visual tokens tile a picture: one of the two files that know Hugging Face's insides."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from corelens.tokens import Box

WHOLE_PICTURE = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe")
"""Model types whose `image_grid_thw` tiles the whole picture, row by row."""

ONE_TILE = ("llava", "vipllava")
"""Model types that see one tile of each picture, patch by patch, row by row."""


class Grid(NamedTuple):
    """Rows and columns of visual tokens, and the region of the picture that they tile, in its pixels."""

    rows: int
    columns: int
    region: Box


def picture_grids(
    model_type: str, processor: Any, pictures: Sequence[Image.Image], tensors: Mapping[str, Any]
) -> list[Grid] | None:
    """The grid of each picture, or None where it is not known for this type of model.

    Args:
        model_type: `config.model_type` of the model.
        processor: The model's processor.
        pictures: All pictures of the batch, in order.
        tensors: What the processor made of them.
    """
    if model_type in WHOLE_PICTURE:
        merge = processor.image_processor.merge_size
        grids = tensors["image_grid_thw"].tolist()
        return [
            Grid(rows // merge, columns // merge, Box(0, 0, *picture.size))
            for (_, rows, columns), picture in zip(grids, pictures, strict=True)
        ]
    if model_type in ONE_TILE:
        height, width = tensors["pixel_values"].shape[-2:]
        rows, columns = height // processor.patch_size, width // processor.patch_size
        return [Grid(rows, columns, _seen_region(processor.image_processor, picture)) for picture in pictures]
    return None


def _seen_region(image_processor: Any, picture: Image.Image) -> Box:
    """The region of a picture that ends up in the processor's tile, found by sending coordinates through it.

    A picture whose red says x and whose green says y goes through the same resizing, cropping and padding as the real
    one; the line through what comes out gives the region, whatever the steps were.
    """
    width, height = picture.size
    coordinates = np.zeros((height, width, 3), np.uint8)
    coordinates[..., 0] = np.round((np.arange(width) + 0.5) / width * 255)
    coordinates[..., 1] = np.round((np.arange(height) + 0.5) / height * 255)[:, None]
    tile = image_processor(Image.fromarray(coordinates), do_normalize=False, do_rescale=False, return_tensors="np")
    red, green, _ = np.asarray(tile["pixel_values"])[0].astype(np.float64)
    left, right = _line_ends(red.mean(0) / 255 * width)
    top, bottom = _line_ends(green.mean(1) / 255 * height)
    return Box(max(left, 0.0), max(top, 0.0), min(right, float(width)), min(bottom, float(height)))


def _line_ends(centres: np.ndarray) -> tuple[float, float]:
    """Where a line through the coordinates of pixel centres meets the outer edges of the first and last pixel."""
    position = np.arange(len(centres)) + 0.5
    # Interpolation bends the coordinates at the picture's edges.
    inner = slice(len(centres) // 10, len(centres) - len(centres) // 10)
    slope, start = np.polyfit(position[inner], centres[inner], 1)
    return float(start), float(start + slope * len(centres))
