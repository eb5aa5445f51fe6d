"""Heads of a run beside a published list or another run: against closed forms and loops, and what is refused."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import corelens as cl
from corelens import HeadScores, HeadSet, agreement, toy
from corelens.cli import app
from corelens.experiments.comparison import compare_rankings, in_thirds, mean_depth
from corelens.head_formats import load_head_score_list, load_published


def scores(values: torch.Tensor, **about: Any) -> Any:
    return HeadScores(values[None].float(), "mass", ("a",), **about)


@pytest.fixture
def run() -> Any:
    """Nine layers of eight heads; the mean falls from L0H0 to L8H7."""
    return scores(torch.arange(72, 0, -1.0).reshape(9, 8), model="tiny")


# --- two sets ---


def test_a_list_without_scores_is_compared_with_as_many_heads(run: Any):
    listed = HeadSet.parse("L0H1, L5H5, L0H0")
    found = compare_rankings(run, listed)
    assert str(found.top) == "L0H0, L0H1, L0H2"
    assert (found.overlap.shared, found.jaccard) == (2, 0.5)
    assert found.ranks is not None
    assert (found.ranks.spearman, found.ranks.n_heads) == (pytest.approx(-0.5), 3)  # of 3, 2, 1 beside 2, 1, 3
    assert found.overlap.expected == pytest.approx(9 / 72)
    assert compare_rankings(run, listed, 1).overlap.shared == 0  # the best of the list is L0H1
    with pytest.raises(ValueError, match="n=4 means 4 of 3 heads; it must be between 1 and 3"):
        compare_rankings(run, listed, 4)


def test_ranks_are_over_the_heads_that_both_score(run: Any):
    values = torch.full((9, 8), math.nan)
    values[0, :4] = torch.tensor([4.0, 3.0, 1.0, 2.0])
    found = compare_rankings(run, scores(values))
    assert len(found.top) == 4
    assert found.ranks is not None
    assert found.ranks.n_heads == 4
    assert found.ranks.spearman == pytest.approx(1 - 6 * 2 / (4 * 15))  # 1 - 6 sum d² / (n (n² - 1))
    assert compare_rankings(run, scores(values.clamp(max=1.0))).ranks is None  # all alike
    whole = compare_rankings(run, replace(run, values=run.values.flip(2)))
    assert len(whole.top) == 4  # 5 % of 72, rounded up
    assert whole.overlap.shared == 0
    assert whole.ranks is not None
    assert whole.ranks.n_heads == 72


def test_what_is_of_another_model_is_refused(run: Any):
    with pytest.raises(ValueError, match="the run has 9 layers of 8 heads, and the other 9 of 4"):
        compare_rankings(run, scores(torch.ones(9, 4)))
    hybrid = replace(run, values=run.values.clone())
    hybrid.values[:, 3] = math.nan
    for heads in ("L3H0", "L9H0", "L0H8"):
        with pytest.raises(ValueError, match=f"{heads} is listed and has no score in the run, which has 9 layers of 8"):
            compare_rankings(hybrid, HeadSet.parse(heads))


def test_depth_is_relative_to_the_model():
    heads = HeadSet.parse("L0H0, L4H1, L8H0, L8H1")
    assert mean_depth(heads, 9) == pytest.approx((0 + 0.5 + 1 + 1) / 4)
    assert in_thirds(heads, 9) == (1, 1, 2)
    assert mean_depth(HeadSet.parse("L0H0"), 1) == 0


# --- files of others ---


@pytest.mark.parametrize(
    "written",
    [
        {"head_score_list": [["2-1", 0.5], ["0-3", 0.25]], "args": {}},
        [["2-1", 0.5], ["0-3", 0.25]],
        {"2-1": [0.4, 0.6], "0-3": [0.25]},
        {"2-1": 0.5, "0-3": 0.25},
        {"L2H1": 0.5, "L0H3": 0.25},
    ],
)
def test_published_scores_are_read_in_their_forms(written: Any, tmp_path: Path):
    (tmp_path / "list.json").write_text(json.dumps(written))
    found = load_published(tmp_path / "list.json", 9, 8)
    assert isinstance(found, HeadScores)
    assert found.values.shape == (1, 9, 8)
    assert found.n_heads == 2
    assert (float(found.per_head[2, 1]), float(found.per_head[0, 3])) == (0.5, 0.25)


@pytest.mark.parametrize(
    "written", [["L2H1", "L0H3"], ["2-1", "0-3"], [[2, 1], [0, 3]], {"name": "by hand", "heads": ["L2H1", "L0H3"]}]
)
def test_published_names_are_read_in_their_forms_and_order(written: Any, tmp_path: Path):
    (tmp_path / "list.json").write_text(json.dumps(written))
    found = load_published(tmp_path / "list.json", 9, 8)
    assert isinstance(found, HeadSet)
    assert str(found) == "L2H1, L0H3"
    with pytest.raises(ValueError, match="names heads without scores"):
        load_head_score_list(tmp_path / "list.json")


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("nonsense", "does not hold a list of heads"),
        ("3", "does not hold a list of heads"),
        ('{"heads": 3}', "does not hold a list of heads"),
        ('{"heads": ["L1H1"]}', "does not hold a list of heads"),
        ('[["2-1", "high"]]', "does not hold a list of heads"),
        ('{"2-1": []}', "does not hold a list of heads"),
        ("[[1, -2]]", "must count from zero"),
        ("[[1, 2, 3]]", "does not hold a list of heads"),
        ('["L1"]', "'L1' is not a head"),
        ('["1-2", "1-2"]', "L1H2 appears more than once"),
        ('[["1-2", 1], ["L1H2", 2]]', "lists a head twice"),
        ('[["1-2", NaN]]', "no finite number"),
        ("[" * 9000, "does not hold a list of heads"),
        ("[]", "lists no head"),
        ('["L9H0"]', "lists L9H0, and the run has 9 layers of 8 heads: the list goes on to layer 9 and head 0"),
        ('[["999999999-2", 1]]', "lists L999999999H2"),
        (json.dumps({f"{layer}-{head}": 1 for layer in range(6) for head in range(4)}),
         "scores all heads of 6 layers of 4 heads, and the run has 9 layers of 8"),
    ],
)  # fmt: skip
def test_other_files_are_refused(written: str, message: str, tmp_path: Path):
    (tmp_path / "list.json").write_text(written)
    with pytest.raises(ValueError, match=message):
        load_published(tmp_path / "list.json", 9, 8)


# --- the command ---


@pytest.fixture(scope="module")
def scanned(toy_model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    cl.scan_metrics(toy_model, toy.scenes(6, seed=0), ["vera", "ram"], out=folder / "scan")
    cl.run_sweep(toy_model, toy.scenes(2, seed=0), out=folder / "sweep")
    cl.run_sweep(toy_model, toy.scenes(2, seed=0), per="layer", out=folder / "layers")
    return folder


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["compare", *map(str, arguments)])


def said(ran: Any) -> str:
    return " ".join(ran.output.split())


def test_the_command_says_and_writes_the_comparison(scanned: Path, tmp_path: Path):
    ram = cl.HeadScores.load(scanned / "scan" / "ram.safetensors")
    listed = cl.HeadSet((*ram.top(3).heads, cl.Head(0, 0)))
    listed.save(tmp_path / "list.json")
    ran = invoke(scanned / "scan", tmp_path / "list.json", "--metric", "ram", "--json", tmp_path / "both.json")
    assert ran.exit_code == 0, ran.output
    expected = compare_rankings(ram, listed)
    found = json.loads((tmp_path / "both.json").read_text())
    assert found["in both"] == [str(head) for head in ram.top(3)]
    assert found["only in the other"] == ["L0H0"]
    assert found["overlap"]["p"] == pytest.approx(expected.overlap.p_value)
    assert found["overlap"]["by chance"] == pytest.approx(16 / 96, abs=1e-4)
    assert found["depth"]["other"]["thirds"] == [1, 3, 0]
    assert "top 4 of 96 heads" in said(ran)
    assert "3 (75%)" in said(ran)
    assert "on average; mostly in the middle third of the layers (3 of 4)" in said(ran)
    assert "only in the other: L0H0" in said(ran)


def test_runs_are_compared_with_runs(scanned: Path, tmp_path: Path):
    with_itself = invoke(scanned / "scan", scanned / "scan", "--json", tmp_path / "same.json")
    assert "5 (100%)" in said(with_itself)
    assert "metric vera" in said(with_itself)  # which was asked for first
    ran = invoke(scanned / "scan", scanned / "sweep", "--metric", "ram", "--top", 0.1, "--json", tmp_path / "two.json")
    assert ran.exit_code == 0, ran.output
    found = json.loads((tmp_path / "two.json").read_text())
    files = [scanned / "scan" / "ram.safetensors", scanned / "sweep" / "sweep.safetensors"]
    both = agreement(*map(HeadScores.load, files), n=0.1)
    assert (found["top"], found["jaccard"]) == (10, pytest.approx(both.jaccard, abs=1e-4))
    assert found["rank correlation"]["spearman"] == pytest.approx(both.spearman, abs=1e-4)
    assert f"{both.spearman:.2f} [" in said(ran)
    invoke(*files, "--top", 10, "--json", tmp_path / "files.json")
    again = json.loads((tmp_path / "files.json").read_text())
    for numbers in (found, again):
        numbers["run"].pop("path"), numbers["other"].pop("path")
    assert again == found


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
        (scan, other, "--metric", "entropy"): "holds no scores by 'entropy'; it has ram, vera",
        (scan, tmp_path / "none.json"): "none.json cannot be read",
        (scan, other, "--top", 3): "n=3 means 3 of 1 heads; it must be between 1 and 1",
        (scan, scan, "--top", 0): "outside (0, 1]",
        (scan, scan, "--top", 97): "of 96 heads; it must be between 1 and 96",
        (scan, other, "--json", tmp_path / "nowhere" / "x.json"): "cannot be written",
    }.items():
        ran = invoke(*arguments)
        assert ran.exit_code == 2, (arguments, ran.output)
        assert message in said(ran), (arguments, ran.output)
