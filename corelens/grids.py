"""How visual tokens tile a picture: one of the two files that know Hugging Face's insides.

A family of models is a function from a picture, as its processor made it into tokens, to an ordered list of segments:
runs of visual tokens that tile one view of the picture row by row. What part of the picture a view shows is measured,
by sending coordinates through the processor, and not worked out per family.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from einops import rearrange
from PIL import Image

from corelens.tokens import Box

_SHOWN = 170
"""Blue of a picture of coordinates; no processor pads with it."""


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

    def padded(self, x: float, y: float) -> Box:
        """The picture, padded on its right and below to so many times its width and height."""
        return Box(0, 0, self.size[0] * x, self.size[1] * y)

    @cached_property
    def measured(self) -> Mapping[str, Any]:
        """What the processor makes of a picture of this size whose red says x and whose green says y.

        It goes through the same resizing, cropping, padding and tiling as the real one. Its blue is the same
        everywhere and tells the picture from padding.
        """
        width, height = self.size
        coordinates = np.full((height, width, 3), _SHOWN, np.uint8)
        coordinates[..., 0] = np.round((np.arange(width) + 0.5) / width * 255)
        coordinates[..., 1] = np.round((np.arange(height) + 0.5) / height * 255)[:, None]
        return self.processor(
            text=[self.processor.image_token],
            images=[[Image.fromarray(coordinates)]],
            do_normalize=False,
            do_rescale=False,
            return_tensors="pt",
        )

    @cached_property
    def tiles(self) -> list[Box]:
        """The region of the picture that each of the processor's tiles shows, whatever the steps were."""
        tiles = self.measured["pixel_values"].double().numpy()
        return [self.region(tile) for tile in tiles.reshape(-1, *tiles.shape[-3:])]

    def region(self, tile: np.ndarray) -> Box:
        """The region that a tile [channel y x] of the measured picture shows: the line through its coordinates."""
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


def square_tiles(seen: Seen) -> list[Segment]:
    """One or more tiles of equally many tokens; an overview among them is the one that shows the whole picture."""
    side = math.isqrt(seen.n_tokens // len(seen.tiles))
    parts = any(tile != seen.whole for tile in seen.tiles)
    return [Segment(side, side, tile, overview=parts and tile == seen.whole) for tile in seen.tiles]


def padded_picture(seen: Seen) -> list[Segment]:
    """`image_grid_thw` patches, merged, tile the picture and what was padded in black to its right and below."""
    merge = seen.processor.image_processor.merge_size
    _, rows, columns = seen.tensors["image_grid_thw"][seen.index].tolist()
    shown = seen.measured["pixel_values"][:, 2].double().mean((1, 2)).view(rows, columns) / _SHOWN
    canvas = seen.padded(columns / float(shown.sum(1).max()), rows / float(shown.sum(0).max()))
    return [Segment(rows // merge, columns // merge, canvas)]


def pooled_picture(seen: Seen) -> list[Segment]:
    """Patches with positions, pooled in squares, tile the whole picture."""
    columns, rows = (seen.tensors["image_position_ids"][seen.index].amax(0) + 1).tolist()
    pool = seen.processor.image_processor.pooling_kernel_size
    return [Segment(rows // pool, columns // pool, seen.whole)]


def patched_tiles(seen: Seen) -> list[Segment]:
    """Tiles as lists of patches; an overview is last."""
    patch, shrink = seen.processor.image_processor.encoder_patch_size, seen.config.downsample_factor
    found = []
    for patches, (rows, columns) in zip(
        seen.measured["pixel_values"], seen.measured["spatial_shapes"].tolist(), strict=True
    ):
        tile = rearrange(
            patches[: rows * columns], "(row column) (y x c) -> c (row y) (column x)", row=rows, y=patch, x=patch
        )
        found.append(Segment(rows // shrink, columns // shrink, seen.region(tile.double().numpy())))
    return [s._replace(overview=len(found) > 1 and s.region == seen.whole) for s in found]


def overview_and_joined_crops(seen: Seen) -> list[Segment]:
    """An overview, then overlapping crops joined to one picture; patches are pooled, an odd one at the end alone."""
    *overview, rows, columns = seen.tensors["image_grids"][seen.index].tolist()
    pool_y, pool_x = seen.processor.image_processor.pooling_size
    pooled = seen.measured["image_token_pooling"].unflatten(-1, (pool_y, pool_x)) >= 0
    segments = []
    for n_rows, n_columns in (overview, (rows, columns)):
        own, pooled = pooled[: n_rows * n_columns], pooled[n_rows * n_columns :]
        own = rearrange(own, "(row column) y x -> (row y) (column x)", row=n_rows)
        canvas = seen.padded(own.shape[1] / int(own.any(0).sum()), own.shape[0] / int(own.any(1).sum()))
        segments.append(Segment(n_rows, n_columns, canvas, overview=not segments))
    return segments


def crops_and_overview(seen: Seen) -> list[Segment]:
    """Crops joined to one picture without most of its padding, then an overview with it; newlines end rows."""
    crop, (height, width) = seen.config.vision_config.crop_size, seen.tensors["image_sizes"][seen.index].tolist()
    down, across = height // crop, width // crop
    mask = seen.tensors["image_attention_mask"][seen.index, 1 : 1 + down * across, ::2, ::2]
    side = mask.shape[-1]
    mask = rearrange(mask, "(down across) y x -> (down y) (across x)", down=down)
    rows, columns = int(mask[:, 0].sum()), int(mask[0].sum())
    scale = min(width / seen.size[0], height / seen.size[1])
    x, y = width / scale / seen.size[0], height / scale / seen.size[1]
    joined = seen.padded(x * columns / (across * side), y * rows / (down * side))
    return [
        Segment(rows, columns, joined, row_end=1, end=1),
        Segment(side, side, seen.padded(x, y), overview=True, row_end=1),
    ]


_WHOLE = (
    "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe", "qwen4_exp", "cosmos3_omni",
    "glm4v", "glm4v_moe", "glm46v", "glm_ocr", "glmga", "glm5_next", "ernie4_5_vl_moe", "paddleocr_vl", "exaone4_5",
    "hyperclovax_vision_v2", "cohere_compass", "lfm3_vl", "video_llama_3", "minimax_m3_vl",
)  # fmt: skip

SEGMENTS: dict[str, Callable[[Seen], list[Segment]]] = {
    **dict.fromkeys(_WHOLE, whole_picture),
    **dict.fromkeys(["llava", "vipllava"], one_tile),
    "ovis2": square_tiles,
    "kimi_k25": padded_picture,
    "gemma4": pooled_picture,
    "lfm2_vl": patched_tiles,
    "molmo2": overview_and_joined_crops,
    "phi4_multimodal": crops_and_overview,
}
"""By model type."""

LEARNED_QUERIES = ("aria", "blip-2", "idefics2", "instructblip", "kosmos-2")
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
