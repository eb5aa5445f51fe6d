"""VideoMME: multiple-choice questions on videos of seconds to an hour (Fu et al., 2025; Hub: lmms-lab/Video-MME).

The form of the rows is that which lmms-eval reads (`lmms_eval/tasks/videomme`).
"""

import string
from collections.abc import Iterator, Mapping
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

from corelens.data.readers.archives import unpack_archives
from corelens.data.readers.base import (
    BadRow,
    Row,
    Samples,
    Text,
    dataset_folder,
    find_files,
    read_field,
    read_table,
)
from corelens.data.sample import Sample

TASKS = (
    "Temporal Perception", "Spatial Perception", "Attribute Perception", "Action Recognition", "Object Recognition",
    "OCR Problems", "Counting Problem", "Temporal Reasoning", "Spatial Reasoning", "Action Reasoning",
    "Object Reasoning", "Information Synopsis",
)  # fmt: skip
"""The twelve task categories, in the order of table 4 of arXiv 2606.05843."""
DURATIONS = ("short", "medium", "long")


def videomme(source: str | PathLike[str] = "lmms-lab/Video-MME") -> Samples:
    """Read one sample per question, without subtitles. VideoMME does not annotate the evidence in its videos.

    The answer is a letter. The options are the instruction of a sample, since the data set keeps them apart from its
    question; how they are put is ours, shorter than lmms-eval's. The average in table 4 of arXiv 2606.05843 is the
    accuracy over all questions; `corelens.data.tally_by` computes that of the twelve categories, `about["task"]`.

    Args:
        source: A folder with `*.parquet` and the videos, `{videoID}.mp4`, at any depth; or the Hub id: then all videos
            are downloaded, and unpacked beside Hugging Face's cache.
    """
    folder = dataset_folder(source, ["videomme/*.parquet", "videos_chunked_*.zip"])
    rows = read_table(find_files(folder, "test-*.parquet", "*.parquet"))
    if not Path(source).expanduser().is_dir():
        folder = unpack_archives(folder, "Video-MME")
    videos = {path.stem: path for path in folder.rglob("*") if path.suffix.lower() in (".mp4", ".mkv")}
    if not videos:
        raise FileNotFoundError(f"{str(folder)!r} holds no video; unpack every videos_chunked_*.zip there.")
    return Samples("VideoMME", partial(_rows, rows, videos))


def _rows(rows: Any, videos: Mapping[str, Path]) -> Iterator[Row]:
    for index in range(len(rows)):
        name = str(rows[index].get("question_id", index))
        yield name, partial(_sample, name, rows[index], videos)


def _sample(name: str, row: Mapping[str, Any], videos: Mapping[str, Path]) -> Sample:
    task, duration = read_field(row, "task_type", Text), read_field(row, "duration", Text)
    if task not in TASKS:
        raise BadRow(f"its 'task_type' is {task!r}, which is none of {', '.join(TASKS)}")
    if duration not in DURATIONS:
        raise BadRow(f"its 'duration' is {duration!r}, which is none of {', '.join(DURATIONS)}")
    if (video := read_field(row, "videoID", Text)) not in videos:
        raise BadRow(f"there is no video file {video}.mp4")
    if not row.get("options"):
        raise BadRow("it has no options, and its answer is the letter of one")
    options = read_field(row, "options", list[Text])
    letters = tuple(string.ascii_uppercase[: len(options)])
    if not all(option.startswith(f"{letter}.") for option, letter in zip(options, letters, strict=True)):
        raise BadRow(f"its options {options} do not begin with {', '.join(f'{letter}.' for letter in letters)}")
    if (answer := read_field(row, "answer", Text)) not in letters:
        raise BadRow(f"its answer {answer!r} is the letter of none of its options {options}")
    return Sample(
        name,
        read_field(row, "question", Text),
        answer,
        videos=(str(videos[video]),),
        instruction="\n" + "\n".join(options) + "\nAnswer with the option's letter.",
        choices=letters,
        scoring="choice",
        about={
            "task": task,
            "duration": duration,
            "domain": row.get("domain"),
            "kind": row.get("sub_category"),
            "video": video,
            "group": video,
        },
    )
