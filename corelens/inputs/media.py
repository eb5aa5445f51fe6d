"""Loading of pictures and videos: decoded, upright, and of videos only the frames that a processor samples."""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from corelens.errors import docs_link

if TYPE_CHECKING:
    from transformers.video_utils import VideoMetadata

ORIENTATION = ExifTags.Base.Orientation
"""EXIF's tag of the orientation."""

QUARTER_TURNS = (5, 6, 7, 8)
"""Orientations that exchange width and height."""

_NEARLY_WHITE = 192
"""Colours from here up cannot be told from white paper."""

Picture = Image.Image | str | PathLike | Callable
"""A PIL image, the path of a file, or a function without arguments that returns a PIL image."""


def load_picture(picture: object) -> Image.Image:
    """Load a picture as a person sees it: in RGB, upright and fully decoded.

    Greys of 16 bits become greys of 8. Transparent pictures are put on white; on black if all that they show is nearly
    white.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is an address, or the file is no picture, is damaged, or is so large that decoding it would
            exhaust memory; or its numbers do not say which of them is white.
        TypeError: If it is neither a picture nor a path nor a function that returns a picture.
    """
    if callable(picture):
        picture = picture()
    if isinstance(picture, Image.Image):
        return _decode_picture(picture, "the picture")
    if not isinstance(picture, str | PathLike):
        hint = " PIL.Image.fromarray makes one of an array." if hasattr(picture, "shape") else ""
        raise TypeError(f"a picture is a PIL image or a path, not {type(picture).__name__}.{hint}")
    if "://" in str(picture):
        raise ValueError(f"{picture} is an address, and nothing is fetched: download it and give the file.")
    path = Path(picture)
    if not path.is_file():
        raise FileNotFoundError(f"there is no picture file {str(path)!r}.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            file = Image.open(path)
    except UnidentifiedImageError as cause:
        raise ValueError(f"{str(path)!r} is not a picture that Pillow can read.") from cause
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as cause:
        raise ValueError(
            f"{str(path)!r} is too large to decode safely: Pillow's limit is {Image.MAX_IMAGE_PIXELS} pixels. Shrink "
            f"it, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust it."
        ) from cause
    with file:
        return _decode_picture(file, repr(str(path)))


@dataclass(frozen=True, eq=False)
class Video:
    """All frames of a video and their frame rate.

    A video in a file needs no such value: pass its path.
    """

    frames: Any
    """An array [frame height width 3] of uint8, or a list of PIL images or of picture files, in order of time."""

    fps: float
    """Frames per second."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.fps) and self.fps > 0):
            raise ValueError(f"fps={self.fps} is no frame rate: a video has a positive number of frames per second.")
        if not hasattr(self.frames, "__len__") or isinstance(self.frames, str):
            raise TypeError(
                f"the frames of a video are an array or a list of pictures, not {type(self.frames).__name__}; "
                f"pass the path of a video file as it is, without Video()."
            )
        if not len(self.frames):
            raise ValueError("the video has no frames.")
        shape, dtype = getattr(self.frames, "shape", None), getattr(self.frames, "dtype", None)
        if shape is not None and (len(shape) != 4 or shape[-1] != 3 or "uint8" not in str(dtype)):
            raise ValueError(
                f"an array of frames is [frame height width 3] of uint8, and this one is {list(shape)} of {dtype}."
            )


Footage = Video | str | PathLike
"""A video's frames, or the path of a file."""


class Clip(NamedTuple):
    """The sampled frames of a video, which are those that the model gets."""

    frames: UInt8[np.ndarray, "frame height width 3"]
    metadata: "VideoMetadata"
    """Metadata of the whole video; `frames_indices` are the numbers of the sampled frames."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.frames.shape[2], self.frames.shape[1]


def load_clip(video: object, processor: Any) -> Clip:
    """Load the frames that the model's own processor samples from a video; no others are decoded.

    The times of a file's frames follow from its average frame rate, as in Hugging Face's own loading.

    Raises:
        ImportError: If torchvision, which Hugging Face's video processors need, or a decoder for a file is missing.
        FileNotFoundError: If there is no such file.
        ValueError: If the model takes no videos, or the video cannot be sampled or decoded.
        TypeError: If it is neither a `Video` nor a path.
    """
    from transformers.utils.import_utils import is_torchvision_available
    from transformers.video_utils import VideoMetadata

    if not isinstance(video, Footage):
        raise TypeError(
            f"a video is the path of a file or corelens.Video(frames, fps), not {type(video).__name__}: frames alone "
            f"have no frame rate."
        )
    if not is_torchvision_available():
        raise ImportError(
            "Hugging Face's video processors need torchvision, which is not installed: pip install 'corelens[video]', "
            f"then load the model again. Pictures need none. {docs_link('torchvision')}"
        )
    if getattr(processor, "video_processor", None) is None:
        raise ValueError(
            f"this {type(processor).__name__} has no video processor: the model takes no videos, or its processor was "
            f"saved or loaded without torchvision and must be loaded again."
        )
    if not isinstance(video, Video):
        return _decode_video(Path(video), processor.video_processor)
    metadata = VideoMetadata(total_num_frames=len(video.frames), fps=float(video.fps))
    metadata.frames_indices = _sample_frames(metadata, processor.video_processor)
    if hasattr(video.frames, "shape"):
        return Clip(np.asarray(video.frames)[metadata.frames_indices], metadata)
    frames = [load_picture(video.frames[index]) for index in metadata.frames_indices]
    if len(sizes := sorted({frame.size for frame in frames})) > 1:
        raise ValueError(f"the frames of a video have one size, and these have several: {sizes}.")
    return Clip(np.stack([np.asarray(frame) for frame in frames]), metadata)


def upright_box(box: Sequence[float | int], size: tuple[int, int], orientation: int) -> tuple[float | int, ...]:
    """Turn a box along with its picture, which `load_picture` turns upright.

    Args:
        box: Left, top, right, bottom in pixels of the picture as it is stored.
        size: Width and height of the picture as it is stored.
        orientation: Its EXIF orientation, 1 to 8; `ORIENTATION` is the number of that tag.
    """
    left, top, right, bottom = box
    if orientation in (2, 3, 7, 8):
        left, right = size[0] - right, size[0] - left
    if orientation in (3, 4, 6, 7):
        top, bottom = size[1] - bottom, size[1] - top
    return (top, left, bottom, right) if orientation in QUARTER_TURNS else (left, top, right, bottom)


def _decode_picture(picture: Image.Image, name: str) -> Image.Image:
    """Decode a picture, turn it upright as its EXIF orientation demands, and turn its numbers into colours."""
    try:
        # Portable grey maps of more than 8 bits come as 32-bit integers, scaled to 16 bits.
        has_16_bits = picture.mode.startswith("I;16") or (picture.mode, picture.format) == ("I", "PPM")
        return _in_rgb(ImageOps.exif_transpose(picture), has_16_bits, name)
    except (OSError, SyntaxError) as cause:
        raise ValueError(f"{name} is damaged and cannot be decoded: {cause}.") from cause


def _in_rgb(picture: Image.Image, has_16_bits: bool, name: str) -> Image.Image:
    """Turn the numbers of a picture into the colours that a person sees."""
    if has_16_bits:
        # Pillow would make all greys above 255 white.
        levels = np.asarray(picture).astype(np.uint32)
        grey = Image.fromarray(((levels + 128) // 257).astype(np.uint8))
        if (key := picture.info.get("transparency")) is not None:
            grey.putalpha(Image.fromarray(np.where(levels == key, 0, 255).astype(np.uint8)))
        picture = grey
    if picture.mode in ("I", "F"):
        raise ValueError(
            f"{name} has the mode {picture.mode!r}, whose numbers do not say which of them is white: scale them to 0 "
            f"to 255, and convert the picture to 'L'."
        )
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    drawn = picture.convert("RGBA")
    on_white, on_black = (
        Image.alpha_composite(Image.new("RGBA", drawn.size, ground), drawn).convert("RGB")
        for ground in ("white", "black")
    )
    return on_white if np.asarray(on_white).min() < _NEARLY_WHITE else on_black


def _sample_frames(metadata: "VideoMetadata", video_processor: Any) -> list[int]:
    """Numbers of the frames of a video that the processor samples."""
    if not video_processor.do_sample_frames:
        return list(range(metadata.total_num_frames))
    settings = {name: getattr(video_processor, name, None) for name in video_processor.valid_kwargs.__annotations__}
    try:
        return [int(index) for index in video_processor.sample_frames(metadata=metadata, **settings)]
    except (ValueError, TypeError, ZeroDivisionError, RuntimeError) as cause:
        sampling = {name: settings[name] for name in ("fps", "num_frames") if settings.get(name) is not None}
        raise ValueError(
            f"the processor cannot sample a video of {metadata.total_num_frames} frames at {metadata.fps} frames per "
            f"second by its settings {sampling} ({cause}). They are attributes of model.processor.video_processor; "
            f"with do_sample_frames=False it takes every frame."
        ) from cause


def _decode_video(path: Path, video_processor: Any) -> Clip:
    """Decode the sampled frames of a file by Hugging Face's own loading."""
    from transformers.utils.import_utils import is_av_available, is_torchcodec_available
    from transformers.video_utils import load_video

    if not path.is_file():
        raise FileNotFoundError(f"there is no video file {str(path)!r}.")
    backend = "torchcodec" if is_torchcodec_available() else "pyav" if is_av_available() else None
    if backend is None:
        raise ImportError(
            f"nothing that decodes {str(path)!r} is installed: pip install torchcodec, or pip install av, or pass its "
            f"frames as corelens.Video(frames, fps)."
        )
    indices: list[int] = []

    def sample_indices(metadata: "VideoMetadata", **_: Any) -> list[int]:
        indices.extend(_sample_frames(metadata, video_processor))
        return indices

    try:
        decoded, metadata = load_video(str(path), backend=backend, sample_indices_fn=sample_indices)  # pyright: ignore[reportArgumentType]
    except (OSError, RuntimeError, ValueError) as cause:
        raise ValueError(f"{str(path)!r} cannot be decoded as a video by {backend}: {cause}") from cause
    frames = np.asarray(decoded)
    if frames.shape[-1] != 3:  # torchcodec puts colours first
        frames = np.moveaxis(frames, 1, -1)
    if len(frames) != len(indices):
        raise ValueError(
            f"{str(path)!r} is damaged: it should have {metadata.total_num_frames} frames, but only {len(frames)} of "
            f"the {len(indices)} sampled ones could be decoded."
        )
    return Clip(frames, metadata)
