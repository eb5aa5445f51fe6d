"""The report of an ablation has its numbers."""

from pathlib import Path

import pytest

import corelens as cl
from corelens import HookedMLLM, toy
from corelens.experiments.ablation import dose_conditions, run_ablation
from corelens.experiments.conditions import low_to_high, read_conditions
from corelens.experiments.run_folder import RunFolder
from tests.helpers.reports import report_of, tables, text_of, titles


def test_the_report_of_an_ablation_holds_its_numbers(runs: Path):
    page = report_of(runs / "ablate", "ablation.html")
    results = read_conditions(RunFolder.load(runs / "ablate"))
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
        for row, condition in zip(table[1:], results.conditions, strict=True):
            accuracies = results.accuracies(condition, name)
            assert row[1] == low_to_high(results.n_writing.get(condition, []))
            assert float(row[2]) == pytest.approx(100 * sum(accuracies) / len(accuracies), abs=0.051)
        assert float(table[2][4]) == pytest.approx(100 * results.paired_difference("top", name).mean, abs=0.051)
    assert f"accuracy goes from {many[1][2]} to {many[2][2]} percent on many, {copy[1][2]} to {copy[2][2]}" in text_of(
        page
    )
    writing = low_to_high(results.n_writing["random"])
    without = f"to {many[4][2]} on many, {copy[4][2]} on copy."
    assert f"with as many random heads ablated, of which {writing} write anything, {without}" in text_of(page)
    assert dict(heads)["top"] == str(results.conditions["top"][0])
    assert dict(heads)["random"] == "2 draws of 5 heads"
    assert dict(about)["how"] == "zero"
    assert titles(page) == ["Accuracy by heads removed"]


def test_the_report_of_doses_draws_a_curve_of_every_data_set(toy_model: HookedMLLM, tmp_path: Path):
    scores = cl.scan(toy_model, toy.scenes(4, seed=3))
    datasets = {"scenes": list(toy.scenes(4, seed=0)), "copy": list(toy.texts(4, 0, "copy"))}
    results = run_ablation(
        toy_model, datasets, dose_conditions(scores, (2, 10), range(2)), "uniform_all_keys", out=tmp_path / "run"
    )
    page = report_of(tmp_path / "run", "ablation.html")
    assert titles(page) == ["Accuracy without more and more heads"] * 2
    top, random = (100 * sum(of) / len(of) for of in (results.accuracies(f"{k} 2", "copy") for k in ("top", "random")))
    assert "With 2 heads ablated (top 2)" in text_of(page)
    assert f"to {top:.1f} percent on copy; with as many random heads ablated, to" in text_of(page)
    assert f"{random:.1f} on copy." in text_of(page)
