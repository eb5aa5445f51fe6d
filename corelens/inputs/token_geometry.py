"""Token geometry: how the visual tokens of each family of models tile a picture.

A family is one function from a `ProcessedImage`, a picture as the processor turned it into tokens, to a list of
`Segment`s in the order of the tokens: grids of visual tokens that tile one view of the picture row by row, with the
placeholders between and after their rows. The region of the picture that a view covers is measured by probing the
processor with a picture of coordinates (`ProcessorProbe`), not worked out per family. Videos work likewise; their
views are frames, or pairs of frames where the model merges two.

    a picture in two views     overview: 2 x 2 cells    tiles: 2 x 4 cells, a newline ↵ after each row
                               ┌────┬────┐              ┌──┬──┬──┬──┐
                               │ 0  │ 1  │              │4 │5 │6 │7 │↵  8
                               ├────┼────┤              ├──┼──┼──┼──┤
                               │ 2  │ 3  │              │9 │10│11│12│↵ 13
                               └────┴────┘              └──┴──┴──┴──┘
    its 14 image tokens        Segment(2, 2, region,    Segment(2, 4, region, row_end=1)
                                       overview=True)

`SEGMENTS` and `VIDEO_SEGMENTS` map model types to these functions; a new family is an entry there.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from einops import rearrange
from torch import Tensor
from transformers.image_processing_utils import select_best_resolution
from transformers.video_utils import VideoMetadata

from corelens.errors import docs_link
from corelens.inputs.processor_probe import PROBE_BLUE, ProcessorProbe
from corelens.tokens import Box


class Segment(NamedTuple):
    """Visual tokens that tile one view row by row, and the placeholders among them that stand for no pixels."""

    rows: int
    columns: int
    region: Box
    """Region that the grid covers, in pixels of the original picture; beyond it where the processor padded."""

    overview: bool = False
    """True if the view shows the whole of a picture that also has tiles."""

    row_end: int = 0
    """Number of placeholders after each row."""

    end: int = 0
    """Number of placeholders after the last row."""

    seconds: tuple[float, float] = (math.nan, math.nan)
    """Begin and end of a view of a video; see `ProcessedImage.seconds`."""


@dataclass(frozen=True)
class ProcessedImage:
    """One picture or video as the processor turned it into visual tokens."""

    config: Any
    """The model's configuration."""

    tensors: Mapping[str, Any]
    """Outputs of the processor for the whole batch."""

    index: int
    """Number of the picture among the pictures of the batch, or of the video among its videos."""

    probe: ProcessorProbe
    """The probe that measures which regions the processor's outputs show of a picture of this size."""

    n_tokens: int
    """Number of placeholders of the picture or video, which have the id of the image or video token."""

    metadata: VideoMetadata | None = None
    """Number of frames, frame rate and sampled frames of a video."""

    @property
    def kind(self) -> str:
        """`image` or `video`."""
        return "image" if self.metadata is None else "video"

    @property
    def processor(self) -> Any:
        """The model's own processor."""
        return self.probe.processor

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.probe.size

    @property
    def whole_view(self) -> Box:
        """Region of the whole picture."""
        return Box(0, 0, *self.size)

    def padded_view(self, x: float, y: float) -> Box:
        """Region of the picture with padding to its right and below, `x` times its width and `y` times its height."""
        return Box(0, 0, self.size[0] * x, self.size[1] * y)

    def seconds(self, n_frames: int) -> list[tuple[float, float]]:
        """Begin and end of the views of a video, of `n_frames` sampled frames each, in seconds of the video.

        A view lasts from its first sampled frame until the first sampled frame of the next view; the last one lasts
        until the video ends.
        """
        video: Any = self.metadata
        starts = list(video.frames_indices)[::n_frames]
        ends = [*starts[1:], video.total_num_frames]
        return [(start / video.fps, end / video.fps) for start, end in zip(starts, ends, strict=True)]


