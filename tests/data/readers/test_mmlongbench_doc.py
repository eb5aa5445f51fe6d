"""The reader of MMLongBench-Doc, on tiny files of the published form with every kind of broken row."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from corelens.data import mmlongbench_doc, score
from tests.helpers.dataset_files import mmlongbench_doc_row, read_with_skips, write_json, write_table


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    (tmp_path / "documents").mkdir()
    pages = [Image.new("RGB", (72, 144), (60 * page, 0, 0)) for page in range(3)]
    pages[0].save(tmp_path / "documents" / "report.pdf", save_all=True, append_images=pages[1:], resolution=72)
    (tmp_path / "documents" / "broken.pdf").write_bytes(b"no document")
    return tmp_path


@pytest.mark.parametrize("form", ["json", "parquet"])
def test_mmlongbench_doc_draws_pages_and_counts_them_from_one(documents: Path, form: str):
    rows = [
        mmlongbench_doc_row(),
        mmlongbench_doc_row(evidence_pages="[]", answer="Not answerable", answer_format="None"),
    ]
    if form == "json":
        write_json(documents / "samples.json", rows)
    else:
        write_table(documents / "data" / "train-00000-of-00001.parquet", rows)
    answerable, not_answerable = mmlongbench_doc(documents)
    assert [picture.size for picture in answerable.pictures] == [(144, 288)] * 3
    assert [np.asarray(picture)[100, 70, 0] // 50 for picture in answerable.pictures] == [0, 1, 2]
    assert [(region.media, region.box) for region in answerable.evidence] == [(1, None), (2, None)]
    assert not_answerable.evidence == ()
    assert answerable.group == not_answerable.group == "report.pdf"
    assert score(answerable, "8") == score(not_answerable, "Not answerable") == 1
    with pytest.warns(UserWarning, match="1 of 2 rows .*it has no evidence"):
        assert [sample.id for sample in mmlongbench_doc(documents).with_evidence()] == ["report.pdf-0"]
    with pytest.warns(UserWarning, match="names no evidence page to show"):
        (shown,) = mmlongbench_doc(documents, pages="evidence", dots_per_inch=72)
    assert [picture.size for picture in shown.pictures] == [(72, 144)] * 2
    assert shown.about["pages"] == [1, 2]


def test_mmlongbench_doc_skips_what_is_broken(documents: Path):
    rows = [
        mmlongbench_doc_row(),
        mmlongbench_doc_row(evidence_pages="[4]"),
        mmlongbench_doc_row(evidence_pages="[0]"),
        mmlongbench_doc_row(evidence_pages="two"),
        mmlongbench_doc_row(evidence_pages="['2']"),
        mmlongbench_doc_row(evidence_sources="__import__('os')"),
        mmlongbench_doc_row(answer=""),
        mmlongbench_doc_row(answer_format="Date"),
        mmlongbench_doc_row(doc_id="absent.pdf"),
        mmlongbench_doc_row(doc_id="broken.pdf"),
    ]
    write_json(documents / "samples.json", rows)
    samples, skipped = read_with_skips(mmlongbench_doc(documents))
    assert [sample.id for sample in samples] == ["report.pdf-0"]
    reasons = [
        "no page [4]; it has 1 to 3", "no page [0]", "cannot be read as a list",
        "is \"['2']\": Input should be a valid integer",
        "cannot be read as a list", "'answer' is '': String should have",
        "none of Str, Int", "'absent.pdf' does not exist",
        "cannot be read as a PDF",
    ]  # fmt: skip
    assert len(skipped) == len(reasons)
    for message, reason in zip(skipped.values(), reasons, strict=True):
        assert reason in message
