"""The parts that all readers share: files, downloads, skipped rows and boxes."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import huggingface_hub
import pytest
from huggingface_hub.errors import GatedRepoError

from corelens.data import Sample, load, mlvu, mmlongbench_doc, refcocog
from corelens.data.readers.base import Samples
from corelens.tokens import Box
from tests.helpers.dataset_files import refcocog_row, write_json, write_table


def test_annotations_a_pixel_outside_are_cut_off(tmp_path: Path):
    write_table(tmp_path / "val-0.parquet", [refcocog_row(bbox=[-0.4, 20.0, 100.9, 60.0], answer=["a"])])
    (sample,) = refcocog(tmp_path)
    assert sample.evidence[0].box == Box(0, 20, 100, 80)


def test_a_place_that_holds_no_data_set_is_an_error_before_anything_is_read(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"holds no val-\*\.parquet"):
        refcocog(tmp_path)
    with pytest.raises(FileNotFoundError, match="no Hub id, which reads owner/name"):
        refcocog(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="has no place for the expression"):
        refcocog(tmp_path, prompt="Where?")


def test_a_file_that_is_no_list_of_rows_is_an_error(tmp_path: Path):
    write_json(tmp_path / "samples.json", {"rows": []})
    with pytest.raises(ValueError, match=r"samples\.json' is not a list of rows"):
        mmlongbench_doc(tmp_path)
    (tmp_path / "samples.json").write_text("[")
    with pytest.raises(ValueError, match=r"samples\.json' is not JSON"):
        mmlongbench_doc(tmp_path)


def test_a_gated_repository_says_how_to_get_access(monkeypatch: pytest.MonkeyPatch):
    response = httpx.Response(403, request=httpx.Request("GET", "https://huggingface.co"))

    def raise_gated(*_: Any, **__: Any) -> None:
        raise GatedRepoError("gated", response=response)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", raise_gated)
    with pytest.raises(PermissionError, match=r"MLVU/MVLU is gated\..*accept its terms.*hf auth login"):
        mlvu()


def test_only_what_is_needed_is_downloaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    downloads = {}

    def download(name: str, **settings: Any) -> str:
        downloads[name] = settings
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    write_table(tmp_path / "data" / "val-0.parquet", [refcocog_row()])
    assert len(list(load("refcocog"))) == 2
    assert downloads == {
        "lmms-lab/RefCOCOg": {"repo_type": "dataset", "allow_patterns": ["data/val-*.parquet"]},
    }


def test_a_data_set_that_cannot_be_downloaded_is_named():
    """The Hub is offline in tests."""
    with pytest.raises(FileNotFoundError, match="'lmms-lab/RefCOCOg' is no local folder, and could not be downloaded"):
        refcocog()


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    write_table(tmp_path / "val-0.parquet", [refcocog_row()])
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"needs datasets, which is not installed: pip install 'corelens\[data\]'"):
        refcocog(tmp_path)


def test_a_data_set_without_bad_rows_skips_nothing_and_can_be_read_again(tmp_path: Path):
    write_table(tmp_path / "val-0.parquet", [refcocog_row()])
    samples = refcocog(tmp_path)
    assert len(list(samples)) == len(list(samples)) == 2
    assert samples.skipped == []


@pytest.mark.parametrize(
    "error", [ValueError("x"), KeyError("x"), OverflowError("x"), OSError("x"), RecursionError("x")]
)
def test_an_error_that_a_reader_did_not_foresee_is_one_of_its_row(error: Exception):
    def broken() -> Sample:
        raise error

    def rows() -> Iterator[tuple[str, Callable[[], Sample]]]:
        yield "broken", broken
        yield "whole", lambda: Sample("whole", "q", "a")

    data = Samples("mine", rows)
    with pytest.warns(
        UserWarning, match=f"1 of 2 rows of mine were skipped, the first of them broken: {type(error).__name__}"
    ):
        assert [sample.id for sample in data] == ["whole"]
