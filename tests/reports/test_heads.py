"""Pages of heads have the numbers of their runs, lead to each other, and are there as a whole or not at all."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import sync_playwright

import corelens as cl
from corelens.experiments.run_folder import read_manifest, write_summary
from corelens.reports import heads as pages
from corelens.reports.heads import read_runs, write_head_pages
from corelens.reports.scanned_samples import ScannedSamples
from tests.helpers.reports import tables, text_of, titles

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def written(runs: Path, toy_model: Any) -> Path:
    """Pages of the top heads, with samples and effects."""
    from corelens import toy

    found = read_runs([runs / "sweep", runs / "scan", runs / "ablate"])
    datasets = {"few": list(toy.scenes(6, 0, n_things=3)), "many": list(toy.scenes(6, 1))}
    samples = ScannedSamples.of(found.scan, datasets, lambda: toy_model)
    return write_head_pages(runs / "pages", found, found.ranking.top(), samples).parent


def test_the_map_leads_to_a_page_of_every_head_and_back(written: Path):
    index = (written / "index.html").read_text()
    links = re.findall(r'<a href="([^"]+)">([^<]+)</a>', index)
    scores = cl.HeadScores.load(written.parent / "scan" / "ram.safetensors")
    assert [name for _, name in links] == [str(head) for head in scores.top()]
    assert {path.name for path in written.iterdir()} == {"index.html", "plotly.js", *(file for file, _ in links)}
    for file, name in links:
        page = (written / file).read_text()
        assert f"<h1>{name} of corelens/toy</h1>" in page
        assert '<a href="index.html">All heads</a>' in page
        assert f'"{file}"' in index, "the map's cell has no address"


@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here")
def test_a_click_on_the_map_opens_the_page_of_a_head_and_of_no_other(written: Path):
    scores = cl.HeadScores.load(written.parent / "scan" / "ram.safetensors")
    best, *_, last = scores.ranked()
    with sync_playwright() as playwright:
        page = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"]).new_page()
        page.set_default_timeout(60_000)
        page.goto((written / "index.html").as_uri())
        plot = page.locator(".nsewdrag").bounding_box()
        assert plot
        for layer, head in (last, best):  # layers go upwards
            x, y = (head + 0.5) / 16 * plot["width"], (5.5 - layer) / 6 * plot["height"]
            page.mouse.move(plot["x"] + x, plot["y"] + y)
            page.wait_for_selector(".hoverlayer .hovertext")
            page.wait_for_timeout(200)
            assert page.url.endswith("index.html")
            page.mouse.down()
            page.mouse.up()
        page.wait_for_url(f"**/{best}.html")
        assert page.title() == f"{best} of corelens/toy"


def test_pages_are_small_and_load_one_file_beside_them(written: Path):
    for path in written.glob("*.html"):
        page = path.read_text()
        assert re.findall(r'<script src="([^"]*)"', page) == ["plotly.js"]
        assert "<link" not in page
        assert len(page) < 1_000_000
    assert (written / "plotly.js").stat().st_size < 1_000_000


def test_a_page_has_scores_ranks_effects_and_samples_of_its_head(written: Path):
    runs = written.parent
    ram, entropy = (cl.HeadScores.load(runs / "scan" / f"{name}.safetensors") for name in ("ram", "spatial_entropy"))
    drop = cl.HeadScores.load(runs / "sweep" / "sweep.safetensors")
    head = ram.ranked()[1]
    page = (written / f"{head}.html").read_text()
    assert f"Rank 2 of 96 by retrieval attention mass: {ram.per_head[head]:.3g} over 12 samples" in text_of(page)
    by_metric, effects, facts = tables(page)
    assert by_metric[1][1], by_metric[1][3] == (f"{ram.per_head[head]:.3g}", "2 of 96")
    assert by_metric[3][3] == f"{entropy.ranked().index(head) + 1} of 96"
    of_sweep, of_many, of_copy = effects[1:]
    assert of_sweep[0] == f"alone, rank {drop.ranked().index(head) + 1} of 96"
    assert of_sweep[3] == f"{drop.per_head[head]:.3g}"
    assert [row[0] for row in (of_many, of_copy)] == ["top, with 4 others"] * 2
    assert of_many[2] == "accuracy in percent, 6 samples of many"
    assert dict(facts)["data"] == "few, many"
    values = ram.values[:, head.layer, head.head]
    order = values.argsort().tolist()
    shown = [re.fullmatch(r"(\S+): (\S+)", title) for title in titles(page)]
    assert [match.groups() for match in shown if match] == [
        (ram.samples[row], f"{values[row]:.3g}") for row in (*order[::-1][:4], *order[:4])
    ]


def test_without_samples_pages_have_names_and_scores_of_them(runs: Path, tmp_path: Path):
    found = read_runs([runs / "scan"], "spatial_entropy")
    head = found.ranking.ranked()[-1]
    write_head_pages(tmp_path / "pages", found, cl.HeadSet((head,)))
    page = (tmp_path / "pages" / f"{head}.html").read_text()
    text = text_of(page)
    assert f"Rank {found.ranking.n_heads} of {found.ranking.n_heads} by spatial_entropy" in text
    assert "nothing is known of what it does to answers" in text
    assert "written without the samples" in text
    values = found.ranking.values[:, head.layer, head.head]
    most = tables(page)[1]
    assert most[1] == [found.ranking.samples[int(values.argmax())], f"{values.max():.3g}"]


def test_an_interrupted_command_leaves_no_pages(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    found, write = read_runs([runs / "scan"]), pages.write_file

    def interrupted(path: Path, content: str) -> None:
        if path.name.startswith("L"):
            raise KeyboardInterrupt
        write(path, content)

    monkeypatch.setattr(pages, "write_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_head_pages(tmp_path / "pages", found, found.ranking.top(2))
    assert not (tmp_path / "pages").exists()
    monkeypatch.undo()
    write_head_pages(tmp_path / "pages", found, found.ranking.top(1))
    assert len(list((tmp_path / "pages").iterdir())) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["pages"]


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (["sweep"], "0 are scans"),
        (["scan", "scan"], "2 are scans"),
        (["scan", "key-tokens"], "says nothing of single heads"),
    ],
)
def test_folders_that_make_no_pages_are_refused(folders: list[str], message: str, runs: Path):
    with pytest.raises(ValueError, match=message):
        read_runs([runs / folder for folder in folders])


def test_a_run_of_other_weights_is_refused(runs: Path, tmp_path: Path):
    shutil.copytree(runs / "sweep", tmp_path / "sweep")
    manifest = read_manifest(tmp_path / "sweep")
    write_summary(tmp_path / "sweep" / "manifest.json", manifest | {"weights": "others"})
    with pytest.raises(ValueError, match="is of corelens/toy with the weights others, and "):
        read_runs([runs / "scan", tmp_path / "sweep"])


def test_heads_without_a_score_and_folders_that_exist_are_refused(runs: Path, tmp_path: Path):
    found = read_runs([runs / "scan"])
    with pytest.raises(ValueError, match="L9H9 has no score in 6 layers of 16 heads"):
        write_head_pages(tmp_path / "pages", found, cl.HeadSet.parse("L0H1, L9H9"))
    with pytest.raises(ValueError, match="exists already"):
        write_head_pages(tmp_path, found, found.ranking.top(1))
    with pytest.raises(ValueError, match="has no scores by 'rum'; it has ram, write_ram, spatial_entropy"):
        read_runs([runs / "scan"], "rum")
