"""MLVU: questions on videos of minutes to hours (Zhou et al., 2024; Hub: MLVU/MVLU, gated)."""

from collections.abc import Iterator, Mapping
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

from corelens.data.readers.base import (
    BadRow,
    Row,
    Samples,
    Text,
    dataset_folder,
    find_files,
    media_file,
    read_field,
    read_rows,
)
from corelens.data.sample import Sample
from corelens.errors import check_choice

PUBLISHED_TASKS = ("topic_reasoning", "needle", "ego", "plotQA", "order", "count")
"""The multiple-choice tasks of table 2 of arXiv 2606.05843, in its order: all but anomaly recognition."""

TASKS = ("plotQA", "needle", "ego", "count", "order", "anomaly_reco", "topic_reasoning", "sub_scene", "summary")


def mlvu(source: str | PathLike[str] = "MLVU/MVLU", task: str = "needle") -> Samples:
    """Read one sample per question of a task, or of six. MLVU does not annotate the evidence in its videos.

    The options are the instruction of a sample, since the data set keeps them apart from its question.

    Args:
        source: A folder with `json/*_{task}.json` and `video/*_{task}/`, or the Hub id, from which only what is needed
            is downloaded; request access first.
        task: plotQA, needle, ego, count, order, anomaly_reco and topic_reasoning are multiple-choice; sub_scene and
            summary are open, and the authors score them with a language model. `published` are the six of table 2 of
            arXiv 2606.05843 in turns, so that the first n questions are spread over the tasks: all multiple-choice
            tasks but anomaly_reco. The average printed there is the mean of the accuracies of its tasks, which
            `corelens.data.tally_by` computes.
    """
    check_choice("task", task, ("published", *TASKS))
    tasks = PUBLISHED_TASKS if task == "published" else (task,)
    folder = dataset_folder(
        source,
        [pattern for task in tasks for pattern in (f"**/json/*_{task}.json", f"**/video/*_{task}/*")],
        "MLVU may be used for academic research only: accept its terms on its page",
    )
    files = {task: find_files(folder, f"json/*_{task}.json")[0] for task in tasks}
    rows = {task: read_rows(path) for task, path in files.items()}
    return Samples(f"MLVU {task}", partial(_rows, rows, files))


def _rows(rows: Mapping[str, list[Any]], files: Mapping[str, Path]) -> Iterator[Row]:
    for index in range(max(map(len, rows.values()))):
        for task, path in files.items():
            if index < len(rows[task]):
                name, videos = f"{task}-{index}", path.parent.parent / "video" / path.stem
                yield name, partial(_sample, name, rows[task][index], videos, task)


def _sample(name: str, row: Mapping[str, Any], videos: Path, task: str) -> Sample:
    path = media_file(videos, read_field(row, "video", Text), "video")
    question, answer = read_field(row, "question", Text), read_field(row, "answer", Text)
    candidates = read_field(row, "candidates", list) if row.get("candidates") else []
    choices, instruction = tuple(str(candidate).strip() for candidate in candidates), ""
    if choices:
        if answer not in choices:
            raise BadRow(f"its answer {answer!r} is none of its candidates {choices}")
        options = "\n".join(f"({chr(ord('A') + index)}) {choice}" for index, choice in enumerate(choices))
        instruction = f"\nOptions:\n{options}\nOnly give the best option."
    return Sample(
        name,
        question,
        answer,
        videos=(path,),
        instruction=instruction,
        choices=choices,
        scoring="choice" if choices else "judge",
        about={
            "task": task,
            "duration": read_field(row, "duration", int | float),
            "points": row.get("scoring_points"),
            "group": Path(path).stem,
        },
    )
