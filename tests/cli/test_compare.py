"""The command compare: its output against the functions that it calls, and its errors."""

import json
import shutil
from pathlib import Path

import pytest

import corelens as cl
from corelens import HeadScores, HookedMLLM, agreement, toy
from corelens.experiments.comparison import compare_rankings
from corelens.experiments.published_comparison import compare_with_published
from tests.helpers.cli import invoke, text_of


@pytest.fixture(scope="module")
def scanned(toy_model: HookedMLLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    cl.scan_metrics(toy_model, toy.scenes(6, seed=0), ["vera", "ram_last"], out=folder / "scan")
    cl.run_sweep(toy_model, toy.scenes(2, seed=0), out=folder / "sweep")
    cl.run_sweep(toy_model, toy.scenes(2, seed=0), per="layer", out=folder / "layers")
    return folder


def test_the_command_prints_the_comparison(scanned: Path, tmp_path: Path):
    ram = cl.HeadScores.load(scanned / "scan" / "ram_last.safetensors")
    listed = cl.HeadSet((*ram.top(3).heads, cl.Head(0, 0)))
    listed.save(tmp_path / "list.json")
    command = ("compare", scanned / "scan", tmp_path / "list.json", "--metric", "ram_last")
    ran = invoke(*command)
    assert ran.exit_code == 0, ran.output
    expected = compare_rankings(ram, listed)
    summary = json.loads(invoke(*command, "--json").stdout)
    assert summary["in both"] == [str(head) for head in ram.top(3)]
    assert summary["only in the other"] == ["L0H0"]
    assert summary["overlap"]["p"] == pytest.approx(expected.overlap.p_value)
    assert summary["overlap"]["by chance"] == pytest.approx(16 / 96, abs=1e-4)
    assert summary["depth"]["other"]["thirds"] == [1, 3, 0]
    assert "top 4 of 96 heads" in text_of(ran)
    assert "3 (75%)" in text_of(ran)
    assert "on average; mostly in the middle third of the layers (3 of 4)" in text_of(ran)
    assert "only in the other: L0H0" in text_of(ran)


def test_runs_are_compared_with_runs(scanned: Path):
    with_itself = invoke("compare", scanned / "scan", scanned / "scan")
    assert "5 (100%)" in text_of(with_itself)
    assert "metric vera" in text_of(with_itself)  # which was requested first
    command = ("compare", scanned / "scan", scanned / "sweep", "--metric", "ram_last", "--top", 0.1)
    ran = invoke(*command)
    assert ran.exit_code == 0, ran.output
    summary = json.loads(invoke(*command, "--json").stdout)
    files = [scanned / "scan" / "ram_last.safetensors", scanned / "sweep" / "sweep.safetensors"]
    both = agreement(*map(HeadScores.load, files), n=0.1)
    assert (summary["top"], summary["jaccard"]) == (10, pytest.approx(both.jaccard, abs=1e-4))
    assert summary["rank correlation"]["spearman"] == pytest.approx(both.spearman, abs=1e-4)
    assert f"{both.spearman:.2f} [" in text_of(ran)
    again = json.loads(invoke("compare", *files, "--top", 10, "--json").stdout)
    for numbers in (summary, again):
        numbers["run"].pop("path"), numbers["other"].pop("path")
    assert again == summary


def test_mistakes_of_the_command_are_named(scanned: Path, tmp_path: Path):
    scan, other = scanned / "scan", tmp_path / "list.json"
    other.write_text('["L0H0"]')
    unfinished, unwritten, foreign = tmp_path / "unfinished", tmp_path / "unwritten", tmp_path / "foreign"
    for folder in (unfinished, unwritten):
        shutil.copytree(scan, folder)
    (unfinished / "parts" / "00000.parquet").unlink()
    for file in unwritten.glob("*.safetensors"):
        file.unlink()
    study = tmp_path / "study"
    shutil.copytree(scan, study / "scan")
    foreign.mkdir()
    (foreign / "manifest.json").write_text("{}")
    for arguments, message in {
        (tmp_path / "none", other): "there is no run",
        (foreign, other): "holds no run of corelens",
        (study, other): f"is a study, which is several runs; take one of them, as {study / 'scan'}",
        (unfinished, other): "is unfinished: 1 of its 1 parts are missing",
        (unwritten, other): "holds no scores of heads. Its work is 'scan'",
        (scanned / "layers", other): "holds no scores of heads. Its work is 'sweep'",
        (other, other): "holds no head scores",
        (scan, other, "--metric", "entropy"): "holds no scores by 'entropy'; it has ram_last, vera",
        (scan, tmp_path / "none.json"): "none.json cannot be read",
        (scan, other, "--top", 3): "n=3 means 3 of 1 heads; it must be between 1 and 1",
        (scan, scan, "--top", 0): "outside (0, 1]",
        (scan, scan, "--top", 97): "of 96 heads; it must be between 1 and 96",
    }.items():
        ran = invoke("compare", *arguments)
        assert ran.exit_code == 2, (arguments, ran.output)
        assert message in text_of(ran), (arguments, ran.output)


def test_printed_numbers_stand_beside_a_run(toy_model: HookedMLLM, tmp_path: Path):
    run = tmp_path / "scan"
    cl.scan_metrics(toy_model, {"refcocog": toy.scenes(2, seed=0), "vidstg": toy.scenes(2, seed=1)}, ["ram"], out=run)
    command = ("compare", run, "--published", "Qwen/Qwen3-VL-4B-Instruct")
    ran = invoke(*command)
    assert ran.exit_code == 0, ran.output
    summary = json.loads(invoke(*command, "--json").stdout)
    tables = compare_with_published(run, "Qwen3-VL-4B")
    assert [table["where"] for table in summary["tables"]] == [table.where for table in tables]
    assert summary["tables"][0]["numbers"][1] == tables[0].numbers[1]._asdict()
    assert summary["paper"]["license"].startswith("CC BY 4.0")
    text = text_of(ran)
    assert "Rank correlation of the scores of two data sets (section 4.3, figure 5a); run: refcocog, vidstg" in text
    assert "VidSTG and RefCOCOg 0.85" in text
    assert "MMDocIR and VidSTG 0.88 -" in text
    for arguments, message in {
        (run,): "give either a list or run to compare with, or --published MODEL",
        (run, run, "--published", "Qwen3-VL-4B"): "give either",
        (run, "--published", "Qwen3-VL-4B", "--top", 5): "printed numbers are of their own numbers of heads",
        (run, "--published", "gpt"): "'gpt' is not a model of the paper",
        (tmp_path / "none", "--published", "Qwen3-VL-4B"): "there is no run",
    }.items():
        ran = invoke("compare", *arguments)
        assert ran.exit_code == 2, (arguments, ran.output)
        assert message in text_of(ran), (arguments, ran.output)
