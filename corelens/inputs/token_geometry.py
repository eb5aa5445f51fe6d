"""How visual tokens tile a picture: one of the two files that know Hugging Face's insides.

A family of models is a function from a picture, as its processor made it into tokens, to an ordered list of segments:
runs of visual tokens that tile one view of the picture row by row. What part of the picture a view shows is measured,
by sending coordinates through the processor, and not worked out per family. A video is the same; its views are frames,
or pairs of frames where the model merges two.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from einops import rearrange
from transformers.image_processing_utils import select_best_resolution
from transformers.video_utils import VideoMetadata

from corelens.errors import docs_link
from corelens.inputs.processor_probe import PROBE_SIZE, ProcessorProbe
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
class ProcessedImage:
    """One picture or video as its processor made it into visual tokens."""

    config: Any
    """The model's configuration."""

    tensors: Mapping[str, Any]
    """What the processor made of the whole batch."""

    index: int
    """Number of the picture among the pictures of the batch, or of the video among its videos."""

    probe: ProcessorProbe
    """Which parts of its size the processor shows."""

    n_tokens: int
    """Placeholders of the picture or video, with the id of the image or video token."""

    metadata: VideoMetadata | None = None
    """Of a video: how many frames it has, how fast they are, and which ones the processor sampled."""

    @property
    def kind(self) -> str:
        """`image` or `video`."""
        return "image" if self.metadata is None else "video"

    @property
    def processor(self) -> Any:
        """The model's own."""
        return self.probe.processor

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.probe.size

    @property
    def whole_view(self) -> Box:
        """All of the picture, as a region of it."""
        return Box(0, 0, *self.size)

    def padded_view(self, x: float, y: float) -> Box:
        """The picture, padded on its right and below to so many times its width and height."""
        return Box(0, 0, self.size[0] * x, self.size[1] * y)

    def seconds(self, n_frames: int) -> list[tuple[float, float]]:
        """When the views of a video begin and end, each of so many sampled frames, in seconds of the video.

        A view lasts from its first sampled frame until the first sampled frame of the next view; the last one lasts
        until the video ends.
        """
        video: Any = self.metadata
        begins = list(video.frames_indices)[::n_frames]
        ends = [*begins[1:], video.total_num_frames]
        return [(begin / video.fps, end / video.fps) for begin, end in zip(begins, ends, strict=True)]