def whole_picture(image: ProcessedImage) -> list[Segment]:
    """One grid over the whole picture: the merged patches of `image_grid_thw`."""
    merge = image.processor.image_processor.merge_size
    _, rows, columns = image.tensors["image_grid_thw"][image.index].tolist()
    return [Segment(rows // merge, columns // merge, image.whole_view)]


def resized_picture(image: ProcessedImage) -> list[Segment]:
    """One grid over the whole picture: square patches of the resized picture."""
    height, width = (int(side) for side in image.tensors["image_sizes"][image.index])
    patch = math.isqrt(height * width // image.n_tokens)
    return [Segment(height // patch, width // patch, image.whole_view)]


def resized_picture_or_tiles(image: ProcessedImage) -> list[Segment]:
    """`resized_picture` if the processor returns `image_sizes`, as Pixtral's does, else `square_tiles`: LLaVA."""
    return (resized_picture if "image_sizes" in image.tensors else square_tiles)(image)


def square_tiles(image: ProcessedImage) -> list[Segment]:
    """One or more square tiles of equally many tokens; the one that shows the whole picture is the overview."""
    tiles = image.probe.tiles
    side = math.isqrt(image.n_tokens // len(tiles))
    has_parts = any(tile != image.whole_view for tile in tiles)
    return [Segment(side, side, tile, overview=has_parts and tile == image.whole_view) for tile in tiles]


def padded_picture(image: ProcessedImage) -> list[Segment]:
    """One grid over the picture and black padding to its right and below: the merged patches of `image_grid_thw`."""
    merge = image.processor.image_processor.merge_size
    _, rows, columns = image.tensors["image_grid_thw"][image.index].tolist()
    blue = image.probe.tensors["pixel_values"][: rows * columns, 2].double().mean((1, 2)).view(rows, columns)
    shown = blue / PROBE_BLUE  # share of each patch that shows the picture
    canvas = image.padded_view(columns / float(shown.sum(1).max()), rows / float(shown.sum(0).max()))
    return [Segment(rows // merge, columns // merge, canvas)]


def pooled_picture(image: ProcessedImage) -> list[Segment]:
    """One grid over the whole picture: patches with positions, pooled in squares."""
    columns, rows = (image.tensors["image_position_ids"][image.index].amax(0) + 1).tolist()
    pool = image.processor.image_processor.pooling_kernel_size
    return [Segment(rows // pool, columns // pool, image.whole_view)]


def patched_tiles(image: ProcessedImage) -> list[Segment]:
    """Tiles that the processor returns as lists of patches; an overview is last."""
    patch, shrink = image.processor.image_processor.encoder_patch_size, image.config.downsample_factor
    shapes = image.probe.tensors["spatial_shapes"].tolist()
    tiles = [
        rearrange(patches[: rows * columns], "(row column) (y x c) -> c (row y) (column x)", row=rows, y=patch, x=patch)
        for patches, (rows, columns) in zip(
            image.probe.tensors["pixel_values"], shapes[: len(shapes) // image.probe.n_copies], strict=False
        )
    ]
    return _tiles_and_overview(image, tiles, patch * shrink)


def patches_in_a_row(image: ProcessedImage) -> list[Segment]:
    """An overview and tiles that the processor returns as one row of patches, of which squares are merged."""
    (pixels,), settings = image.probe.tensors["pixel_values"], image.processor.image_processor
    shapes = image.probe.tensors["target_sizes"].tolist()
    tiles = []
    for rows, columns in shapes[: len(shapes) // image.probe.n_copies]:
        patches, pixels = pixels.split([n := rows * columns * settings.patch_size, pixels.shape[-1] - n], -1)
        tiles.append(rearrange(patches, "c y (row column x) -> c (row y) (column x)", row=rows, column=columns))
    return _tiles_and_overview(image, tiles, settings.patch_size * (2 if settings.downsample_mode == "4x" else 4))


def _tiles_and_overview(image: ProcessedImage, tiles: Sequence[Tensor], side: int) -> list[Segment]:
    """Tiles of several sizes, of pictures of coordinates; a token is `side` pixels of the tile wide and high."""
    regions = [image.probe.regions(tile.double().numpy()[None])[0] for tile in tiles]
    return [
        Segment(tile.shape[1] // side, tile.shape[2] // side, region, len(tiles) > 1 and region == image.whole_view)
        for tile, region in zip(tiles, regions, strict=True)
    ]


def overview_and_joined_crops(image: ProcessedImage) -> list[Segment]:
    """An overview, then overlapping crops as one picture; patches are pooled, an odd one at the end by itself."""
    *overview, rows, columns = image.tensors["image_grids"][image.index].tolist()
    pool_y, pool_x = image.processor.image_processor.pooling_size
    pooled = image.probe.tensors["image_token_pooling"].unflatten(-1, (pool_y, pool_x)) >= 0
    segments = []
    for n_rows, n_columns in (overview, (rows, columns)):
        view, pooled = pooled[: n_rows * n_columns], pooled[n_rows * n_columns :]
        view = rearrange(view, "(row column) y x -> (row y) (column x)", row=n_rows)
        canvas = image.padded_view(view.shape[1] / int(view.any(0).sum()), view.shape[0] / int(view.any(1).sum()))
        segments.append(Segment(n_rows, n_columns, canvas, overview=not segments))
    return segments


def crops_and_overview(image: ProcessedImage) -> list[Segment]:
    """Crops as one picture without most of its padding, then an overview with the padding; newlines end rows."""
    crop = image.config.vision_config.crop_size
    canvas = image.tensors["image_sizes"][image.index].numpy()  # height, width
    down, across = (canvas // crop).tolist()
    mask = image.tensors["image_attention_mask"][image.index, 1 : 1 + down * across, ::2, ::2]
    side = mask.shape[-1]
    mask = rearrange(mask, "(down across) y x -> (down y) (across x)", down=down)
    rows, columns = int(mask[:, 0].sum()), int(mask[0].sum())
    size = np.array(image.size[::-1])
    y, x = (canvas / size / (canvas / size).min()).tolist()
    crops = image.padded_view(x * columns / (across * side), y * rows / (down * side))
    overview = Segment(side, side, image.padded_view(x, y), overview=True, row_end=1)
    return [Segment(rows, columns, crops, row_end=1, end=1), overview]


def unpadded_canvas(image: ProcessedImage) -> list[Segment]:
    """An overview, then tiles as one canvas without its padding; a newline after each row."""
    vision, tiles, size = image.config.vision_config, image.probe.tiles, np.array(image.size)
    side = vision.image_size // vision.patch_size
    if len(tiles) == 1:
        return [Segment(side, side, tiles[0], end=1)]
    canvas = select_best_resolution(image.size[::-1], image.config.image_grid_pinpoints)
    cells = np.array(canvas[::-1]) // vision.patch_size
    scale = (cells / size).min()
    # Tokens that hold nothing but padding are cut off in equal numbers from both sides.
    cells -= (cells - np.round(size * scale, 7).astype(int)) // 2 * 2
    margin = (cells / scale - size) / 2
    # The canvas is shrunk if it has many more tokens than this number of tiles.
    max_tiles = float(getattr(image.config, "vision_aspect_ratio", "inf").removeprefix("anyres_max_"))
    shrink = math.sqrt(cells.prod() / (max_tiles * side**2))
    columns, rows = (cells // (shrink if shrink > 1.1 else 1)).astype(int).tolist()
    region = Box(*(-margin).tolist(), *(size + margin).tolist())
    return [Segment(side, side, image.whole_view, overview=True), Segment(rows, columns, region, row_end=1)]


def frames_merged(image: ProcessedImage) -> list[Segment]:
    """One grid over each whole frame, or pair of frames: the merged patches of `video_grid_thw`."""
    video = image.processor.video_processor
    _, rows, columns = image.tensors["video_grid_thw"][image.index].tolist()
    rows, columns = rows // video.merge_size, columns // video.merge_size
    # An odd number of frames ends with the last one twice.
    return [Segment(rows, columns, image.whole_view, seconds=span) for span in image.seconds(video.temporal_patch_size)]


def frames_pooled(image: ProcessedImage) -> list[Segment]:
    """One grid over each square frame, two by two patches a token; a newline ends the video."""
    side = math.ceil(math.isqrt(image.processor.num_image_tokens) / 2)
    *views, last = [Segment(side, side, image.probe.frame, seconds=span) for span in image.seconds(1)]
    return [*views, last._replace(end=1)]


def frames_as_tiles(image: ProcessedImage) -> list[Segment]:
    """One square tile for each frame."""
    side = math.isqrt(image.processor.image_seq_length)
    return [Segment(side, side, image.probe.frame, seconds=span) for span in image.seconds(1)]


_WHOLE_PICTURE = (
    "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe", "qwen4_exp", "cosmos3_omni",
    "glm4v", "glm4v_moe", "glm46v", "glm_ocr", "glmga", "glm5_next", "ernie4_5_vl_moe", "paddleocr_vl", "exaone4_5",
    "hyperclovax_vision_v2", "cohere_compass", "lfm3_vl", "video_llama_3", "minimax_m3_vl", "qwen2_5_omni_thinker",
    "qwen3_omni_moe_thinker",
)  # fmt: skip

SEGMENTS: dict[str, Callable[[ProcessedImage], list[Segment]]] = {
    **dict.fromkeys(_WHOLE_PICTURE, whole_picture),
    "llava": resized_picture_or_tiles,
    **dict.fromkeys(["vipllava", "fast_vlm", "deepseek_vl", "janus", "paligemma"], square_tiles),
    **dict.fromkeys(["gemma3", "internvl", "idefics3", "smolvlm", "aya_vision", "cohere2_vision"], square_tiles),
    **dict.fromkeys(["gemma3n", "llama4", "ovis2", "perception_lm"], square_tiles),
    **dict.fromkeys(["llava_next", "llava_onevision"], unpadded_canvas),
    **dict.fromkeys(["mistral3", "mistral_large4", "lighton_ocr"], resized_picture),
    "kimi_k25": padded_picture,
    "gemma4": pooled_picture,
    "lfm2_vl": patched_tiles,
    **dict.fromkeys(["minicpmv4_6", "minicpmv4_7"], patches_in_a_row),
    "molmo2": overview_and_joined_crops,
    "phi4_multimodal": crops_and_overview,
}
"""Functions from pictures to segments, by model type."""

VIDEO_SEGMENTS: dict[str, Callable[[ProcessedImage], list[Segment]]] = {
    **dict.fromkeys(["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe"], frames_merged),
    "llava_onevision": frames_pooled,
    "internvl": frames_as_tiles,
}
"""Functions from videos to segments, by model type."""

WITHOUT_BOXES = {
    **dict.fromkeys(["aria", "blip-2", "idefics2", "instructblip", "kosmos-2"], "queries"),
    **dict.fromkeys(["chameleon", "emu3"], "codes"),
    **dict.fromkeys(["idefics", "mllama"], "patches"),
}
"""Model types without rectangles: of learned queries, codes of a codebook, and patches seen by cross-attention."""


def no_boxes(model_type: str, kind: str = "image") -> str:
    """Return the reason why visual tokens of a model type have no rectangles; empty if they have."""
    if model_type in (VIDEO_SEGMENTS if kind == "video" else SEGMENTS):
        return ""
    match WITHOUT_BOXES.get(model_type):
        case "queries":
            return (
                f"the visual tokens of {model_type} are learned queries; each attends to the whole picture and has no "
                f"pixels of its own. {docs_link('no-rectangles')}"
            )
        case "codes":
            return (
                f"the visual tokens of {model_type} are codes: each is the entry of a codebook nearest to a patch and "
                f"what is around it, and changed pixels may not change it. {docs_link('no-rectangles')}"
            )
        case "patches":
            return (
                f"{model_type} has no visual tokens: it sees pictures by cross-attention. {docs_link('no-rectangles')}"
            )
    table, medium = ("VIDEO_SEGMENTS", "video") if kind == "video" else ("SEGMENTS", "picture")
    return (
        f"how the visual tokens of {model_type} tile a {medium} is not known. To add it, put a function from a "
        f"{medium} to its segments into corelens.inputs.token_geometry.{table}[{model_type!r}]. "
        f"{docs_link('no-rectangles')}"
    )


def merged_patches(model_type: str, processor: Any) -> int | None:
    """Return `TokenMap.merge` of a model: how many patches along a side become a token of one grid, or None."""
    return processor.image_processor.merge_size if SEGMENTS.get(model_type) is whole_picture else None


def segments(image: ProcessedImage) -> list[Segment]:
    """Compute the segments of one picture or video, in the order of its tokens.

    Raises:
        ValueError: If they do not add up to its number of tokens.
    """
    parts = (VIDEO_SEGMENTS if image.kind == "video" else SEGMENTS)[image.config.model_type](image)
    n_tokens = sum(part.rows * (part.columns + part.row_end) + part.end for part in parts)
    if n_tokens != image.n_tokens:
        grids = " + ".join(f"{part.rows} x {part.columns}" for part in parts)
        raise ValueError(
            f"{image.kind} {image.index} became {image.n_tokens} visual tokens, but its grid is {grids} ({n_tokens} "
            f"with the ends of rows): the processor is of another model, or the function in SEGMENTS is wrong."
        )
    return parts
