"""`corelens study` on the shipped model."""

import json
import re
from io import BytesIO
from pathlib import Path

import datasets
import pyarrow as pa
import pytest
import torch
from click.testing import Result
from pyarrow import parquet
from typer.testing import CliRunner

import corelens.study
from corelens import toy
from corelens.cli import app
from corelens.cli.options import _separate
from corelens.study.budget import Throughput
from tests.helpers.studies import SMALL_BUDGET, head_scores


def scenes_as_pages(folder: Path, n: int) -> Path:
    """Write scenes as documents of one page, in the form of MMDocIR."""
    documents, pages = [], []
    for sample in toy.scenes(n, seed=1):
        image = sample.images[0]
        assert not callable(image)
        buffer = BytesIO()
        image.save(buffer, "PNG")
        pages.append({"doc_name": sample.id, "passage_id": "0", "image_binary": buffer.getvalue()})
        layout = {"page": 0, "page_size": list(image.size), "bbox": list(sample.evidence[0].box)}
        question = {
            "Q": sample.question, "A": sample.answer, "page_id": [0], "type": "[]", "layout_mapping": [layout],
        }  # fmt: skip
        documents.append(json.dumps({"doc_name": sample.id, "questions": [question]}))
    (folder / "annotations.jsonl").write_text("\n".join(documents))
    parquet.write_table(pa.Table.from_pylist(pages), folder / "pages.parquet")
    return folder


def run_command(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["study", "--model", "corelens/toy", *map(str, arguments)])


@pytest.mark.nightly
def test_the_command_compares_two_data_sets_and_another_model_behind_one_bar(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("corelens.study.verdict.N_DRAWS", 40)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(corelens.study, "QUICK", SMALL_BUDGET)
    (tmp_path / "pages").mkdir()
    data = f"scenes=8,mmdocir={scenes_as_pages(tmp_path / 'pages', 8)}"
    out = tmp_path / "run"
    options = ["--data", data, "--quick", "--max-new-tokens", 2, "--limit", 8, "--out", out]

    first = run_command(*options)
    assert first.exit_code == 0, first.output
    assert len(re.findall(r"What is left takes about \d+:\d+:\d+, at", first.output)) == 1
    bars = {line.split(":")[0].strip() for line in re.split(r"[\r\n]", first.output) if re.search(r"\d+%\|", line)}
    assert bars - {"Loading weights"} == {"timing a few samples", "study", "verdicts"}
    assert re.search(r"study: 100%\|.*\| (\d+)/\1 .*speed\]", first.output), first.output
    generality = json.loads((out / "study.json").read_text())["findings"][1]
    assert generality["verdict"] != "not supported"
    shared = generality["measurements"][0]  # by scenes, and scenes as pages of documents
    assert (shared["name"], shared["value"] >= 0.2) == ("shared by top sets", True)
    assert any(note.startswith("MMDocIR: only in its top set: ") for note in generality["notes"])
    page = (out / "study.html").read_text()
    assert "Rank correlation over all heads" in page

    speeds = (out / "speed.json").read_bytes()
    other = tmp_path_factory.mktemp("other")
    (other / "scan").mkdir()
    deeper = head_scores(torch.rand(3, 9, 16), ("scenes",) * 3)
    deeper.save(other / "scan" / "ram.safetensors")
    resumed = run_command(*options, "--compare-with", other, "--compare-with", out, "--json")
    assert resumed.exit_code == 0, resumed.output
    assert "What is left takes about 0:00:00" in resumed.output
    assert (out / "speed.json").read_bytes() == speeds
    generality = json.loads(resumed.stdout)["findings"][1]
    values = {measurement["name"]: measurement["value"] for measurement in generality["measurements"]}
    assert values[f"shared by top sets with {out}"] == 1
    assert values[f"relative depth of top heads, less that in {out}"] == 0
    assert f"shared by top sets with {other}" not in values
    assert "It has 9 layers of 16 heads, this model 6 layers of 16 heads" in " ".join(generality["notes"])
    assert run_command(*options, "--time-again").exit_code == 0
    assert (out / "speed.json").read_bytes() != speeds


def test_the_command_splits_data_sets_and_says_what_it_costs_before_it_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def stop(*args: object) -> None:
        raise ValueError("stopped")

    monkeypatch.setattr("corelens.study.budget.measure_throughput", lambda *args: Throughput(1.0, 1.0))
    monkeypatch.setattr("corelens.study.run_study", stop)
    assert _separate(["scenes=8,mmlongbench=p,task=x", "charts=3"]) == ["scenes=8", "mmlongbench=p,task=x", "charts=3"]
    common = ["--out", tmp_path / "run", "--quick"]
    result = run_command("--data", "scenes=8", *common)
    assert result.exit_code == 2
    assert "scan: 4 samples x 1 = 4 passes" in result.output
    assert "Write-matched heads are drawn 10 times, of at most 20." in " ".join(result.output.split())
    for options, message in {
        ("--data", "scenes=2"): "scenes has 2 samples",
        ("--data", "scenes=8,scenes=9"): "two data sets are scenes",
        ("--data", "scenes=8", "--compare-with", tmp_path): f"{tmp_path} is no finished study",
    }.items():
        assert message in " ".join(run_command(*options, *common).output.split())
    assert not (tmp_path / "run").exists()
