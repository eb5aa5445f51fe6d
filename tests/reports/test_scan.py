"""The report of a scan has its numbers."""

import re
from pathlib import Path

import torch

import corelens as cl
from tests.helpers.reports import report_of, tables, text_of, titles


def test_the_report_of_a_scan_holds_its_numbers(runs: Path):
    page = report_of(runs / "scan", "scan.html")
    ram = cl.HeadScores.load(runs / "scan" / "ram.safetensors")
    held = sum(float(ram.per_head[head]) for head in ram.top()) / float(ram.per_head.clamp(min=0).sum())
    assert f"{ram.top()}; they hold {held:.0%} of it, where 5% is an even share" in text_of(page)
    metrics, top, samples, facts = tables(page)
    assert [row[0] for row in metrics[1:]] == [
        "ram: retrieval attention mass",
        "write_ram: write-weighted retrieval attention mass",
        "spatial_entropy",
    ]
    assert metrics[1][1] == str(ram.top())
    low, high = cl.metrics.simultaneous_interval(ram.values, datasets=ram.datasets)
    for head, row in zip(ram.top(), top[1:], strict=True):
        numbers = (float(ram.per_head[head]), float(low[head]), float(high[head]))
        assert row == [str(head), f"{numbers[0]:.3g}", f"{numbers[1]:.3g} to {numbers[2]:.3g}"]
    for head, (name, most, least) in zip(ram.top(), samples[1:], strict=True):
        ranked = [f"{value:.2g}" for value in sorted(ram.values[:, head.layer, head.head].tolist())]
        assert name == str(head)
        assert [re.findall(r"\((.+?)\)", cell) for cell in (most, least)] == [ranked[:-5:-1], ranked[:4]]
    about = dict(facts)
    assert about["data"] == "few, many"
    assert about["samples"] == "12, 0 skipped"
    assert about["rule"] == "overlap"
    assert "6 layers of 16 heads, float32" in about["model"]
    assert torch.__version__ in about["versions"]
    assert "Retrieval attention mass of every head" in titles(page)
    assert titles(page).count("Share of the heads in either top set that are in both") == 2  # metrics, and data sets
