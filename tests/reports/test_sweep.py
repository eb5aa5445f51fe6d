"""The report of a sweep has its numbers."""

import json
from pathlib import Path

from tests.helpers.reports import report_of, tables, text_of, titles


def test_the_report_of_a_sweep_holds_its_numbers(runs: Path):
    page = report_of(runs / "sweep", "sweep.html")
    summary = json.loads((runs / "sweep" / "sweep.json").read_text())
    first = summary["units"][0]
    assert f"Ablating {first['name']} alone costs most: {first['drop']:.3g} nats" in text_of(page)
    found = sum(one["q"] <= 0.05 for one in summary["units"])
    assert f"{found} of 96 heads have an effect, at a false discovery rate of 0.05" in text_of(page)
    assert found == summary["with an effect"]
    assert [row[0] for row in tables(page)[0][1:]] == [one["name"] for one in summary["units"][:20]]
    assert len(titles(page)) == 2
