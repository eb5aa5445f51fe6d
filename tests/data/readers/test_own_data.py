"""Files of one's own: JSON Lines, Parquet, folders, and what is skipped in them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from corelens.cli.options import samples as samples_of_command
from corelens.data import Samples, load
from corelens.data.readers.own_data import own_data
from corelens.tokens import Box
from tests.helpers.dataset_files import encoded_picture, read_with_skips, write_json, write_lines, write_table

SIZE = (200, 100)
DEFAULTS = {"box_format": "xywh", "box_unit": "pixels"}
ROWS = [
    {"question": "Which?", "answer": "red", "image": "img/0.png", "box": [20, 10, 40, 30]},
    {"question": "Which?", "answer": "blue", "image": "img/1.png", "box": [0, 0, 10, 10]},
]


def write_pictures(folder: Path) -> list[Path]:
    (folder / "img").mkdir(parents=True)
    files = [folder / "img" / f"{number}.png" for number in range(2)]
    for number, file in enumerate(files):
        Image.new("RGB", SIZE, (100 * number, 0, 0)).save(file)
    return files


def json_lines(folder: Path) -> Path:
    write_pictures(folder)
    write_lines(folder / "mine.jsonl", [{"defaults": DEFAULTS}, *ROWS])
    return folder / "mine.jsonl"


def image_folder(folder: Path) -> Path:
    write_pictures(folder)
    rows = [
        {("file_name" if key == "image" else key): value for key, value in (row | DEFAULTS).items()} for row in ROWS
    ]
    write_lines(folder / "metadata.jsonl", rows)
    return folder


def parquet_of_paths(folder: Path) -> Path:
    write_pictures(folder)
    write_table(folder / "mine.parquet", [row | DEFAULTS for row in ROWS])
    return folder / "mine.parquet"


def parquet_of_bytes(folder: Path) -> Path:
    folder.mkdir(parents=True)
    rows = [row | DEFAULTS | {"image": encoded_picture(SIZE, (100 * n, 0, 0), "PNG")} for n, row in enumerate(ROWS)]
    write_table(folder / "mine.parquet", rows)
    return folder / "mine.parquet"


def parquet_of_hugging_face(folder: Path) -> Path:
    folder.mkdir(parents=True)
    rows = [
        row | DEFAULTS | {"image": {"bytes": encoded_picture(SIZE, (100 * n, 0, 0), "PNG"), "path": "a.png"}}
        for n, row in enumerate(ROWS)
    ]
    table = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
    table.to_parquet(folder / "mine.parquet")
    return folder / "mine.parquet"


def parquet_of_names(folder: Path) -> Path:
    """Write a table whose column of pictures has paths, as Hugging Face's Image column may."""
    files = write_pictures(folder)
    rows = [row | DEFAULTS | {"image": str(file)} for row, file in zip(ROWS, files, strict=True)]
    table = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
    table.to_parquet(folder / "mine.parquet")
    return folder / "mine.parquet"


def parquet_of_lists(folder: Path) -> Path:
    files = write_pictures(folder)
    rows = [
        {key: value for key, value in row.items() if key != "image"}
        | DEFAULTS
        | {"images": [{"bytes": file.read_bytes(), "path": file.name}], "evidence_images": [0]}
        for row, file in zip(ROWS, files, strict=True)
    ]
    table = datasets.Dataset.from_list(rows).cast_column("images", datasets.List(datasets.Image()))
    table.to_parquet(folder / "mine.parquet")
    return folder / "mine.parquet"