def whole_picture(seen: ProcessedImage) -> list[Segment]:
    """`image_grid_thw` patches, merged, tile the whole picture."""
    merge = seen.processor.image_processor.merge_size
    _, rows, columns = seen.tensors["image_grid_thw"][seen.index].tolist()
    return [Segment(rows // merge, columns // merge, seen.whole_view)]


def resized_picture(seen: ProcessedImage) -> list[Segment]:
    """Square patches of the picture as it was resized tile the whole picture."""
    height, width = (int(side) for side in seen.tensors["image_sizes"][seen.index])
    patch = math.isqrt(height * width // seen.n_tokens)
    return [Segment(height // patch, width // patch, seen.whole_view)]


def resized_picture_or_tiles(seen: ProcessedImage) -> list[Segment]:
    """LLaVA takes any tower: Pixtral's processor says how it resized the picture, others make square tiles."""
    return (resized_picture if "image_sizes" in seen.tensors else square_tiles)(seen)


def square_tiles(seen: ProcessedImage) -> list[Segment]:
    """One or more tiles of equally many tokens; an overview among them is the one that shows the whole picture."""
    tiles = seen.probe.tiles
    side = math.isqrt(seen.n_tokens // len(tiles))
    parts = any(tile != seen.whole_view for tile in tiles)
    return [Segment(side, side, tile, overview=parts and tile == seen.whole_view) for tile in tiles]


def padded_picture(seen: ProcessedImage) -> list[Segment]:
    """`image_grid_thw` patches, merged, tile the picture and what was padded in black to its right and below."""
    merge = seen.processor.image_processor.merge_size
    _, rows, columns = seen.tensors["image_grid_thw"][seen.index].tolist()
    shown = (
        seen.probe.tensors["pixel_values"][: rows * columns, 2].double().mean((1, 2)).view(rows, columns) / PROBE_SIZE
    )
    canvas = seen.padded_view(columns / float(shown.sum(1).max()), rows / float(shown.sum(0).max()))
    return [Segment(rows // merge, columns // merge, canvas)]


def pooled_picture(seen: ProcessedImage) -> list[Segment]:
    """Patches with positions, pooled in squares, tile the whole picture."""
    columns, rows = (seen.tensors["image_position_ids"][seen.index].amax(0) + 1).tolist()
    pool = seen.processor.image_processor.pooling_kernel_size
    return [Segment(rows // pool, columns // pool, seen.whole_view)]


def patched_tiles(seen: ProcessedImage) -> list[Segment]:
    """Tiles as lists of patches; an overview is last."""
    patch, shrink = seen.processor.image_processor.encoder_patch_size, seen.config.downsample_factor
    found = []
    shapes = seen.probe.tensors["spatial_shapes"].tolist()
    for patches, (rows, columns) in zip(
        seen.probe.tensors["pixel_values"], shapes[: len(shapes) // seen.probe.n_copies], strict=False
    ):
        tile = rearrange(
            patches[: rows * columns], "(row column) (y x c) -> c (row y) (column x)", row=rows, y=patch, x=patch
        )
        found.append(Segment(rows // shrink, columns // shrink, seen.probe.regions(tile.double().numpy()[None])[0]))
    return [s._replace(overview=len(found) > 1 and s.region == seen.whole_view) for s in found]


def overview_and_joined_crops(seen: ProcessedImage) -> list[Segment]:
    """An overview, then overlapping crops joined to one picture; patches are pooled, an odd one at the end alone."""
    *overview, rows, columns = seen.tensors["image_grids"][seen.index].tolist()
    pool_y, pool_x = seen.processor.image_processor.pooling_size
    pooled = seen.probe.tensors["image_token_pooling"].unflatten(-1, (pool_y, pool_x)) >= 0
    segments = []
    for n_rows, n_columns in (overview, (rows, columns)):
        own, pooled = pooled[: n_rows * n_columns], pooled[n_rows * n_columns :]
        own = rearrange(own, "(row column) y x -> (row y) (column x)", row=n_rows)
        canvas = seen.padded_view(own.shape[1] / int(own.any(0).sum()), own.shape[0] / int(own.any(1).sum()))
        segments.append(Segment(n_rows, n_columns, canvas, overview=not segments))
    return segments


def crops_and_overview(seen: ProcessedImage) -> list[Segment]:
    """Crops joined to one picture without most of its padding, then an overview with it; newlines end rows."""
    crop, canvas = seen.config.vision_config.crop_size, seen.tensors["image_sizes"][seen.index].numpy()  # height, width
    down, across = (canvas // crop).tolist()
    mask = seen.tensors["image_attention_mask"][seen.index, 1 : 1 + down * across, ::2, ::2]
    side = mask.shape[-1]
    mask = rearrange(mask, "(down across) y x -> (down y) (across x)", down=down)
    rows, columns = int(mask[:, 0].sum()), int(mask[0].sum())
    size = np.array(seen.size[::-1])
    y, x = (canvas / size / (canvas / size).min()).tolist()
    joined = seen.padded_view(x * columns / (across * side), y * rows / (down * side))
    overview = Segment(side, side, seen.padded_view(x, y), overview=True, row_end=1)
    return [Segment(rows, columns, joined, row_end=1, end=1), overview]


def unpadded_canvas(seen: ProcessedImage) -> list[Segment]:
    """An overview, then tiles joined to one canvas without its padding; a newline after each row."""
    vision, tiles, size = seen.config.vision_config, seen.probe.tiles, np.array(seen.size)
    side = vision.image_size // vision.patch_size
    if len(tiles) == 1:
        return [Segment(side, side, tiles[0], end=1)]
    canvas = select_best_resolution(seen.size[::-1], seen.config.image_grid_pinpoints)
    cells = np.array(canvas[::-1]) // vision.patch_size
    scale = (cells / size).min()
    # Tokens that see nothing but padding are cut off in equal numbers from both sides.
    cells -= (cells - np.round(size * scale, 7).astype(int)) // 2 * 2
    margin = (cells / scale - size) / 2
    # The canvas is shrunk if it has many more tokens than this number of tiles.
    most = float(getattr(seen.config, "vision_aspect_ratio", "inf").removeprefix("anyres_max_"))
    shrink = math.sqrt(cells.prod() / (most * side**2))
    columns, rows = (cells // (shrink if shrink > 1.1 else 1)).astype(int).tolist()
    joined = Box(*(-margin).tolist(), *(size + margin).tolist())
    return [Segment(side, side, seen.whole_view, overview=True), Segment(rows, columns, joined, row_end=1)]


def frames_merged(seen: ProcessedImage) -> list[Segment]:
    """`video_grid_thw` patches, merged, tile every whole frame; what patches span in time makes a view."""
    video = seen.processor.video_processor
    _, rows, columns = seen.tensors["video_grid_thw"][seen.index].tolist()
    rows, columns = rows // video.merge_size, columns // video.merge_size
    # An odd number of frames ends with the last one twice.
    return [Segment(rows, columns, seen.whole_view, seconds=span) for span in seen.seconds(video.temporal_patch_size)]


def frames_pooled(seen: ProcessedImage) -> list[Segment]:
    """Two by two patches of a square frame are pooled into a token; one newline ends the video."""
    side = math.ceil(math.isqrt(seen.processor.num_image_tokens) / 2)
    *views, last = [Segment(side, side, seen.probe.frame, seconds=span) for span in seen.seconds(1)]
    return [*views, last._replace(end=1)]


def frames_as_tiles(seen: ProcessedImage) -> list[Segment]:
    """Every frame is one square tile."""
    side = math.isqrt(seen.processor.image_seq_length)
    return [Segment(side, side, seen.probe.frame, seconds=span) for span in seen.seconds(1)]


_WHOLE = (
    "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe", "qwen4_exp", "cosmos3_omni",
    "glm4v", "glm4v_moe", "glm46v", "glm_ocr", "glmga", "glm5_next", "ernie4_5_vl_moe", "paddleocr_vl", "exaone4_5",
    "hyperclovax_vision_v2", "cohere_compass", "lfm3_vl", "video_llama_3", "minimax_m3_vl",
)  # fmt: skip

SEGMENTS: dict[str, Callable[[ProcessedImage], list[Segment]]] = {
    **dict.fromkeys(_WHOLE, whole_picture),
    "llava": resized_picture_or_tiles,
    **dict.fromkeys(["vipllava", "fast_vlm", "deepseek_vl", "janus", "paligemma"], square_tiles),
    **dict.fromkeys(["gemma3", "internvl", "idefics3", "smolvlm", "aya_vision", "cohere2_vision"], square_tiles),
    **dict.fromkeys(["llama4", "perception_lm"], square_tiles),
    **dict.fromkeys(["llava_next", "llava_onevision"], unpadded_canvas),
    **dict.fromkeys(["mistral3", "mistral_large4", "lighton_ocr"], resized_picture),
    "ovis2": square_tiles,
    "kimi_k25": padded_picture,
    "gemma4": pooled_picture,
    "lfm2_vl": patched_tiles,
    "molmo2": overview_and_joined_crops,
    "phi4_multimodal": crops_and_overview,
}
"""By model type."""

VIDEO_SEGMENTS: dict[str, Callable[[ProcessedImage], list[Segment]]] = {
    **dict.fromkeys(["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe"], frames_merged),
    "llava_onevision": frames_pooled,
    "internvl": frames_as_tiles,
}
"""By model type, for videos."""

LEARNED_QUERIES = ("aria", "blip-2", "idefics2", "instructblip", "kosmos-2")
"""Model types whose visual tokens are learned queries: each gathers from the whole picture and has no place in it."""


def no_boxes(model_type: str, kind: str = "image") -> str:
    """Why visual tokens of this type of model have no rectangles; empty if they have."""
    if model_type in (VIDEO_SEGMENTS if kind == "video" else SEGMENTS):
        return ""
    if model_type in LEARNED_QUERIES:
        return (
            f"the visual tokens of {model_type} are learned queries; each sees the whole picture and has no pixels. "
            f"{docs_link('no-rectangles')}"
        )
    table, medium = ("VIDEO_SEGMENTS", "video") if kind == "video" else ("SEGMENTS", "picture")
    return (
        f"how the visual tokens of {model_type} tile a {medium} is not known. To add it, put a function from a "
        f"{medium} to its segments into corelens.inputs.token_geometry.{table}[{model_type!r}]. {docs_link('no-rectangles')}"
    )


def segments(seen: ProcessedImage) -> list[Segment]:
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
