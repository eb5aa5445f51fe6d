"""The report of an ablation has its numbers."""

from pathlib import Path

import pytest

from corelens.experiments.conditions import read_conditions
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
            assert float(row[1]) == pytest.approx(100 * sum(accuracies) / len(accuracies), abs=0.051)
        assert float(table[2][3]) == pytest.approx(100 * results.paired_difference("top", name).mean, abs=0.051)
    assert f"accuracy goes from {many[1][1]} to {many[2][1]} percent on many, {copy[1][1]} to {copy[2][1]}" in text_of(
        page
    )
    assert f"with as many random heads ablated, to {many[4][1]} on many, {copy[4][1]} on copy." in text_of(page)
    assert dict(heads)["top"] == str(results.conditions["top"][0])
    assert dict(heads)["random"] == "2 draws of 5 heads"
    assert dict(about)["how"] == "zero"
    assert titles(page) == ["Accuracy by heads removed"]
