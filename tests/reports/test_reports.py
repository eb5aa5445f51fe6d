"""Reports of runs: their numbers are those of the run, they are refused where there are none, and can be read."""

import html
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import corelens as cl
from corelens import toy
from corelens.cli import app
from corelens.experiments.conditions import read_conditions
from corelens.experiments.run_folder import RunFolder
from tests.explorer.test_frontend import CHROMIUM


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(app, [*map(str, arguments)])


def said(text: str) -> str:
    """The text of a page or of what a command printed, in one line."""
    return " ".join(
        html.unescape(re.sub(r"<script.*?</script>|<style.*?</style>|<[^>]+>", " ", text, flags=re.S)).split()
    )


def tables(page: str) -> list[list[list[str]]]:
    """Cells of all tables, row by row."""
    cells = re.compile(r"<t[hd][^>]*>(.*?)</t[hd]>", re.DOTALL)
    return [
        [[html.unescape(cell) for cell in cells.findall(row)] for row in re.findall(r"<tr.*?</tr>", table, re.DOTALL)]
        for table in re.findall(r"<table>.*?</table>", page, re.DOTALL)
    ]


def titles(page: str) -> list[str]:
    return [html.unescape(title) for title in re.findall(r"<h3>(.*?)</h3>", page)]


@pytest.fixture(scope="module")
def runs(toy_model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of each kind."""
    folder = tmp_path_factory.mktemp("runs")
    sets = {"few": list(toy.scenes(6, 0, n_things=3)), "many": list(toy.scenes(6, 1))}
    found = cl.scan_metrics(toy_model, sets, ["ram", "write_ram", "spatial_entropy"], out=folder / "scan")
    texts = list(toy.texts(5, 0, "copy"))
    conditions = found["ram"].controls(0.05, range(2))
    cl.run_ablation(
        toy_model, {"many": sets["many"], "copy": texts}, conditions, max_new_tokens=4, out=folder / "ablate"
    )
    ran = invoke("sweep", "--model", "corelens/toy", "--data", "scenes=2", "--out", folder / "sweep")
    assert ran.exit_code == 0, ran.output
    return folder


def reported(folder: Path, file: str) -> str:
    ran = invoke("report", folder)
    assert ran.exit_code == 0, ran.output
    assert said(ran.output).replace(" ", "") == f"Report:{folder / file}"
    page = (folder / file).read_text()
    assert "<script src" not in page
    assert "<link" not in page
    assert page.count("Plotly.newPlot(") == len(titles(page))
    return page


def test_the_report_of_a_scan_holds_its_numbers(runs: Path):
    page = reported(runs / "scan", "scan.html")
    ram = cl.HeadScores.load(runs / "scan" / "ram.safetensors")
    held = sum(float(ram.per_head[head]) for head in ram.top()) / float(ram.per_head.clamp(min=0).sum())
    assert f"{ram.top()}; they hold {held:.0%} of it, where 5% is an even share" in said(page)
    measures, top, facts = tables(page)
    assert [row[0] for row in measures[1:]] == [
        "ram: retrieval attention mass",
        "write_ram: write-weighted retrieval attention mass",
        "spatial_entropy",
    ]
    assert measures[1][1] == str(ram.top())
    low, high = cl.metrics.bootstrap_interval(ram.values)
    for head, row in zip(ram.top(), top[1:], strict=True):
        numbers = (float(ram.per_head[head]), float(low[head]), float(high[head]))
        assert row == [str(head), f"{numbers[0]:.3g}", f"{numbers[1]:.3g} to {numbers[2]:.3g}"]
    about = dict(facts)
    assert about["data"] == "few, many"
    assert about["samples"] == "12, 0 left out"
    assert about["rule"] == "overlap"
    assert "6 layers of 16 heads, float32" in about["model"]
    assert torch.__version__ in about["versions"]
    assert "Retrieval attention mass of every head" in titles(page)
    assert titles(page).count("Share of the heads in either top set that are in both") == 2  # measures, and data sets


def test_the_report_of_a_sweep_holds_its_numbers(runs: Path):
    page = reported(runs / "sweep", "sweep.html")
    found = json.loads((runs / "sweep" / "sweep.json").read_text())
    first = found["units"][0]
    assert f"Removing {first['name']} alone costs most: {first['drop']:.3g} nats" in said(page)
    above = sum(one["interval"][0] > 0 for one in found["units"])
    assert f"of 96 heads, {above} have an interval that lies above zero" in said(page)
    assert [row[0] for row in tables(page)[0][1:]] == [one["name"] for one in found["units"][:20]]
    assert len(titles(page)) == 2


def test_the_report_of_an_ablation_holds_its_numbers(runs: Path):
    page = reported(runs / "ablate", "ablation.html")
    found = read_conditions(RunFolder.load(runs / "ablate"))
    many, copy, heads, about = tables(page)
    for table, name in ((many, "many"), (copy, "copy")):
        assert [row[0] for row in table[1:]] == [
            "nothing",
            "top",
            "next-ranked",
            "random",
            "random, same layers",
            "bottom",
        ]
        for row, condition in zip(table[1:], found.conditions, strict=True):
            accuracies = found.accuracies(condition, name)
            assert float(row[1]) == pytest.approx(100 * sum(accuracies) / len(accuracies), abs=0.051)
        assert float(table[2][3]) == pytest.approx(100 * found.paired_difference("top", name).mean, abs=0.051)
    assert f"accuracy goes from {many[1][1]} to {many[2][1]} percent on many, {copy[1][1]} to {copy[2][1]}" in said(
        page
    )
    assert f"with as many random heads removed, to {many[4][1]} on many, {copy[4][1]} on copy." in said(page)
    assert dict(heads)["top"] == str(found.conditions["top"][0])
    assert dict(heads)["random"] == "2 draws of 5 heads"
    assert dict(about)["how"] == "zero"
    assert titles(page) == ["Accuracy by heads removed"]


def test_a_report_is_the_same_every_time(runs: Path):
    assert reported(runs / "scan", "scan.html") == reported(runs / "scan", "scan.html")


def test_folders_without_a_finished_run_are_refused(runs: Path, tmp_path: Path):
    unfinished, unwritten, ended, other, demo, study, foreign, old = (
        tmp_path / name for name in ("unfinished", "unwritten", "ended", "other", "demo", "study", "foreign", "old")
    )
    for folder, of in {
        unfinished: "scan",
        unwritten: "scan",
        ended: "sweep",
        other: "scan",
        study / "scan": "scan",
    }.items():
        shutil.copytree(runs / of, folder)
    (unfinished / "parts" / "00000.parquet").unlink()
    for file in unwritten.glob("*.safetensors"):
        file.unlink()
    (ended / "sweep.json").unlink()
    manifest = json.loads((other / "manifest.json").read_text())
    (other / "manifest.json").write_text(json.dumps(manifest | {"work": "dance"}))
    for folder in (demo, foreign, old):
        folder.mkdir()
    (old / "study.json").write_text('{"model": "tiny", "findings": []}')
    (demo / "demo.json").write_text("{}")
    (foreign / "manifest.json").write_text("[]")
    for folder, message in {
        tmp_path / "nowhere": "there is no run",
        tmp_path: "holds no run of corelens",
        foreign: "holds no run of corelens",
        unfinished: "is unfinished: 1 of its 1 parts are missing",
        unwritten: "has no scores yet",
        ended: "sweep.json is not there or cannot be read; the command that made the run writes it",
        old: "study.json lacks 'times as fast'",
        other: "holds a run of 'dance'; there are reports of scan, sweep, ablate, accelerate and study",
        demo: "holds a demo, whose report is",
        study: "holds an unfinished study",
    }.items():
        before = sorted(tmp_path.rglob("*"))
        ran = invoke("report", folder)
        assert ran.exit_code == 2, (folder, ran.output)
        assert message in said(ran.output)
        assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here")
@pytest.mark.parametrize("width", [1200, 480])
def test_a_report_follows_the_screen_and_fits_it(runs: Path, width: int):
    from playwright.sync_api import sync_playwright

    reported(runs / "scan", "scan.html")
    background = "getComputedStyle(document.body).backgroundColor"
    figures = "[...document.querySelectorAll('.js-plotly-plot')].map((one) => one._fullLayout.{})"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme="light")
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto((runs / "scan" / "scan.html").as_uri())
        seen = {}
        for scheme in ("light", "dark", "light"):
            page.emulate_media(color_scheme=scheme)
            page.wait_for_function(f"{figures.format('paper_bgcolor')}.every((one) => one === '{PAPER[scheme]}')")
            seen[scheme] = page.evaluate(background), set(page.evaluate(figures.format("font.color")))
        assert seen == {
            "light": ("rgb(246, 247, 249)", {"#1f2430"}),
            "dark": ("rgb(12, 14, 19)", {"#e8eaed"}),
        }
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert max(page.evaluate(figures.format("width"))) <= width
        assert not errors
        browser.close()


PAPER = {"light": "#ffffff", "dark": "#14171f"}
