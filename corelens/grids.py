"""How visual tokens tile a picture: one of the two files that know Hugging Face's insides.

A family of models is a function from a picture, as its processor made it into tokens, to an ordered list of segments:
runs of visual tokens that tile one view of the picture row by row. What part of the picture a view shows is measured,
by sending coordinates through the processor, and not worked out per family.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from corelens.tokens import Box


class Segment(NamedTuple):
    """Visual tokens that tile one view, row by row, and the placeholders among them that stand for no pixels."""

    rows: int
    columns: int
    region: Box
    """What the grid covers, in pixels of the original picture; beyond it where the processor padded."""

    overview: bool = False
    """Whether the view shows the whole of a picture that also has tiles."""

    row_end: int = 0
    """Placeholders after each row."""

    end: int = 0
    """Placeholders after the last row."""


@dataclass(frozen=True)
class Seen:
    """One picture as its processor made it into visual tokens."""

    config: Any
    """The model's configuration."""

    processor: Any
    tensors: Mapping[str, Any]
    """What the processor made of the whole batch."""

    index: int
    """Number of the picture in the batch."""

    size: tuple[int, int]
    """Width and height in pixels."""

    n_tokens: int
    """Placeholders of the picture, with the id of the image token."""

    n_pictures: int
    """Pictures in the same prompt."""

    @property
    def whole(self) -> Box:
        return Box(0, 0, *self.size)

    @cached_property
    def tiles(self) -> list[Box]:
        """The region of the picture that each of the processor's tiles shows, found by sending coordinates through it.

        A picture whose red says x and whose green says y goes through the same resizing, cropping, padding and tiling
        as the real one; the line through what comes out gives the region, whatever the steps were.
        """
        width, height = self.size
        coordinates = np.zeros((height, width, 3), np.uint8)
        coordinates[..., 0] = np.round((np.arange(width) + 0.5) / width * 255)
        coordinates[..., 1] = np.round((np.arange(height) + 0.5) / height * 255)[:, None]
        output = self.processor.image_processor(
            Image.fromarray(coordinates), do_normalize=False, do_rescale=False, return_tensors="np"
        )
        tiles = np.asarray(output["pixel_values"], np.float64)
        return [self._region(tile) for tile in tiles.reshape(-1, *tiles.shape[-3:])]

    def _region(self, tile: np.ndarray) -> Box:
        (width, height), (red, green, _) = self.size, tile
        left, right = _snapped(_line_ends(red.mean(0) / 255 * width), width)
        top, bottom = _snapped(_line_ends(green.mean(1) / 255 * height), height)
        return Box(left, top, right, bottom)


def whole_picture(seen: Seen) -> list[Segment]:
    """`image_grid_thw` patches, merged, tile the whole picture."""
    merge = seen.processor.image_processor.merge_size
    _, rows, columns = seen.tensors["image_grid_thw"][seen.index].tolist()
    return [Segment(rows // merge, columns // merge, seen.whole)]


def one_tile(seen: Seen) -> list[Segment]:
    """One tile, patch by patch."""
    height, width = seen.tensors["pixel_values"].shape[-2:]
    patch = seen.processor.patch_size
    return [Segment(height // patch, width // patch, seen.tiles[0])]


SEGMENTS: dict[str, Callable[[Seen], list[Segment]]] = {
    **dict.fromkeys(
        [
            "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe", "glm4v", "glm4v_moe",
            "glm46v", "glm_ocr", "ernie4_5_vl_moe", "exaone4_5", "hyperclovax_vision_v2", "cosmos3_omni",
        ],
        whole_picture,
    ),
    **dict.fromkeys(["llava", "vipllava"], one_tile),
}
"""By model type."""

LEARNED_QUERIES: tuple[str, ...] = ()
"""Model types whose visual tokens are learned queries: each gathers from the whole picture and has no place in it."""


def no_boxes(model_type: str) -> str:
    """Why visual tokens of this type of model have no rectangles; empty if they have."""
    if model_type in SEGMENTS:
        return ""
    if model_type in LEARNED_QUERIES:
        return f"the visual tokens of {model_type} are learned queries; each sees the whole picture and has no pixels."
    return (
        f"how the visual tokens of {model_type} tile a picture is not known. To add it, put a function from a picture "
        f"to its segments into corelens.grids.SEGMENTS[{model_type!r}]."
    )


def segments(seen: Seen) -> list[Segment]:
    """The segments of one picture, in the order of its tokens.

    Raises:
        ValueError: If they do not make up the picture's tokens.
    """
    found = SEGMENTS[seen.config.model_type](seen)
    n = sum(s.rows * (s.columns + s.row_end) + s.end for s in found)
    if n != seen.n_tokens:
        grids = " + ".join(f"{s.rows} x {s.columns}" for s in found)
        raise ValueError(
            f"picture {seen.index} became {seen.n_tokens} visual tokens, but its grid is {grids}: the processor does "
            f"not belong to the model."
        )
    return found


def _snapped(ends: tuple[float, float], size: int) -> tuple[float, float]:
    """Ends within a hundredth of the tile from the picture's edges lie on them; interpolation moves them that far."""
    start, end = ends
    slack = (end - start) / 100
    return 0.0 if abs(start) < slack else start, float(size) if abs(end - size) < slack else end


def _line_ends(centres: np.ndarray) -> tuple[float, float]:
    """Where a line through the coordinates of pixel centres meets the outer edges of the first and last pixel."""
    position = np.arange(len(centres)) + 0.5
    # Interpolation bends the coordinates at the picture's edges.
    inner = slice(len(centres) // 10, len(centres) - len(centres) // 10)
    slope, start = np.polyfit(position[inner], centres[inner], 1)
    return float(start), float(start + slope * len(centres))