FORMS: dict[str, Callable[[Path], Path]] = {
    "JSON Lines": json_lines,
    "a folder with metadata.jsonl": image_folder,
    "Parquet with paths": parquet_of_paths,
    "Parquet with pictures": parquet_of_bytes,
    "Parquet of Hugging Face": parquet_of_hugging_face,
    "Parquet of Hugging Face with names of pictures": parquet_of_names,
    "Parquet with lists of pictures": parquet_of_lists,
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_file_holds_the_same_samples(form: str, tmp_path: Path):
    source = FORMS[form](tmp_path / "data")
    (by_command,) = samples_of_command([f"mine={source}"], 0, None).values()
    for samples in (load("mine", source), list(by_command)):
        first, second = samples
        assert (first.question, first.answer, first.evidence[0].box) == ("Which?", "red", Box(20, 10, 60, 40))
        assert (second.answer, second.evidence[0].box) == ("blue", Box(0, 0, 10, 10))
        assert [int(np.asarray(one.pictures[0])[0, 0, 0]) for one in (first, second)] == [0, 100]
    assert load("mine", source).name == "mine"
    assert own_data(source).name == ("data" if source.is_dir() else "mine")


def test_rows_that_are_refused_have_their_line_and_the_others_are_read(tmp_path: Path):
    json_lines(tmp_path)
    lines: list[Any] = [
        {"defaults": DEFAULTS}, ROWS[0], "", "{", "[1]", ROWS[1] | {"id": "x"}, ROWS[0] | {"id": "x"},
        ROWS[0] | {"anser": "red"}, ROWS[0] | {"image": "img/9.png"},
    ]  # fmt: skip
    write_lines(tmp_path / "mine.jsonl", lines)
    samples, skipped = read_with_skips(load("mine", tmp_path / "mine.jsonl"))
    assert [sample.id for sample in samples] == ["mine-2", "x"]
    assert list(skipped) == ["line 4", "line 5", "line 7", "line 8", "line 9"]
    assert skipped["line 4"].startswith("the line is not JSON")
    assert skipped["line 5"] == "the line holds list, not an object"
    assert skipped["line 7"] == "its id 'x' is that of line 6, too"
    assert "the nearest is 'answer'" in skipped["line 8"]
    assert skipped["line 9"].endswith("9.png' does not exist")


def test_rows_without_what_the_defaults_would_say_are_refused(tmp_path: Path):
    json_lines(tmp_path)
    write_lines(tmp_path / "mine.jsonl", ROWS)
    samples, skipped = read_with_skips(own_data(tmp_path / "mine.jsonl"))
    assert not samples
    assert list(skipped) == ["line 1", "line 2"]


def test_pictures_may_lie_elsewhere_and_a_row_overrules_the_defaults(tmp_path: Path):
    write_pictures(tmp_path / "pictures")
    write_lines(tmp_path / "mine.jsonl", [{"defaults": DEFAULTS}, ROWS[0] | {"box_format": "xyxy"}])
    data = [f"mine={tmp_path}/mine.jsonl,images={tmp_path}/pictures,options_in_question=1,scenes=3"]
    mine, scenes = map(list, samples_of_command(data, 0, 1).values())
    assert mine[0].evidence[0].box == Box(20, 10, 40, 30)
    assert len(scenes) == 1


WRONG: list[tuple[Callable[[Path], object], str, str]] = [
    (lambda folder: write_json(folder / "a.json", []), "a.json", "is not in COCO's form: it needs lists of images"),
    (lambda folder: (folder / "a.csv").touch(), "a.csv", r"ends in '\.csv': data of your own are \.jsonl"),
    (lambda folder: None, "", r"holds no metadata\.jsonl and no metadata\.parquet"),
    (lambda folder: None, "b.jsonl", "there is no file or folder"),
    (
        lambda folder: write_lines(folder / "c.jsonl", [{"defaults": {"box_fromat": "xyxy"}}]),
        "c.jsonl",
        "the defaults in the first line of c.jsonl have a field 'box_fromat', .* the nearest is 'box_format'",
    ),
]
"""Files that are none, and what is said before a row is read."""


@pytest.mark.parametrize(("write", "file", "message"), WRONG, ids=[file for _, file, _ in WRONG])
def test_what_is_no_data_is_refused_at_once(write: Callable[[Path], object], file: str, message: str, tmp_path: Path):
    write(tmp_path)
    with pytest.raises((ValueError, OSError), match=message):
        own_data(tmp_path / file)


def test_names_of_data_sets_are_not_taken(tmp_path: Path):
    source = json_lines(tmp_path)
    with pytest.raises(ValueError, match="There is no file or folder 'nowhere' of your own, either"):
        load("mine", "nowhere")
    with pytest.raises(ValueError, match=r"mine: .*split"):
        load("mine", source, split="test")
    assert isinstance(load("mine", source), Samples)
    assert json.loads(source.read_text().splitlines()[0]) == {"defaults": DEFAULTS}
