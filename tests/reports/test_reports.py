"""Reports in general: they are reproducible, fit the screen, and folders without a finished run are errors."""

import json
import shutil
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

from corelens.experiments.run_folder import write_summary
from tests.explorer.test_frontend import CHROMIUM
from tests.helpers.cli import invoke
from tests.helpers.reports import model_code_of_a_report, report_of


def test_a_report_is_the_same_every_time(runs: Path):
    assert report_of(runs / "scan", "scan.html") == report_of(runs / "scan", "scan.html")


@pytest.mark.parametrize("run", ["scan", "ablate", "sweep", "key-tokens"])
def test_a_report_of_finished_numbers_needs_no_model(runs: Path, run: str):
    assert model_code_of_a_report(runs / run) == set()


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
    write_summary(other / "manifest.json", manifest | {"work": "dance"})
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
        ended: "sweep.json is missing or cannot be read; the command that made the run writes it",
        old: "study.json has no checksum",
        other: "holds a run of 'dance'; there are reports of scan, key-tokens, sweep, ablate, accelerate and study",
        demo: "holds a demo, whose report is",
        study: "holds an unfinished study",
    }.items():
        before = sorted(tmp_path.rglob("*"))
        ran = invoke("report", folder)
        assert ran.exit_code == 2, (folder, ran.output)
        assert message in " ".join(ran.output.replace("│", "").split())
        assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here")
@pytest.mark.parametrize("width", [1200, 480])
def test_a_report_follows_the_screen_and_fits_it(runs: Path, width: int):
    report_of(runs / "scan", "scan.html")
    background = "getComputedStyle(document.body).backgroundColor"
    figures = "[...document.querySelectorAll('.js-plotly-plot')].map((one) => one._fullLayout.{})"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme="light")
        errors: list[str] = []
        page.set_default_timeout(120_000)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto((runs / "scan" / "scan.html").as_uri())
        colours = {}
        for scheme in ("light", "dark", "light"):
            page.emulate_media(color_scheme=scheme)
            page.wait_for_function(f"{figures.format('paper_bgcolor')}.every((one) => one === '{PAPER[scheme]}')")
            colours[scheme] = page.evaluate(background), set(page.evaluate(figures.format("font.color")))
        assert colours == {
            "light": ("rgb(246, 247, 249)", {"#1f2430"}),
            "dark": ("rgb(12, 14, 19)", {"#e8eaed"}),
        }
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert max(page.evaluate(figures.format("width"))) <= width
        assert not errors
        browser.close()


PAPER = {"light": "#ffffff", "dark": "#14171f"}
