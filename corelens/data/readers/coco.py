"""Annotations in COCO's form (Lin et al., 2014): is an object of a category in the picture?"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

from PIL import Image

from corelens.data.readers.base import (
    BadRow,
    Corners,
    Row,
    Samples,
    Text,
    media_file,
    pixel_box,
    raise_error,
    read_field,
    read_json,
    stored_form,
)
from corelens.data.sample import Evidence, Sample
from corelens.errors import docs_link

Key = int | str
"""Number or name of a picture, category or annotation."""
LISTS = ("images", "categories", "annotations")


@dataclass(frozen=True)
class _Annotations:
    files: Mapping[Key, str]
    """By picture."""

    categories: Mapping[Key, str]
    objects: Mapping[Key, Mapping[Key, Sequence[Any]]]
    """Annotations of each picture, by category."""

    refused: Sequence[tuple[str, BadRow]]


def coco(path: Path, folder: Path, name: str) -> Samples:
    """Read one sample for every picture and category in it, and as many for categories that are not in it.

    The question is whether an object of the category is in the picture. Where one is, the answer is yes, and the boxes
    of all such objects are the evidence; of crowds (`iscrowd`) nothing is asked. The answer is no for the commonest
    categories that have no annotation in the picture; there is no evidence then.

    Args:
        path: The annotations.
        folder: Folder of the pictures.
        name: Name of the data set in results.

    Source:
        POPE (arXiv 2305.10355) with popular negatives. That boxes are evidence is corelens's own.
    """
    content = read_json(path)
    for part in LISTS:
        if not isinstance(content, dict) or not isinstance(content.get(part), list):
            raise ValueError(
                f"{path.name} is not in COCO's form: it needs lists of {', '.join(LISTS)}. {docs_link('own-file')}"
            )
    return Samples(name, partial(_rows, _annotations(content), path.stem, folder))


def _annotations(content: Mapping[str, Any]) -> _Annotations:
    files: dict[Key, str] = {}
    categories: dict[Key, str] = {}
    objects: dict[Key, dict[Key, list[Any]]] = defaultdict(lambda: defaultdict(list))
    refused: list[tuple[str, BadRow]] = []

    def add(part: str, entry: Any) -> None:
        if part == "images":
            files[read_field(entry, "id", Key)] = read_field(entry, "file_name", Text)
        elif part == "categories":
            categories[read_field(entry, "id", Key)] = read_field(entry, "name", Text)
        else:
            image, category = (read_field(entry, name, Key) for name in ("image_id", "category_id"))
            if image not in files or category not in categories:
                raise BadRow(f"it is of picture {image!r} and category {category!r}, which are not both listed")
            objects[image][category].append(entry)

    for part in LISTS:
        for number, entry in enumerate(content[part]):
            try:
                add(part, entry)
            except BadRow as cause:
                refused.append((f"{part}[{number}]", cause))
    plain = {image: dict(of_image) for image, of_image in objects.items()}  # without the functions of defaults
    return _Annotations(files, categories, plain, refused)


def _rows(annotations: _Annotations, stem: str, folder: Path) -> Iterator[Row]:
    for label, reason in annotations.refused:
        yield label, partial(raise_error, reason)
    n_pictures = Counter(category for of_image in annotations.objects.values() for category in of_image)
    commonest = [category for category, _ in n_pictures.most_common()]
    for image, file in annotations.files.items():
        objects = annotations.objects.get(image, {})
        present = [category for category in annotations.categories if _are_single(objects.get(category, ()))]
        absent = [category for category in commonest if category not in objects][: len(present)]
        # In turns, so that the first n samples have both answers.
        for pair in zip_longest(present, absent):
            for category in pair:
                if category is not None:
                    row = f"{stem}-{image}-{category}"
                    name = annotations.categories[category]
                    yield row, partial(_sample, row, name, folder, file, objects.get(category, ()))


def _are_single(objects: Sequence[Any]) -> bool:
    return bool(objects) and not any(entry.get("iscrowd") for entry in objects)


def _sample(row: str, category: str, folder: Path, file: str, objects: Sequence[Any]) -> Sample:
    path = media_file(folder, file)
    return Sample(
        row,
        f"Is there {'an' if category[0].lower() in 'aeiou' else 'a'} {category} in the picture?",
        "yes" if objects else "no",
        path,
        _boxes(path, objects) if objects else (),
        instruction=" Answer yes or no.",
        scoring="yes-no",
        about={"category": category, "group": path},
    )


def _boxes(path: str, objects: Sequence[Any]) -> list[Evidence]:
    stored, boxes = stored_form(partial(Image.open, path)), []
    for entry in objects:
        left, top, width, height = read_field(entry, "bbox", Corners)
        corners = [left, top, left + width, top + height]
        boxes.append(pixel_box(corners, stored.size, orientation=stored.orientation))
    return [Evidence(box) for box in boxes]
