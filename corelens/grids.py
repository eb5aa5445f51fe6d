"""How visual tokens tile a picture: one of the two files that know Hugging Face's insides.

A family of models is a function from a picture, as its processor made it into tokens, to an ordered list of segments:
runs of visual tokens that tile one view of the picture row by row. What part of the picture a view shows is measured,
by sending coordinates through the processor, and not worked out per family. A video is the same; its views are frames,
or pairs of frames where the model merges two.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from transformers.video_utils import VideoMetadata

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

    seconds: tuple[float, float] = (math.nan, math.nan)
    """When a view of a video begins and ends; see `Seen.seconds`."""


@dataclass(frozen=True)
class Seen:
    """One picture or video as its processor made it into visual tokens."""

    config: Any
    """The model's configuration."""

    processor: Any
    tensors: Mapping[str, Any]
    """What the processor made of the whole batch."""

    index: int
    """Number of the picture among the pictures of the batch, or of the video among its videos."""

    size: tuple[int, int]
    """Width and height in pixels."""

    n_tokens: int
    """Placeholders of the picture or video, with the id of the image or video token."""

    n_pictures: int
    """Pictures in the same prompt."""

    metadata: VideoMetadata | None = None
    """Of a video: how many frames it has, how fast they are, and which ones the processor sampled."""

    @property
    def kind(self) -> str:
        return "image" if self.metadata is None else "video"

    @property
    def whole(self) -> Box:
        return Box(0, 0, *self.size)

    @cached_property
    def tiles(self) -> list[Box]:
        """The region of the picture that each of the processor's tiles shows, found by sending coordinates through it.

        A picture whose red says x and whose green says y goes through the same resizing, cropping, padding and tiling
        as the real one; the line through what comes out gives the region, whatever the steps were.
        """
        output = self.processor.image_processor(
            Image.fromarray(_coordinates(*self.size)), do_normalize=False, do_rescale=False, return_tensors="np"
        )
        tiles = np.asarray(output["pixel_values"], np.float64)
        return [self._region(tile) for tile in tiles.reshape(-1, *tiles.shape[-3:])]

    @cached_property
    def frame(self) -> Box:
        """The region that every frame of a video shows, found in the same way."""
        output = self.processor.video_processor(
            [_coordinates(*self.size)[None]], do_normalize=False, do_rescale=False, do_sample_frames=False,
            input_data_format="channels_last", return_tensors="pt",
        )  # fmt: skip
        return self._region(output["pixel_values_videos"][0][0].numpy().astype(np.float64))

    def seconds(self, n_frames: int) -> list[tuple[float, float]]:
        """When the views of a video begin and end, each of so many sampled frames, in seconds of the video.

        A view lasts from its first sampled frame until the first sampled frame of the next view; the last one lasts
        until the video ends.
        """
        video: Any = self.metadata
        begins = list(video.frames_indices)[::n_frames]
        ends = [*begins[1:], video.total_num_frames]
        return [(begin / video.fps, end / video.fps) for begin, end in zip(begins, ends, strict=True)]

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


def frames_merged(seen: Seen) -> list[Segment]:
    """`video_grid_thw` patches, merged, tile every whole frame; what patches span in time makes a view."""
    video = seen.processor.video_processor
    _, rows, columns = seen.tensors["video_grid_thw"][seen.index].tolist()
    rows, columns = rows // video.merge_size, columns // video.merge_size
    # An odd number of frames ends with the last one twice.
    return [Segment(rows, columns, seen.whole, seconds=span) for span in seen.seconds(video.temporal_patch_size)]


def frames_pooled(seen: Seen) -> list[Segment]:
    """Two by two patches of a square frame are pooled into a token; one newline ends the video."""
    side = math.ceil(math.isqrt(seen.processor.num_image_tokens) / 2)
    *views, last = [Segment(side, side, seen.frame, seconds=span) for span in seen.seconds(1)]
    return [*views, last._replace(end=1)]


def frames_as_tiles(seen: Seen) -> list[Segment]:
    """Every frame is one square tile."""
    side = math.isqrt(seen.processor.image_seq_length)
    return [Segment(side, side, seen.frame, seconds=span) for span in seen.seconds(1)]


SEGMENTS: dict[str, Callable[[Seen], list[Segment]]] = {
    **dict.fromkeys(["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe"], whole_picture),
    **dict.fromkeys(["llava", "vipllava"], one_tile),
}
"""By model type."""

VIDEO_SEGMENTS: dict[str, Callable[[Seen], list[Segment]]] = {
    **dict.fromkeys(["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe"], frames_merged),
    "llava_onevision": frames_pooled,
    "internvl": frames_as_tiles,
}
"""By model type, for videos."""

LEARNED_QUERIES: tuple[str, ...] = ()
"""Model types whose visual tokens are learned queries: each gathers from the whole picture and has no place in it."""


def no_boxes(model_type: str, kind: str = "image") -> str:
    """Why visual tokens of this type of model have no rectangles; empty if they have."""
    if model_type in (VIDEO_SEGMENTS if kind == "video" else SEGMENTS):
        return ""
    if model_type in LEARNED_QUERIES:
        return f"the visual tokens of {model_type} are learned queries; each sees the whole picture and has no pixels."
    table, medium = ("VIDEO_SEGMENTS", "video") if kind == "video" else ("SEGMENTS", "picture")
    return (
        f"how the visual tokens of {model_type} tile a {medium} is not known. To add it, put a function from a "
        f"{medium} to its segments into corelens.grids.{table}[{model_type!r}]."
    )


def segments(seen: Seen) -> list[Segment]:
    """The segments of one picture or video, in the order of its tokens.

    Raises:
        ValueError: If they do not make up its tokens.
    """
    found = (VIDEO_SEGMENTS if seen.kind == "video" else SEGMENTS)[seen.config.model_type](seen)
    n = sum(s.rows * (s.columns + s.row_end) + s.end for s in found)
    if n != seen.n_tokens:
        grids = " + ".join(f"{s.rows} x {s.columns}" for s in found)
        raise ValueError(
            f"{seen.kind} {seen.index} became {seen.n_tokens} visual tokens, but its grid is {grids}: the processor "
            f"does not belong to the model."
        )
    return found


def _coordinates(width: int, height: int) -> np.ndarray:
    """A picture whose red says x and whose green says y."""
    coordinates = np.zeros((height, width, 3), np.uint8)
    coordinates[..., 0] = np.round((np.arange(width) + 0.5) / width * 255)
    coordinates[..., 1] = np.round((np.arange(height) + 0.5) / height * 255)[:, None]
    return coordinates


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
