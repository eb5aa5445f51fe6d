"""VidSTG: which object does a sentence mean, where and when? (Zhang et al., 2020), with boxes from VidOR."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from corelens.data.readers.base import (
    BadRow,
    Row,
    Samples,
    box_in,
    files_in,
    folder_of,
    get_field,
    read_json,
    read_rows,
    require_path,
    text_field,
)
from corelens.data.sample import Evidence, Sample
from corelens.inputs.media import Video


@dataclass
class FileFrames(Sequence[Image.Image]):
    """Frames `start` up to `end`, which is not one of them, of a video file.

    Frames are counted by decoding from the beginning, so their numbers are exact whatever the file says of its times;
    asked for in order, every frame is decoded once. Needs PyAV.
    """

    path: Path
    start: int
    end: int
    _decoding: Iterator[tuple[int, Any]] | None = field(default=None, repr=False)
    _next: int = field(default=0, repr=False)

    def __reduce__(self) -> tuple[Any, ...]:
        # A decoder cannot travel to another process; there, decoding begins anew.
        return FileFrames, (self.path, self.start, self.end)

    def __len__(self) -> int:
        return self.end - self.start

    def __getitem__(self, index: int) -> Image.Image:  # pyright: ignore[reportIncompatibleMethodOverride]
        if not 0 <= index < len(self):
            raise IndexError(f"there is no frame {index}: the clip has {len(self)}.")
        wanted = self.start + index
        if self._decoding is None or wanted < self._next:
            self._decoding, self._next = self._decode(), 0
        for number, frame in self._decoding:
            self._next = number + 1
            if number == wanted:
                return frame.to_image()
        self._decoding = None
        raise ValueError(f"{str(self.path)!r} has no frame {wanted}: it ends after {self._next}.")

    def _decode(self) -> Iterator[tuple[int, Any]]:
        av = require_path("av")
        try:
            with av.open(str(self.path)) as container:
                yield from enumerate(container.decode(video=0))
        except (av.FFmpegError, IndexError) as cause:
            raise ValueError(f"{str(self.path)!r} cannot be decoded as a video: {cause}") from cause


def vidstg(
    source: str | PathLike[str],
    vidor: str | PathLike[str],
    split: Literal["train", "val", "test"] = "test",
    sentences: Literal["questions", "captions"] = "questions",
) -> Samples:
    """One sample per sentence: the used segment of a video, with the target's box in every frame as evidence.

    VidSTG names a target and when the sentence holds of it; its boxes are in VidOR's annotations, and the videos are
    VidOR's. Segments hold their first frame and not their last, as in the code of TubeDETR. Seconds count from the
    beginning of the segment. An answer is right if it names the target's kind; this is ours, since the authors measure
    how a predicted course of boxes overlaps the target's.

    Args:
        source: A folder with `{split}_annotations.json`, or a Hub id such as `k-nick/VidSTG`.
        vidor: A folder with VidOR's annotations (`{vid}.json`) and videos (`{vid}.mp4`), at any depth.
        split: `train` and `val` are from VidOR's training videos, `test` from its validation videos.
        sentences: `questions` ask for the target ("what is ..."), `captions` describe it.
    """
    if sentences not in ("questions", "captions"):
        raise ValueError(f"sentences={sentences!r} is not known; they are questions or captions.")
    if not Path(vidor).is_dir():
        raise FileNotFoundError(f"there is no folder {str(vidor)!r} with VidOR's annotations and videos.")
    path = files_in(folder_of(source, [f"*{split}_annotations.json"]), f"{split}_annotations.json")[0]
    rows = read_rows(path)
    boxes = {file.stem: file for file in Path(vidor).rglob("*.json")}
    videos = {file.stem: file for file in Path(vidor).rglob("*.mp4")}

    def read() -> Iterator[Row]:
        for index, row in enumerate(rows):
            for number in range(max(1, len(said) if isinstance(said := row.get(sentences), list) else 0)):
                name = f"{row.get('vid', '')}-{index}-{number}"
                yield name, partial(_sample, name, row, number, sentences, boxes, videos)

    return Samples(f"VidSTG {split} {sentences}", read)


def _sample(
    name: str,
    row: Mapping[str, Any],
    number: int,
    sentences: str,
    boxes: Mapping[str, Path],
    videos: Mapping[str, Path],
) -> Sample:
    video = text_field(row, "vid")
    said = get_field(row, sentences, list)
    if not said:
        raise BadRow(f"its {sentences!r} are empty")
    sentence, target = text_field(said[number], "description"), get_field(said[number], "target_id", int)
    if video not in boxes:
        raise BadRow(f"there is no trajectory file {video}.json of VidOR")
    if video not in videos:
        raise BadRow(f"there is no video file {video}.mp4 of VidOR")
    n_frames, fps = get_field(row, "frame_count", int), get_field(row, "fps", int, float)
    size = (get_field(row, "width", int), get_field(row, "height", int))
    start, end = _span(row, "used_segment")
    if fps <= 0:
        raise BadRow(f"its 'fps' is {fps}")
    if not 0 <= start < end <= n_frames:
        raise BadRow(f"its segment {start} to {end} is no part of its {n_frames} frames")
    first, last = _span(row, "temporal_gt")
    if not start <= first < last <= end:
        raise BadRow(f"its target's time {first} to {last} is no part of the used segment {start} to {end}")
    course = _trajectories(boxes[video])
    evidence = []
    for frame in range(first, min(last, len(course))):
        if target in course[frame]:
            seconds = ((frame - start) / fps, (frame + 1 - start) / fps)
            evidence.append(Evidence(box_in(course[frame][target], size), 0, seconds))
    categories = {
        get_field(thing, "tid", int): text_field(thing, "category") for thing in get_field(row, "subject/objects", list)
    }
    if target not in categories:
        raise BadRow(f"its target {target} is none of its objects {sorted(categories)}")
    if not evidence:
        raise BadRow(f"its target {target} has no box in VidOR between frames {first} and {last}")
    return Sample(
        name,
        sentence,
        categories[target],
        evidence=tuple(evidence),
        videos=(Video(FileFrames(videos[video], start, end), fps),),
        scoring="contains",
        about={"video": video, "target": target, "kind": said[number].get("type"), "frames": (first, last)},
    )


def _span(row: Mapping[str, Any], name: str) -> tuple[int, int]:
    span = get_field(row, name, dict)
    return get_field(span, "begin_fid", int), get_field(span, "end_fid", int)


@lru_cache(maxsize=4)
def _trajectories(path: Path) -> list[dict[int, list[float]]]:
    """Boxes by object, for every frame."""
    try:
        return [
            {thing["tid"]: [float(thing["bbox"][edge]) for edge in ("xmin", "ymin", "xmax", "ymax")] for thing in frame}
            for frame in read_json(path)["trajectories"]
        ]
    except (ValueError, KeyError, TypeError) as cause:
        raise BadRow(f"{str(path)!r} is not an annotation file of VidOR: {cause!r}") from cause
