"""RefCOCOg: the location of the object that an expression describes (Mao et al., 2016; Hub: lmms-lab/RefCOCOg)."""

import re
from collections.abc import Iterator
from functools import partial
from os import PathLike
from typing import Any

from corelens.data.readers.base import (
    BadRow,
    Corners,
    Row,
    Samples,
    StoredPicture,
    dataset_folder,
    find_files,
    pixel_box,
    read_field,
    read_table,
    stored_form,
)
from corelens.data.sample import Evidence, Sample

OBJECT_NUMBER = re.compile(r"(?<=_\d{12})_\d+(?=\.\w+$)")
PROMPT = "Please provide the bounding box coordinate of the region this sentence describes: {expression}"


def refcocog(source: str | PathLike[str] = "lmms-lab/RefCOCOg", split: str = "val", prompt: str = PROMPT) -> Samples:
    """Read one sample per referring expression, which is its question; the box is the evidence and the answer.

    The field `answer` of the data set holds the expressions, `bbox` is left, top, width and height in pixels.

    Args:
        source: A folder with `{split}-*.parquet`, or a Hub id.
        split: `val` or `test`.
        prompt: The text after the picture, with `{expression}` in it. Models differ in the text that they expect and
            in the unit of their answers; `corelens.data.score` needs the unit.
    """
    if "{expression}" not in prompt:
        raise ValueError(f"prompt={prompt!r} has no place for the expression: write {{expression}} in it.")
    rows = read_table(find_files(dataset_folder(source, [f"data/{split}-*.parquet"]), f"{split}-*.parquet"))
    return Samples(f"RefCOCOg {split}", partial(_rows, rows, prompt))


def _rows(rows: Any, prompt: str) -> Iterator[Row]:
    ids, expressions = rows["question_id"], rows["answer"]
    for index, (row_id, row_expressions) in enumerate(zip(ids, expressions, strict=True)):
        for number in range(max(1, len(row_expressions or ()))):
            yield f"{row_id}-{number}", partial(_sample, rows, index, number, prompt)


def _sample(rows: Any, index: int, number: int, prompt: str) -> Sample:
    row = rows[index]
    expressions = read_field(row, "answer", list)
    if not expressions or not (expression := (expressions[number] or "").strip()):
        raise BadRow("its 'answer' holds no referring expression")
    picture = StoredPicture(rows, index, "image")
    stored = stored_form(picture)
    left, top, width, height = read_field(row, "bbox", Corners)
    box = pixel_box([left, top, left + width, top + height], stored.size, orientation=stored.orientation)
    file = row.get("file_name")
    # Of an object: the name of its picture in COCO, and the number of the object.
    picture_name = OBJECT_NUMBER.sub("", file) if file else row["question_id"]
    return Sample(
        f"{row['question_id']}-{number}",
        expression,
        str([round(edge) for edge in box]),
        (picture,),
        (Evidence(box),),
        prompt=(0, prompt.format(expression=expression)),
        scoring="box",
        about={"file": file, "size": stored.upright_size, "group": picture_name},
    )
