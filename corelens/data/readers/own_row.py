"""A row of data of one's own: its fields, and the sample that it becomes.

docs/own-data.md explains the fields. Nothing is guessed: a field that is not known, a box without its format or an
answer that is none of its choices is a reason to refuse the row.
"""

from collections.abc import Mapping
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from corelens.data.readers.base import BadRow, Corners, Number, StoredPicture, Text, media_file, pixel_box, stored_form
from corelens.data.sample import Evidence, Sample
from corelens.data.scoring import score
from corelens.tokens import Box

Words = Annotated[Text, Field(strict=False, coerce_numbers_to_str=True)]
"""Text, for which a number may stand."""
BoxFormat = Literal["xyxy", "xywh"]
"""Left, top, right, bottom; or left, top, width, height."""
StoredUnit = Literal["pixels", "fractions", "thousandths"]
"""Unit of boxes in a file: pixels of the stored picture, or fractions or thousandths of its width and height."""
TimeSpan = Annotated[list[Number], Field(min_length=2, max_length=2)]
"""Start and end of evidence in a video, in seconds."""
Rule = Literal["phrase", "exact", "contains", "anls", "numeric", "yes-no", "count", "label", "choice", "box"]

SINGULAR = {"image": "images", "file_name": "images", "answer": "answers", "box": "boxes", "seconds": "spans"}
"""Fields that hold one value, and those that hold a list of them; `file_name` is the name in Hugging Face's folders."""
BEST_OPTION = "Only give the best option."


