"""MLVU: questions on videos of minutes to hours (Zhou et al., 2024; Hub: MLVU/MVLU, gated)."""

from collections.abc import Iterator, Mapping
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

from corelens.data.readers.base import BadRow, Row, Samples, Text, dataset_folder, read_field, read_rows
from corelens.data.sample import Sample
from corelens.errors import check_choice

TASKS = ("plotQA", "needle", "ego", "count", "order", "anomaly_reco", "topic_reasoning", "sub_scene", "summary")


def mlvu(source: str | PathLike[str] = "MLVU/MVLU", task: str = "needle") -> Samples:
    """Read one sample per question of one task. MLVU does not annotate the evidence in its videos.

    Args:
        source: A folder with `json/*_{task}.json` and `video/*_{task}/`, or the Hub id, from which only this task is
            downloaded; request access first.
        task: plotQA, needle, ego, count, order, anomaly_reco and topic_reasoning are multiple-choice; sub_scene and
            summary are open, and the authors score them with a language model.
    """
    check_choice("task", task, TASKS)
    folder = dataset_folder(
        source,
        [f"**/json/*_{task}.json", f"**/video/*_{task}/*"],
        "MLVU may be used for academic research only: accept its terms on its page",
    )
    if not (paths := sorted(folder.rglob(f"json/*{task}.json"))):
        raise FileNotFoundError(f"{str(folder)!r} holds no json/*_{task}.json.")
    rows = read_rows(paths[0])
    videos = paths[0].parent.parent / "video" / paths[0].stem

    def read() -> Iterator[Row]:
        for index, row in enumerate(rows):
            name = f"{task}-{index}"
            yield name, partial(_sample, name, row, videos, task)

    return Samples(f"MLVU {task}", read)


def _sample(name: str, row: Mapping[str, Any], videos: Path, task: str) -> Sample:
    path = videos / read_field(row, "video", Text)
    if not path.is_file():
        raise BadRow(f"its video {str(path)!r} does not exist")
    question, answer = read_field(row, "question", Text), read_field(row, "answer", Text)
    candidates = read_field(row, "candidates", list) if row.get("candidates") else []
    choices = tuple(str(candidate).strip() for candidate in candidates)
    if choices:
        if answer not in choices:
            raise BadRow(f"its answer {answer!r} is none of its candidates {choices}")
        options = "\n".join(f"({chr(ord('A') + index)}) {choice}" for index, choice in enumerate(choices))
        question = f"{question}\nOptions:\n{options}\nOnly give the best option."
    return Sample(
        name,
        question,
        answer,
        videos=(str(path),),
        choices=choices,
        scoring="choice" if choices else "judge",
        about={"task": task, "duration": read_field(row, "duration", int | float), "points": row.get("scoring_points")},
    )
