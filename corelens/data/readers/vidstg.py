"""VidSTG: the place and time of the object that a sentence describes (Zhang et al., 2020), with boxes from VidOR."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from corelens.data.readers.base import (
    BadRow,
    Regions,
    Row,
    Samples,
    Text,
    dataset_folder,
    find_files,
    pixel_box,
    read_field,
    read_json,
    read_rows,
    require_package,
)
from corelens.data.sample import Evidence, Sample
from corelens.errors import check_choice
from corelens.inputs.media import Video

Sentences = Literal["questions", "captions"]


@dataclass
class FileFrames(Sequence[Image.Image]):
    """Frames from `start` to before `end` of a video file.

    Frames are counted by decoding from the beginning, so their numbers do not depend on the timestamps in the file;
    accessed in order, every frame is decoded once. Needs PyAV.
    """

    path: Path
    start: int
    end: int
    _decoding: Iterator[tuple[int, Any]] | None = field(default=None, repr=False)
    _next: int = field(default=0, repr=False)

    def __reduce__(self) -> tuple[Any, ...]:
        # A decoder cannot be pickled; another process decodes from the beginning.
        return FileFrames, (self.path, self.start, self.end)

    def __len__(self) -> int:
        return self.end - self.start

    def __getitem__(self, index: int) -> Image.Image:  # pyright: ignore[reportIncompatibleMethodOverride]
        if not 0 <= index < len(self):
            raise IndexError(f"there is no frame {index}: the clip has {len(self)}.")
        number = self.start + index
        if self._decoding is None or number < self._next:
            self._decoding, self._next = self._decode(), 0
        for decoded, frame in self._decoding:
            self._next = decoded + 1
            if decoded == number:
                return frame.to_image()
        self._decoding = None
        raise ValueError(f"{str(self.path)!r} has no frame {number}: it ends after {self._next}.")

    def _decode(self) -> Iterator[tuple[int, Any]]:
        av = require_package("av")
        try:
            with av.open(str(self.path)) as container:
                yield from enumerate(container.decode(video=0))
        except (av.FFmpegError, IndexError) as cause:
            raise ValueError(f"{str(self.path)!r} cannot be decoded as a video: {cause}") from cause


def vidstg(
    source: str | PathLike[str],
    vidor: str | PathLike[str],
    split: Literal["train", "val", "test"] = "test",
    sentences: Sentences = "questions",
    evidence: Regions = "annotated",
) -> Samples:
    """Read one sample per sentence: the used segment of a video, with the target in it as evidence.

    VidSTG names a target and the time at which the sentence is true of it; its boxes are in VidOR's annotations, and
    the videos are VidOR's. Segments include their first frame and exclude their last, as in the code of TubeDETR.
    Seconds count from the beginning of the segment. An answer is right if it names the target's category; this is
    ours, since the authors measure the overlap of a predicted tube of boxes with the target's.

    Args:
        source: A folder with `{split}_annotations.json`, or a Hub id such as `k-nick/VidSTG`.
        vidor: A folder with VidOR's annotations (`{vid}.json`) and videos (`{vid}.mp4`), at any depth.
        split: `train` and `val` are from VidOR's training videos, `test` from its validation videos.
        sentences: `questions` ask for the target ("what is ..."), `captions` describe it.
        evidence: `annotated`: the target's box in every frame. `published`: the whole frames of the time in which the
            sentence is true, as in appendix C.4 of arXiv 2606.05843.
    """
    check_choice("sentences", sentences, Sentences)
    check_choice("evidence", evidence, Regions)
    if not Path(vidor).is_dir():
        raise FileNotFoundError(f"there is no folder {str(vidor)!r} with VidOR's annotations and videos.")
    path = find_files(dataset_folder(source, [f"*{split}_annotations.json"]), f"{split}_annotations.json")[0]
    rows = read_rows(path)
    annotations = {file.stem: file for file in Path(vidor).rglob("*.json")}
    videos = {file.stem: file for file in Path(vidor).rglob("*.mp4")}
    whole_frames = ", whole frames" if evidence == "published" else ""
    return Samples(
        f"VidSTG {split} {sentences}{whole_frames}", partial(_rows, rows, sentences, annotations, videos, evidence)
    )


def _rows(
    rows: list[Any], sentences: str, annotations: Mapping[str, Path], videos: Mapping[str, Path], evidence: Regions
) -> Iterator[Row]:
    for index, row in enumerate(rows):
        for number in range(max(1, len(entries) if isinstance(entries := row.get(sentences), list) else 0)):
            name = f"{row.get('vid', '')}-{index}-{number}"
            yield name, partial(_sample, name, row, number, sentences, annotations, videos, evidence)


def _sample(
    name: str,
    row: Mapping[str, Any],
    number: int,
    sentences: str,
    annotations: Mapping[str, Path],
    videos: Mapping[str, Path],
    kind_of_evidence: Regions,
) -> Sample:
    video = read_field(row, "vid", Text)
    entries = read_field(row, sentences, list)
    if not entries:
        raise BadRow(f"its {sentences!r} are empty")
    entry = entries[number]
    sentence, target = read_field(entry, "description", Text), read_field(entry, "target_id", int)
    if video not in annotations and kind_of_evidence == "annotated":
        raise BadRow(f"there is no annotation file {video}.json of VidOR")
    if video not in videos:
        raise BadRow(f"there is no video file {video}.mp4 of VidOR")
    n_frames, fps = read_field(row, "frame_count", int), read_field(row, "fps", int | float)
    size = (read_field(row, "width", int), read_field(row, "height", int))
    start, end = _span(row, "used_segment")
    if fps <= 0:
        raise BadRow(f"its 'fps' is {fps}")
    if not 0 <= start < end <= n_frames:
        raise BadRow(f"its segment {start} to {end} is not within its {n_frames} frames")
    first, last = _span(row, "temporal_gt")
    if not start <= first < last <= end:
        raise BadRow(f"its target's time {first} to {last} is not within the used segment {start} to {end}")
    if kind_of_evidence == "published":
        evidence = [Evidence(seconds=((first - start) / fps, (last - start) / fps))]
    else:
        trajectory = _trajectories(annotations[video])
        evidence = [
            Evidence(pixel_box(trajectory[frame][target], size), 0, ((frame - start) / fps, (frame + 1 - start) / fps))
            for frame in range(first, min(last, len(trajectory)))
            if target in trajectory[frame]
        ]
    categories = {
        read_field(entity, "tid", int): read_field(entity, "category", Text)
        for entity in read_field(row, "subject/objects", list)
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
        about={"video": video, "target": target, "task": entry.get("type"), "frames": (first, last), "group": video},
    )


def _span(row: Mapping[str, Any], name: str) -> tuple[int, int]:
    span = read_field(row, name, dict)
    return read_field(span, "begin_fid", int), read_field(span, "end_fid", int)


@lru_cache(maxsize=4)
def _trajectories(path: Path) -> list[dict[int, list[float]]]:
    """Boxes by object id, for every frame."""
    try:
        return [
            {item["tid"]: [float(item["bbox"][edge]) for edge in ("xmin", "ymin", "xmax", "ymax")] for item in frame}
            for frame in read_json(path)["trajectories"]
        ]
    except (ValueError, KeyError, TypeError) as cause:
        raise BadRow(f"{str(path)!r} is not an annotation file of VidOR: {cause!r}") from cause
