"""The reader of MMDocIR, on tiny files of the published form with every kind of broken row."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from corelens.data import Evidence, mmdocir
from corelens.inputs.media import ORIENTATION
from corelens.tokens import Box
from tests.helpers.dataset_files import mmdocir_folder, mmdocir_question, read_with_skips, write_table


def test_mmdocir_scales_layouts_from_page_units_to_pixels_and_pages_count_from_zero(tmp_path: Path):
    questions = [mmdocir_question(), mmdocir_question(page_id=[0, 1])]
    one, both = mmdocir(mmdocir_folder(tmp_path, questions))
    assert one.id == "report-0"
    assert one.group == both.group == "report"
    assert [picture.size for picture in one.pictures] == [(1224, 1584)] * 3
    assert [np.asarray(picture)[0, 0, 0] // 90 for picture in one.pictures] == [0, 1, 2]
    (evidence,) = one.evidence
    assert evidence.media == 1
    assert evidence.box == pytest.approx(Box(122.4, 158.4, 612, 792))
    assert one.about["kinds"] == ["Chart", "Table"]
    # A page without a layout is evidence as a whole.
    assert [(region.media, region.box is None) for region in both.evidence] == [(1, False), (0, True)]
    only = list(mmdocir(tmp_path, pages="evidence"))
    assert [len(sample.images) for sample in only] == [1, 2]
    assert only[0].evidence[0].media == 0
    assert only[0].about["pages"] == [1]


def test_published_evidence_of_mmdocir_is_whole_pages(tmp_path: Path):
    folder = mmdocir_folder(tmp_path, [mmdocir_question(), mmdocir_question(page_id=[0, 1])])
    one, both = mmdocir(folder, evidence="published")
    assert one.evidence == (Evidence(media=1),)
    assert both.evidence == (Evidence(media=0), Evidence(media=1))
    assert mmdocir(folder, evidence="published").name != mmdocir(folder).name


def test_layouts_of_mmdocir_turn_with_pages_that_are_stored_turned(tmp_path: Path):
    page, exif = Image.new("RGB", (1224, 1584)), Image.Exif()
    page.paste("white", (122, 158, 612, 792))
    exif[ORIENTATION] = 6
    page.save(tmp_path / "turned.png", exif=exif)
    rows = [{"doc_name": "report", "passage_id": "1", "image_binary": (tmp_path / "turned.png").read_bytes()}]
    write_table(mmdocir_folder(tmp_path, [mmdocir_question()]) / "MMDocIR_pages.parquet", rows)
    (sample,) = mmdocir(tmp_path)
    assert sample.evidence[0].box == pytest.approx(Box(*sample.pictures[0].getbbox()), abs=1)


def test_mmdocir_skips_what_is_broken(tmp_path: Path):
    layout = mmdocir_question()["layout_mapping"][0]
    questions = [
        mmdocir_question(),
        mmdocir_question(page_id=[7]),
        mmdocir_question(page_id=[]),
        mmdocir_question(type="['Chart'"),
        mmdocir_question(type="{1: 2}"),
        mmdocir_question(A=" "),
        mmdocir_question(layout_mapping=[layout | {"bbox": [0, 0, 700, 5]}]),
        mmdocir_question(layout_mapping=[layout | {"page": 2}]),
        mmdocir_question(layout_mapping=[layout | {"page_size": [0, 792]}]),
        {"Q": "What?"},
        "no object",
    ]
    mmdocir_folder(tmp_path, questions)
    with (tmp_path / "MMDocIR_annotations.jsonl").open("a") as file:
        file.write('{"doc_name": "other.pdf", "questions": [' + json.dumps(mmdocir_question()) + "]}\n{broken\n")
    samples, skipped = read_with_skips(mmdocir(tmp_path))
    assert [sample.id for sample in samples] == ["report-0"]
    reasons = {
        "report-1": "no page [7]; it has 0 to 2, counted from zero",
        "report-2": "'page_id' is empty",
        "report-3": "'type' is \"['Chart'\": it cannot be read as a list",
        "report-4": "Input should be a valid list",
        "report-5": "'A' is ' ': String should have at least 1 character",
        "report-6": "leaves the picture",
        "report-7": "a layout is on page 2, which is not among its evidence pages [1]",
        "report-8": "'page_size' is 0 x 792",
        "report-9": "no field 'page_id'",
        "report-10": "'no object' is not an object with a field 'page_id'",
        "other-0": "there are no pages of its document 'other.pdf'",
        "line 3": "not JSON",
    }
    assert skipped.keys() == reasons.keys()
    for row, reason in reasons.items():
        assert reason in skipped[row], row