class OwnRow(BaseModel):
    """The fields of a row."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, arbitrary_types_allowed=True)

    question: Words
    images: list[Text | StoredPicture] = []
    video: Text | None = None
    answers: list[Words] = []
    choices: Annotated[list[Words], Field(min_length=2, max_length=26)] | None = None
    instruction: Words | None = None
    scoring: Rule | None = None
    boxes: list[Corners] = []
    box_format: BoxFormat | None = None
    box_unit: StoredUnit | None = None
    evidence_images: list[Annotated[int, Field(ge=0)]] = []
    spans: list[TimeSpan] = []
    group: Words | None = None
    task: Words | None = None
    id: Words | None = None
    about: dict[str, Any] = {}


ROW_FIELDS = (*OwnRow.model_fields, *SINGULAR)


def plural_fields(row: Mapping[str, Any]) -> dict[str, Any]:
    """Fields that are given, each by the name of the list that it belongs to."""
    given = {name: value for name, value in row.items() if value is not None}
    for one, several in SINGULAR.items():
        if one in given:
            if several in given:
                raise BadRow(f"it has both {one!r} and {several!r}: give one of them")
            given[several] = [given.pop(one)]
    return given


def validated_row(fields: Any) -> OwnRow:
    """The row of some fields.

    Raises:
        BadRow: If they do not make one; names every field that is wrong.
    """
    if isinstance(fields, BadRow):
        raise fields
    try:
        return OwnRow.model_validate(fields)
    except ValidationError as cause:
        raise BadRow("; ".join(dict.fromkeys(map(_reason, cause.errors())))) from cause


def _reason(error: Any) -> str:
    """One error of pydantic, in words."""
    name, *_ = error["loc"]
    if error["type"] == "extra_forbidden":
        return f"it has {unknown_field(name)}"
    if error["type"] == "missing":
        return f"it has no field {name!r}"
    one = next((one for one, several in SINGULAR.items() if several == name), "")
    hint = f" (of one, the field is {one!r})" if one and error["type"] == "list_type" else ""
    return f"its {name!r} has {error['input']!r:.80}: {error['msg']}{hint}"


def unknown_field(name: str) -> str:
    nearest = get_close_matches(name, ROW_FIELDS, 1, 0.5)
    known = f"the nearest is {nearest[0]!r}" if nearest else f"there are {', '.join(ROW_FIELDS)}"
    return f"a field {name!r}, which is not known: {known}"


def row_sample(row: OwnRow, row_id: str, folder: Path) -> Sample:
    pictures = tuple(_picture(picture, folder) for picture in row.images)
    videos = () if row.video is None else (_file(row.video, folder, "video"),)
    evidence = _spans(row) if videos else _evidence(row, pictures)
    scoring = row.scoring or ("choice" if row.choices else "phrase")
    choices = tuple(row.choices or ())
    if (scoring == "choice") != bool(choices):
        raise BadRow("it has choices, and its scoring is not 'choice'" if choices else "it has no 'choices' to score")
    if scoring == "box":
        answers = _box_answer(row, evidence)
    elif not (answers := row.answers):
        raise BadRow("it has no field 'answer'")
    if choices and (set(answers) - set(choices) or len(set(choices)) < len(choices)):
        raise BadRow(f"its answer is the text of one of its choices, each of which is there once; it is {answers[0]!r}")
    about = {**row.about, "group": row.group or _group([*row.images, *videos], folder), "task": row.task}
    sample = Sample(
        row_id,
        row.question,
        answers[0],
        pictures,
        evidence,
        videos,
        instruction=_instruction(choices, row.instruction),
        choices=choices,
        also_accepted=() if choices else tuple(answers[1:]),
        scoring=scoring,
        about={key: value for key, value in about.items() if value is not None},
    )
    if scoring != "box" and (unread := [answer for answer in answers if not _is_right(sample, answer)]):
        raise BadRow(f"its answer {unread[0]!r} is not right by its own scoring, {scoring!r}")
    return sample


def _picture(picture: str | StoredPicture, folder: Path) -> str | StoredPicture:
    if isinstance(picture, StoredPicture):
        return picture
    return _file(picture, folder, "picture")


def _file(name: str, folder: Path, kind: Literal["picture", "video"]) -> str:
    if "://" in name:
        raise BadRow(f"its {kind} {name} is an address, and nothing is fetched: download it and give the file")
    return media_file(folder, name, kind)


def _spans(row: OwnRow) -> tuple[Evidence, ...]:
    """Evidence in a video: stretches of time."""
    if row.images or row.boxes or row.evidence_images:
        raise BadRow(
            "it has a 'video', whose evidence is in 'seconds', so that it has no pictures and no boxes: a cl.Sample in "
            "Python takes them together"
        )
    for start, end in row.spans:
        if not 0 <= start < end:
            raise BadRow(f"its 'seconds' are [{start}, {end}]: from a start to a later end")
    return tuple(Evidence(seconds=(start, end)) for start, end in row.spans)


def _evidence(row: OwnRow, pictures: tuple[str | StoredPicture, ...]) -> tuple[Evidence, ...]:
    """Boxes, each in its picture; or whole pictures, if only these are named."""
    numbers = row.evidence_images
    if row.spans:
        raise BadRow("it has 'seconds', and no 'video' that they are of")
    if outside := [number for number in numbers if number >= len(pictures)]:
        raise BadRow(f"its 'evidence_images' name picture {outside[0]}, and it has {len(pictures)}, counted from zero")
    if not row.boxes:
        return tuple(Evidence(media=number) for number in numbers)
    if missing := [name for name in ("box_format", "box_unit") if getattr(row, name) is None]:
        raise BadRow(f"it has boxes, and neither it nor the defaults in the first line say their {missing[0]!r}")
    if len(pictures) == 1:
        numbers = numbers or [0] * len(row.boxes)
    if len(numbers) != len(row.boxes):
        raise BadRow(
            f"it has {len(row.boxes)} boxes, {len(pictures)} pictures and {len(numbers)} 'evidence_images': name the "
            f"picture of each box, counted from zero"
        )
    return tuple(
        Evidence(_box(row, corners, pictures[number]), number)
        for corners, number in zip(row.boxes, numbers, strict=True)
    )


def _box(row: OwnRow, corners: list[float | int], picture: str | StoredPicture) -> Box:
    x, y, right, bottom = corners
    if row.box_format == "xywh":
        right, bottom = x + right, y + bottom
    stored = stored_form(picture if isinstance(picture, StoredPicture) else partial(Image.open, picture))
    parts = {"pixels": stored.size, "fractions": (1, 1), "thousandths": (1000, 1000)}[row.box_unit or "pixels"]
    scale = stored.size[0] / parts[0], stored.size[1] / parts[1]
    return pixel_box([x, y, right, bottom], stored.size, scale, stored.orientation)


def _box_answer(row: OwnRow, evidence: tuple[Evidence, ...]) -> list[str]:
    """The answer to a question for a box, which its evidence is."""
    if row.answers:
        raise BadRow("its scoring is 'box', and its box is the answer: leave 'answer' out")
    if len(evidence) != 1 or (box := evidence[0].box) is None:
        raise BadRow(f"its scoring is 'box', and it has {len(row.boxes)} boxes: it needs one")
    return [str([round(edge) for edge in box])]


def _instruction(choices: tuple[str, ...], instruction: str | None) -> str:
    """Lines that follow the question: the options, as MLVU writes them, and what to answer with."""
    if not choices:
        return f"\n{instruction}" if instruction else ""
    options = "\n".join(f"({chr(ord('A') + index)}) {choice}" for index, choice in enumerate(choices))
    return f"\nOptions:\n{options}\n{instruction or BEST_OPTION}"


def _group(images: list[str | StoredPicture], folder: Path) -> str | None:
    """Path of the first picture: questions about it are not independent."""
    return str(folder / images[0]) if images and isinstance(images[0], str) else None


def _is_right(sample: Sample, answer: str) -> bool:
    try:
        return score(sample, answer) == 1
    except ValueError:  # a label that is no number
        return False
